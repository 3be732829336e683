"""`torch.compile(model, backend="tsm_triton")`: the rewriting of `rewriting.py`, then Inductor.

The graph that Dynamo captured is traced once more into ATen calls, ahead of autograd and autocast, and
rewritten there; what is not recognised is compiled as it would be without, and so is a graph of which Inductor would
make the same code (`choice.compiles_faster`). With gradients wanted, only the
residual sums are joined with their shifts; else also the 1x1 convolutions. Autograd and Inductor see plain
functions of the graph and do the rest.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter
from torch.fx.traceback import preserve_node_meta

from .. import ops
from ..torch_private import AUTOCAST_AND_GRAD_CALLS, FakeTensor, HigherOrderOperator
from . import choice
from .recomputing import joint_pass
from .report import FusionReport
from .rewriting import rewrite

__all__ = ["compile_graph", "rewritten"]

logger = logging.getLogger(__name__)


def compile_graph(
    module: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend itself, which `torch.compile` calls with the graphs that it captured.

    What was fused, what was not and why is logged at level INFO under this module's name.

    Args:
        module: a graph as Dynamo captures it.
        example_inputs: its inputs.
        mode, options: Inductor's, as `torch.compile` takes them.

    Example:
        >>> import timm, torch, tsm_triton
        >>> model = tsm_triton.patch(timm.create_model("test_resnet", num_classes=5), num_segments=4)
        >>> compiled = torch.compile(model, backend="tsm_triton")  # then train it, or run it in eval mode
    """
    from ..torch_private import compile_fx, list_mode_options

    found = rewritten(module)
    passes: dict[str, Any] = {}
    if found is not None and _is_worth_it(found[1], example_inputs):
        module, report = found
        passes["joint_custom_pre_pass"] = joint_pass()
        logger.info("%s", report)
        # AOTAutograd copies the table before it meets the ops of this graph
        ops.let_inductor_decompose()
    patches = {**passes, **(list_mode_options(mode) if mode else {}), **(options or {})}
    compiled: Any = compile_fx(module, example_inputs, config_patches=patches or None)
    return compiled


def rewritten(module: GraphModule) -> tuple[GraphModule, FusionReport] | None:
    """A Dynamo graph rewritten on the fused ops, None where there is nothing to rewrite.

    The graph given stays as it is.
    """
    from ..torch_private import make_fx

    placeholders = module.graph.find_nodes(op="placeholder")
    inputs = [node.meta.get("example_value") for node in placeholders]
    if not any(_is_shift(node) for node in module.graph.nodes) or not _is_plain(module, inputs):
        return None
    # in the inputs' own fake mode: a constant that the forward makes would be a real tensor outside of it
    fake = next((x.fake_mode for x in inputs if isinstance(x, FakeTensor)), contextlib.nullcontext())
    with preserve_node_meta(), fake:
        traced = make_fx(Interpreter(module).run, pre_dispatch=True)(*inputs)
    for old, new in zip(placeholders, traced.graph.find_nodes(op="placeholder"), strict=True):
        # which inputs are parameters, among others
        new.meta = {**old.meta, **new.meta}
    report = rewrite(traced.graph, training=_wants_gradients(inputs))
    if not report.fused:
        return None
    traced.meta.update(module.meta)
    traced.recompile()
    return traced, report


def _is_worth_it(report: FusionReport, inputs: Sequence[Any]) -> bool:
    """Whether Inductor's code of the rewritten graph can be faster than that of the graph it was given."""
    kinds = {entry.kind for entry in report.fused}
    devices = {x.device.type for x in inputs if isinstance(x, Tensor)}
    faster = any(choice.compiles_faster(kind, device) for kind in kinds for device in devices)
    return faster or _wants_gradients(inputs)


def _wants_gradients(inputs: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)


def _is_shift(node: torch.fx.Node) -> bool:
    return node.target in (ops.temporal_shift, ops.temporal_shift.overloadpacket)


def _is_plain(module: GraphModule, inputs: list[Any]) -> bool:
    """Whether a graph is calls of functions on its inputs: no module, attribute, region or context."""
    calls = ("placeholder", "call_function", "call_method", "output")
    return all(value is not None for value in inputs) and all(
        node.op in calls
        and node.target not in AUTOCAST_AND_GRAD_CALLS
        and not isinstance(node.target, HigherOrderOperator)
        for node in module.graph.nodes
    )
