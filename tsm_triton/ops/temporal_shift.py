"""The plain shift as a registered op: any layout and dtype, differentiable any number of times."""

from typing import Any

import torch
from torch import Tensor

from ..torch_private import BelowAutograd, quantised_per_tensor
from .host_memory import empty_like
from .library import (
    DECOMPOSITIONS,
    TAGS,
    batch_first,
    check_clips,
    check_frames,
    differentiate,
    implement,
    let_inductor_decompose,
    library,
)

__all__ = ["shift_by_copies", "temporal_shift"]

library.define(
    "temporal_shift(Tensor x, SymInt num_segments, SymInt n_future, SymInt n_past, "
    "bool future_first, int channel_dim) -> Tensor",
    tags=TAGS,
)
temporal_shift = torch.ops.tsm_triton.temporal_shift.default


@torch.library.register_fake("tsm_triton::temporal_shift", lib=library)
def _(x: Tensor, *_shift: Any) -> Tensor:
    if x.device.type in _DECOMPOSED_DEVICES:
        let_inductor_decompose()
    return torch.empty_like(x)


def _on_cuda(
    x: Tensor, num_segments: int, n_future: int, n_past: int, future_first: bool, channel_dim: int
) -> Tensor:
    check_clips(x, num_segments, n_future, n_past, channel_dim)
    if x.itemsize > 8:  # complex128: no integer of its width to move it with
        return shift_by_copies(x, num_segments, n_future, n_past, future_first, channel_dim)
    from ..kernels import temporal_shift as kernel

    return kernel.temporal_shift(x, num_segments, n_future, n_past, future_first, channel_dim)


def _on_cpu(
    x: Tensor, num_segments: int, n_future: int, n_past: int, future_first: bool, channel_dim: int
) -> Tensor:
    check_clips(x, num_segments, n_future, n_past, channel_dim)
    return shift_by_copies(x, num_segments, n_future, n_past, future_first, channel_dim)


def shift_by_copies(
    x: Tensor, num_segments: int, n_future: int, n_past: int, future_first: bool, channel_dim: int
) -> Tensor:
    """The shift as slice copies into one fresh tensor, any strides and dtype: the fastest form on a CPU."""
    out = empty_like(x)
    if x.numel() == 0:
        return out
    clips = (-1, num_segments, *x.shape[1:])
    source, target = x.view(clips), out.view(clips)
    if channel_dim != 1:
        axis = channel_dim % x.dim() + 1
        source, target = source.movedim(axis, 2), target.movedim(axis, 2)
    n_first, n_second = (n_future, n_past) if future_first else (n_past, n_future)
    moved = n_first + n_second
    # The widest runs first: they touch every page, and a first touch is dearer in short runs.
    target[:, :, moved:] = source[:, :, moved:]
    for start, end, reads_future in ((0, n_first, future_first), (n_first, moved, not future_first)):
        if reads_future:
            target[:, :-1, start:end] = source[:, 1:, start:end]
            target[:, -1, start:end] = 0
        else:
            target[:, 1:, start:end] = source[:, :-1, start:end]
            target[:, 0, start:end] = 0
    return out


# Measured on a Xeon at [8, 8, 2, 2]: this registration adds 7 us to a call without a gradient and 13 us to one with
# it, custom_op with register_autograd 8 and 26.
class _TemporalShift(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, *shift: Any) -> Tensor:
        with BelowAutograd():
            return temporal_shift(x, *shift)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.shift = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        # The adjoint reads the other way: the same channels, the two offsets exchanged.
        num_segments, n_future, n_past, future_first, channel_dim = ctx.shift
        grad = temporal_shift(grads[0], num_segments, n_past, n_future, not future_first, channel_dim)
        return grad, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return temporal_shift(tangents[0], *ctx.shift)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, *shift: Any) -> tuple[Tensor, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # More clips: the batched axis folds into the frames.
        *counts, channel_dim = shift
        x = batch_first(info, x, in_dims[0])
        check_frames(x.shape[1], counts[0])
        y = temporal_shift(x.flatten(0, 1), *counts, channel_dim % (x.dim() - 1))
        return y.unflatten(0, x.shape[:2]), 0


def _quantised(x: Tensor, *shift: Any) -> Tensor:
    # What comes from outside the clip is the value zero, whose integer is the zero point: wrapping there and back
    # makes it 0 for the shift, exactly.
    if x.qscheme() != torch.per_tensor_affine:
        raise TypeError(
            f"x must be quantised per tensor, got {x.qscheme()}: pass activations, or dequantise it first"
        )
    scale, zero = x.q_scale(), x.q_zero_point()
    shifted = temporal_shift(x.int_repr() - zero, *shift) + zero
    return quantised_per_tensor(shifted, scale, zero)


implement("temporal_shift", _on_cpu, _on_cuda)
library.impl("temporal_shift", _quantised, "QuantizedCPU")
differentiate("temporal_shift", _TemporalShift)


# On a CPU Inductor's channels_last code for it takes 5 to 13 times a clone; the op takes 0.6 to 1.2, in recycled
# memory up to 2.6.
_DECOMPOSED_DEVICES = ("cuda",)


def _flat_form(
    x: Tensor, num_segments: int, n_future: int, n_past: int, future_first: bool, channel_dim: int
) -> Tensor:
    """The shift as pointwise reads of the flat frame axis, which Inductor fuses with what stands around it.

    No reshape of the batch axis: a 5-D view makes Inductor transpose channels_last (4 S instead of 2 S) and
    breaks at the second batch size where sizes are divided later on.
    """
    if x.device.type not in _DECOMPOSED_DEVICES:
        return NotImplemented
    dim = channel_dim % x.dim()
    frame = torch.arange(x.shape[0], device=x.device)
    t = (frame % num_segments).view(-1, *[1] * (x.dim() - 1))
    zero = torch.zeros((), dtype=x.dtype, device=x.device)

    def read(part: Tensor, future: bool) -> Tensor:
        if future:
            rows = (frame + 1).clamp(max=x.shape[0] - 1)
            return torch.where(t < num_segments - 1, part[rows], zero)
        return torch.where(t > 0, part[(frame - 1).clamp(min=0)], zero)

    n_first, n_second = (n_future, n_past) if future_first else (n_past, n_future)
    parts = torch.split(x, [n_first, n_second, x.shape[dim] - n_first - n_second], dim)
    return torch.cat([read(parts[0], future_first), read(parts[1], not future_first), parts[2]], dim)


DECOMPOSITIONS[temporal_shift] = _flat_form
