"""What the ops share: the registry they stand in, their dispatch, and the checks that protect memory."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..torch_private import (
    DUAL_LEVEL,
    TRANSFORMS_KEY,
    BelowAutograd,
    TransformType,
    dual_numbers,
    functionalization,
    peek_interpreter_stack,
)
from ..version import __version__

library = torch.library.Library("tsm_triton", "DEF")

# The caches of torch.compile on disk know an op by its name alone: without this they would hand on the backward,
# and the forms in torch's own operators, of the version that was installed when they were filled.
torch.compiler.config.cache_key_tag += f" tsm_triton {__version__}"

# Fakes promise strides that follow the inputs' own, so Inductor must not feed the ops other layouts.
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
# Ops whose result is channels_last whatever they are given. Inductor feeds them maps in channels_last, and not in the
# strides of the fakes: those of a convolution with a symbolic batch are contiguous on a GPU, where cuDNN's are not.
CHANNELS_LAST_TAGS = (torch.Tag.pt2_compliant_tag,)
CHANNELS_LAST_OPS: list[Any] = []


def implement(name: str, on_cpu: Callable[..., Any], on_cuda: Callable[..., Any]) -> None:
    """Register the two forms of an op; the kernel serves CPU tensors too where Triton interprets."""

    def on_cpu_or_interpreted(*arguments: Any) -> Any:
        form = on_cuda if os.environ.get("TRITON_INTERPRET") == "1" else on_cpu
        return form(*arguments)

    library.impl(name, on_cpu_or_interpreted, "CPU")
    library.impl(name, on_cuda, "CUDA")


def differentiate(name: str, formula: "type[torch.autograd.Function] | Callable[..., Any]") -> None:
    """Register what serves an op's calls that autograd must note, and those inside torch.func's transforms.

    All others go straight below: 4 us less of 46 for a shift alone, 40 in a MobileNetV2, whose other work leaves no
    cache warm.

    Args:
        name: of the op.
        formula: a `torch.autograd.Function` with `setup_context`, `jvp` and `vmap`, or a composition of ops that
            have one each.
    """
    op = getattr(torch.ops.tsm_triton, name).default
    apply = noted = formula
    if isinstance(formula, type):
        # past what torch.autograd.Function.apply does for transforms, which come another way
        apply, noted = formula.apply, super(torch.autograd.Function, _with_context(formula)).apply  # type: ignore[misc]

    def noted_or_below(*arguments: Any) -> Any:
        tracked = torch.is_grad_enabled() and any(
            isinstance(x, Tensor) and x.requires_grad for x in arguments
        )
        if tracked or dual_numbers[DUAL_LEVEL] >= 0:
            return noted(*arguments)
        with BelowAutograd():
            return op(*arguments)

    library.impl(name, noted_or_below, "Autograd")
    transform(name, apply)


def transform(name: str, apply: Callable[..., Any]) -> None:
    """Register what serves an op's calls inside torch.func's transforms, and only those.

    The key is the one that torch dispatches on while a transform is active, so no other call pays for it.
    """
    op = getattr(torch.ops.tsm_triton, name).default

    def transformed(*arguments: Any) -> Any:
        if peek_interpreter_stack().key() != TransformType.Functionalize:
            return apply(*arguments)
        # the ops neither alias nor write their inputs, so there is nothing to make functional
        functional = functionalization()
        with functional.redispatch_to_next():
            out = op(*functional.unwrap_tensors(arguments))
        return functional.wrap_tensors(out)

    library.impl(name, transformed, TRANSFORMS_KEY)


def _with_context(formula: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """The same for eager calls: torch binds the arguments of one with `setup_context` anew each time, for 24 us."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        outputs = formula.forward(*arguments)
        formula.setup_context(ctx, arguments, outputs)
        return outputs

    methods = {"forward": forward, "backward": formula.backward, "jvp": formula.jvp}
    return type(
        formula.__name__,
        (torch.autograd.Function,),
        {key: staticmethod(method) for key, method in methods.items()},
    )


def batch_first(info: Any, x: Tensor, in_dim: int | None) -> Tensor:
    """What `vmap` maps over, with that axis first; repeated where it has none."""
    return x.expand(info.batch_size, *x.shape) if in_dim is None else x.movedim(in_dim, 0)


