"""The frames of a clip in graphs that were captured of a shifted model of frames: a constant, which nothing tells."""

import math
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.fx import GraphModule, Node

from ..ops import NAMESPACE
from ..torch_private import OpOverload, constant_in_graphs, schema_of

__all__ = ["KEPT", "captured_length"]

KEPT = f"{NAMESPACE}.num_segments"  # in the `custom` meta of a node of our files, whose shift is in torch's operators
LENGTH = "num_segments"

_known: WeakKeyDictionary[nn.Module, tuple[int, ...]] = WeakKeyDictionary()


@constant_in_graphs
def captured_length(model: nn.Module) -> int | None:
    """T of the graphs in a model that `torch.export`, `make_fx` or `torch.jit.trace` made; None of others."""
    lengths = [length for module in model.modules() for length in _lengths_of(module)]
    return math.lcm(*lengths) if lengths else None


def _lengths_of(module: nn.Module) -> tuple[int, ...]:
    if not isinstance(module, (GraphModule, torch.jit.ScriptModule)):
        return ()
    if module not in _known:
        found = _in_graph(module) if isinstance(module, GraphModule) else _in_script(module)
        _known[module] = tuple(sorted(set(found)))
    return _known[module]


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
