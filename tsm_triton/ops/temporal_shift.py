"""The plain shift as a registered op: any layout and dtype, differentiable any number of times."""

from typing import Any

import torch
from torch import Tensor

from ..torch_private import quantised_per_tensor
from .checks import check_clips, check_frames
from .copies import shift_by_copies
from .declare import declare, library
from .derivatives import batch_first
from .direct import in_onnx_export

__all__ = ["flat_form", "shift", "temporal_shift"]


def _check(x: Tensor, num_segments: int, n_first: int, n_second: int, _: bool, channel_dim: int) -> None:
    check_clips(x, num_segments, n_first, n_second, channel_dim)


def _fake(x: Tensor, *_shift: Any) -> Tensor:
    return torch.empty_like(x)


def _kernel(x: Tensor, *shift: Any) -> Tensor:
    if x.itemsize > 8:  # complex128: no integer of its width to move it with
        return shift_by_copies(x, *shift)
    from ..kernels import temporal_shift as kernel

    return kernel.temporal_shift(x, *shift)


def shift(x: Tensor, *arguments: Any) -> Tensor:
    """The op, of arguments that are checked, but where `torch.onnx.export` looks on."""
    if in_onnx_export():
        return _of_clips(x, *arguments)
    return temporal_shift(x, *arguments)


def _aten(x: Tensor, num_segments: int, *shift: Any) -> Tensor:
    t = torch.arange(x.shape[0], device=x.device) % num_segments
    return flat_form(x, t == 0, t == num_segments - 1, *shift)


def flat_form(
    x: Tensor, first: Tensor, last: Tensor, n_first: int, n_second: int, reverse: bool, channel_dim: int
) -> Tensor:
    """The shift as pointwise reads of the flat frame axis, which Inductor fuses with what stands around it.

    No reshape of the batch axis: a 5-D view makes Inductor transpose channels_last (4 S instead of 2 S) and
    breaks at the second batch size where sizes are divided later on.

    Args:
        x: as the op's.
        first, last: bool `[frames]`, where a clip begins and where it ends.
        n_first, n_second, reverse, channel_dim: as the op's.
    """
    dim = channel_dim % x.dim()
    frame = torch.arange(x.shape[0], device=x.device)
    zero = torch.zeros((), dtype=x.dtype, device=x.device)

    def read(part: Tensor, reads_next: bool) -> Tensor:
        edge = last if reads_next else first
        rows = (frame + 1).clamp(max=x.shape[0] - 1) if reads_next else (frame - 1).clamp(min=0)
        return torch.where(edge.view(-1, *[1] * (x.dim() - 1)), zero, part[rows])

    parts = torch.split(x, [n_first, n_second, x.shape[dim] - n_first - n_second], dim)
    return torch.cat([read(parts[0], not reverse), read(parts[1], reverse), parts[2]], dim)


def _of_clips(
    x: Tensor, num_segments: int, n_first: int, n_second: int, reverse: bool, channel_dim: int
) -> Tensor:
    """The shift as padded and sliced clips: reshape, split, pad, slice and concat alone, which every runtime has.

    Padded first: nothing is empty on the way, with one frame in a clip either. The flat form's gathers by computed rows
    are what some engines refuse and others run slowly.
    """
    dim = channel_dim % x.dim() + 1
    clips = x.unflatten(0, (x.shape[0] // num_segments, num_segments))

    def read(part: Tensor, reads_next: bool) -> Tensor:
        inner = [0, 0] * (part.dim() - 2)
        if reads_next:
            return torch.constant_pad_nd(part, [*inner, 0, 1])[:, 1:]
        return torch.constant_pad_nd(part, [*inner, 1, 0])[:, :-1]

    parts = torch.split(clips, [n_first, n_second, clips.shape[dim] - n_first - n_second], dim)
    shifted = [read(parts[0], not reverse), read(parts[1], reverse), parts[2]]
    counts = (n_first, n_second, parts[2].shape[dim])
    joined = torch.cat([part for part, count in zip(shifted, counts, strict=True) if count], dim)
    # not flattened: each shift's symbol for the frames would hold that of the one before
    return joined.reshape(x.shape)


class _TemporalShift(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.shift = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        # The adjoint reads the other way: the same channels, the two offsets exchanged.
        *counts, reverse, channel_dim = ctx.shift
        grad = temporal_shift(grads[0], *counts, not reverse, channel_dim)
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


temporal_shift = declare(
    "temporal_shift(Tensor x, SymInt num_segments, SymInt n_first, SymInt n_second, bool reverse, int channel_dim) "
    "-> Tensor",
    check=_check,
    fake=_fake,
    on_cpu=shift_by_copies,
    on_cuda=_kernel,
    aten=_aten,
    exported=_of_clips,
    formula=_TemporalShift,
    cheap=True,
)
library.impl("temporal_shift", _quantised, "QuantizedCPU")
