"""The shift of clips of different lengths, packed along the frame axis without padding."""

from typing import Any

import torch
from torch import Tensor

from .checks import check_channels
from .copies import shift_by_copies
from .declare import declare
from .derivatives import one_by_one
from .temporal_shift import flat_form
from .tensors import as_bits

__all__ = ["temporal_shift_packed"]


def _check(x: Tensor, boundaries: Tensor, n_first: int, n_second: int, _: bool, channel_dim: int) -> None:
    if boundaries.shape != (x.shape[0] + 1,) or boundaries.dtype != torch.bool:
        raise ValueError(
            f"boundaries must be a bool tensor [{x.shape[0] + 1}], one more than the frames of x, true where a "
            f"clip begins and at the end; got {boundaries.dtype} {tuple(boundaries.shape)}. "
            "Use tsm_triton.temporal_shift(clip_lengths=...), which makes them."
        )
    if boundaries.device != x.device:
        raise ValueError(f"boundaries must be on the device of x, {x.device}, got {boundaries.device}")
    check_channels(x, n_first, n_second, channel_dim)


def _fake(x: Tensor, *_shift: Any) -> Tensor:
    return torch.empty_like(x)


def _kernel(x: Tensor, boundaries: Tensor, *shift: Any) -> Tensor:
    if x.itemsize > 8:  # complex128: no integer of its width to move it with
        return _by_copies(x, boundaries, *shift)
    from ..kernels import temporal_shift as kernel

    return kernel.temporal_shift(x, x.shape[0], *shift, boundaries=boundaries.contiguous())


def _by_copies(
    x: Tensor, boundaries: Tensor, n_first: int, n_second: int, reverse: bool, channel_dim: int
) -> Tensor:
    # all frames as one clip, then zeros where that read across a boundary
    out = shift_by_copies(x, x.shape[0], n_first, n_second, reverse, channel_dim)
    bits = as_bits(out)
    for start, length, reads_next in ((0, n_first, not reverse), (n_first, n_second, reverse)):
        edges = boundaries[1:] if reads_next else boundaries[:-1]
        bits.narrow(channel_dim, start, length)[edges] = 0
    return out


def _aten(x: Tensor, boundaries: Tensor, *shift: Any) -> Tensor:
    return flat_form(x, boundaries[:-1], boundaries[1:], *shift)


class _PackedShift(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])
        ctx.shift = inputs[2:]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (boundaries,) = ctx.saved_tensors
        *counts, reverse, channel_dim = ctx.shift
        grad = temporal_shift_packed(grads[0], boundaries, *counts, not reverse, channel_dim)
        return grad, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (boundaries,) = ctx.saved_tensors
        return temporal_shift_packed(tangents[0], boundaries, *ctx.shift)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, boundaries: Tensor, *shift: Any) -> tuple[Tensor, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if in_dims[1] is not None:
            return one_by_one(temporal_shift_packed, info, in_dims, x, boundaries, *shift)
        # One packing for all: the batched axis is one more that no value moves along.
        *counts, channel_dim = shift
        x = x.movedim(in_dims[0], -1)
        return temporal_shift_packed(x, boundaries, *counts, channel_dim % (x.dim() - 1)), x.dim() - 1


temporal_shift_packed = declare(
    "temporal_shift_packed(Tensor x, Tensor boundaries, SymInt n_first, SymInt n_second, bool reverse, "
    "int channel_dim) -> Tensor",
    check=_check,
    fake=_fake,
    on_cpu=_by_copies,
    on_cuda=_kernel,
    aten=_aten,
    formula=_PackedShift,
    cheap=True,
)