def one_by_one(op: Callable[..., Any], info: Any, in_dims: Sequence[int | None], *arguments: Any) -> Any:
    """`vmap` of an op as a call for each: outputs, and where they are batched."""
    calls = [
        op(*(x if dim is None else x.select(dim, i) for x, dim in zip(arguments, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    if isinstance(calls[0], Tensor):
        return torch.stack(calls), 0
    return tuple(map(torch.stack, zip(*calls, strict=True))), (0,) * len(calls[0])


def refuse_gradients(name: str) -> None:
    """Register that an op of inference raises where autograd would have to note a call."""

    def refused(*_: Any) -> Any:
        raise RuntimeError(
            f"expected {name} in inference, got an argument that requires a gradient. Call it inside torch.no_grad(), "
            "or torch.nn.functional.conv2d, which autograd knows."
        )

    differentiate(name, refused)


# The fused kernels count the elements of a frame in 32 bits; a program's last block may reach past its end.
# Larger frames take torch's own operators.
MAX_FRAME = 2**31 - 2**16

# op -> the same in torch's own operators, or NotImplemented where Inductor should call the op itself
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {}


def let_inductor_decompose() -> None:
    """Give Inductor the forms in torch's own operators.

    Called while a graph is traced, the first moment at which the table matters: importing Inductor's
    decompositions costs seconds that `import tsm_triton` must not.
    """
    from ..torch_private import (
        decompositions,
        lowerings,
        make_fallback,
        select_decomp_table,
        tag_to_layout_constraint,
    )

    # The second is a copy of the first, cached at the first compilation.
    for table in (decompositions, select_decomp_table()):
        table.update(DECOMPOSITIONS)
    for op in DECOMPOSITIONS:
        # for the devices that keep the op, which Inductor refuses for what stands in the table
        if op not in lowerings:
            constraint = tag_to_layout_constraint(torch.Tag.needs_exact_strides)
            constraint = _in_channels_last if op in CHANNELS_LAST_OPS else constraint
            make_fallback(op, constraint, warn=False, override_decomp=True)
    for op in CHANNELS_LAST_OPS:
        if op not in lowerings:
            make_fallback(op, _in_channels_last, warn=False)


def _in_channels_last(_: Any, *arguments: Any, **named: Any) -> tuple[Any, Any]:
    """Inductor's constraint on the arguments of `CHANNELS_LAST_OPS`: x is the first, an identity the fourth."""
    from ..torch_private import ExternKernel, TensorBox

    def converted(index: int, value: Any) -> Any:
        is_map = index in (0, 3) and isinstance(value, TensorBox) and len(value.get_size()) == 4
        return ExternKernel.require_channels_last(value) if is_map else value

    return tuple(converted(*item) for item in enumerate(arguments)), named


def check_clips(x: Tensor, num_segments: int, n_future: int, n_past: int, channel_dim: int) -> None:
    """What a kernel needs to stay inside its memory; `functional` says the rest to the user."""
    check_channels(x, n_future, n_past, channel_dim)
    check_frames(x.shape[0], num_segments)


def check_frames(frames: int, num_segments: int) -> None:
    """That frames are whole clips."""
    if num_segments < 1 or frames % num_segments:
        raise ValueError(
            f"x must hold whole clips: expected a first axis divisible by num_segments={num_segments}, "
            f"got {frames} frames. Pass the num_segments the batch was folded with."
        )


def check_channels(x: Tensor, n_future: int, n_past: int, channel_dim: int) -> None:
    """That the two groups of channels are there."""
    check_channel_dim(x, channel_dim)
    if min(n_future, n_past) < 0 or n_future + n_past > x.shape[channel_dim]:
        raise ValueError(
            f"expected n_future + n_past between 0 and the {x.shape[channel_dim]} channels of axis "
            f"{channel_dim}, got {n_future} + {n_past}: shift fewer"
        )


def check_channel_dim(x: Tensor, channel_dim: int) -> None:
    """That the channels have an axis of their own."""
    if not -x.dim() <= channel_dim < x.dim() or channel_dim % x.dim() == 0:
        raise ValueError(
            f"channel_dim must name an axis behind the frames, got {channel_dim} of {x.dim()}: pass "
            "that of the channels"
        )


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that arithmetic on `dtype` is done in."""
    return torch.promote_types(dtype, torch.float32)


def laid_out_like(values: Tensor, template: Tensor) -> Tensor:
    """`values` with the strides of `torch.empty_like(template)`, the ones the fakes promise."""
    out = torch.empty_like(template, dtype=values.dtype)
    return values if values.stride() == out.stride() else out.copy_(values)
