"""What Inductor makes of an op: the table of which form it takes on which device, and how it is told."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix
from ..torch_private import OpOverload

__all__ = ["INDUCTOR_FORMS", "KERNEL_FORMS", "let_inductor_decompose", "needs_inductor", "offer_to_inductor"]

# op -> device -> "aten", the form in torch's own operators, which Inductor joins with what stands around it; "kernel",
# launched by Inductor's code, where the kernel serves the call; or "op", the call of the op itself, through Python. An
# op or a device that is not here is "op". S is the size of the map.
INDUCTOR_FORMS: dict[str, dict[str, str]] = {
    "temporal_shift": {
        # the op takes 0.6 to 1.2 times a clone, in recycled memory up to 2.6; Inductor's channels_last code 5 to 13
        "cpu": "op",
        # one read and one write, 2 S, like the kernel's, and none where it stands beside a pointwise operator: the
        # adjoint goes into the backward of a ReLU
        "cuda": "aten",
    },
    # as the plain shift
    "shift_step": {"cpu": "op", "cuda": "aten"},
    "temporal_shift_packed": {"cpu": "op", "cuda": "aten"},
    # Inductor joins norm, sum and activation by itself on both; the kernel's one pass, 4 S, also shifts, where
    # Inductor's code takes 5 S
    "residual_shift": {"cpu": "aten", "cuda": "kernel"},
    "residual_shift_backward": {"cpu": "aten", "cuda": "kernel"},
    # on a CPU Inductor joins sum and activation with each other; on a GPU the kernel, whose shift costs nothing
    "shift_conv1x1": {"cpu": "aten", "cuda": "kernel"},
    # on a CPU the op is torch's own operators in a row, which Inductor would join no better
    "shift_step_conv1x1": {"cpu": "op", "cuda": "kernel"},
    "stem_convolution": {"cpu": "op", "cuda": "kernel"},
    "depthwise_convolution": {"cpu": "op", "cuda": "kernel"},
}

# what was declared: op -> what launches its kernel
KERNEL_FORMS: dict[OpOverload, Callable[..., Any]] = {}
# op -> its form in torch's own operators where the table wants it, that of files, and how the tensors lie that it gets
_forms: dict[OpOverload, Callable[..., Any]] = {}
_portable: dict[OpOverload, Callable[..., Any]] = {}
_layouts: dict[OpOverload, str] = {}


def offer_to_inductor(
    op: OpOverload,
    aten: Callable[..., Any] | None,
    exported: Callable[..., Any] | None,
    on_cuda: Callable[..., Any],
    layout: str,
) -> None:
    """Note an op for when Inductor comes: nothing is imported yet."""
    _layouts[op] = layout
    if "kernel" in INDUCTOR_FORMS.get(_name(op), {}).values():
        KERNEL_FORMS[op] = on_cuda
    if aten is None:
        return
    _portable[op] = exported or aten

    def chosen(*arguments: Any) -> Any:
        return aten(*arguments) if _form(op, arguments) == "aten" else NotImplemented

    if _name(op) in INDUCTOR_FORMS:
        _forms[op] = chosen


def needs_inductor(op: OpOverload, arguments: Sequence[Any]) -> bool:
    """Whether a graph with this call, compiled, would miss what `let_inductor_decompose` tells."""
    return _layouts[op] == "channels_last" or _form(op, arguments) != "op"


def _form(op: OpOverload, arguments: Sequence[Any]) -> str:
    device = next(x.device.type for x in arguments if isinstance(x, Tensor))
    return INDUCTOR_FORMS.get(_name(op), {}).get(device, "op")


def _name(op: OpOverload) -> str:
    return op.name().removeprefix(add_op_namespace_prefix(""))


def let_inductor_decompose() -> None:
    """Tell Inductor the forms in torch's own operators, and the layouts of the ops it calls.

    Called while a graph is traced, the first moment at which it matters: importing Inductor's decompositions costs
    seconds that `import tsm_triton` must not.
    """
    from ..torch_private import (
        decompositions,
        lowerings,
        make_fallback,
        select_decomp_table,
        tag_to_layout_constraint,
    )
    from .lowering import lowering

    # The second is a copy of the first, cached at the first compilation.
    tables: tuple[Any, ...] = (decompositions, select_decomp_table())
    for table in tables:
        table.update(_forms)
    exact = tag_to_layout_constraint(torch.Tag.needs_exact_strides)
    in_channels_last = {op for op, layout in _layouts.items() if layout == "channels_last"}
    for op in {*_forms, *KERNEL_FORMS, *in_channels_last} - lowerings.keys():
        constraint = {"any": None, "exact": exact, "channels_last": _constraint(op)}[_layouts[op]]
        # one that stands in the table too, for the devices that keep the op: Inductor would refuse it
        make_fallback(op, constraint, warn=False, override_decomp=op in _forms)
        if op in KERNEL_FORMS:
            lowerings[op] = lowering(op, KERNEL_FORMS[op], _portable[op], lowerings[op])


def _constraint(op: OpOverload) -> Callable[..., tuple[Any, Any]]:
    """Inductor's constraint on the arguments of an op that takes maps in channels_last."""
    from ..torch_private import ExternKernel, TensorBox, schema_of

    maps = [argument.name in ("x", "identity") for argument in schema_of(op).arguments]

    def in_channels_last(_: Any, *arguments: Any, **named: Any) -> tuple[Any, Any]:
        converted = (
            ExternKernel.require_channels_last(value)
            if is_map and isinstance(value, TensorBox) and len(value.get_size()) == 4
            else value
            for is_map, value in zip(maps, arguments, strict=False)
        )
        return tuple(converted), named

    return in_channels_last
