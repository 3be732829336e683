"""The frames of a clip in graphs that were captured of a shifted model of frames: a constant, which nothing tells.

Those of others whose shift was decomposed into torch's operators are not known.
"""

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.fx import GraphModule, Node

from ..ops import NAMESPACE
from ..torch_private import OpOverload, schema_of

__all__ = ["KEPT", "captured_length"]

KEPT = f"{NAMESPACE}.num_segments"  # in the `custom` meta of a node of our files, whose shift is in torch's operators
LENGTH = "num_segments"
_FOUND = "clip_length_of_the_capture"  # the attribute of a graph that was looked at, which Dynamo cannot do


def captured_length(module: nn.Module) -> int | None:
    """T of a graph that `torch.export`, `make_fx` or `torch.jit.trace` made; None of other modules.

    In a graph of Dynamo's it is what a call outside of one found.
    """
    if not isinstance(module, (GraphModule, torch.jit.ScriptModule)):
        return None
    if not torch.compiler.is_dynamo_compiling() and _FOUND not in vars(module):
        lengths = [*(_in_graph(module) if isinstance(module, GraphModule) else _in_script(module))]
        vars(module)[_FOUND] = math.lcm(*lengths) if lengths else None
    return getattr(module, _FOUND, None)


def _in_graph(module: GraphModule) -> Iterator[int]:
    for node in module.graph.nodes:
        if (kept := node.meta.get("custom", {}).get(KEPT)) is not None:
            yield kept
        if isinstance(node.target, OpOverload) and node.target.namespace == NAMESPACE:
            names = _names(node.target)
            length = {**dict(zip(names, node.args, strict=False)), **node.kwargs}.get(LENGTH)
            if length is not None and not isinstance(length, Node):
                yield int(length)


def _in_script(module: torch.jit.ScriptModule) -> Iterator[int]:
    graph = getattr(module, "inlined_graph", None)  # what has no forward has none
    for node in graph.nodes() if graph is not None else ():
        space, _, name = node.kind().partition("::")
        if space == NAMESPACE:
            names = _names(getattr(getattr(torch.ops, space), name).default)
            length = dict(zip(names, node.inputs(), strict=False)).get(LENGTH)
            if length is not None and (constant := length.toIValue()) is not None:
                yield int(constant)


def _names(op: OpOverload) -> list[str]:
    return [argument.name for argument in schema_of(op).arguments]
