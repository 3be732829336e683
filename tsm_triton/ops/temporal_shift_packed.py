"""The shift of clips of different lengths, packed along the frame axis without padding."""

from typing import Any

import torch
from torch import Tensor

from ..torch_private import BelowAutograd
from .library import TAGS, check_channels, differentiate, implement, library, one_by_one
from .temporal_shift import shift_by_copies

__all__ = ["temporal_shift_packed"]

library.define(
    "temporal_shift_packed(Tensor x, Tensor boundaries, SymInt n_future, SymInt n_past, "
    "bool future_first, int channel_dim) -> Tensor",
    tags=TAGS,
)
temporal_shift_packed = torch.ops.tsm_triton.temporal_shift_packed.default


def _check(x: Tensor, boundaries: Tensor, n_future: int, n_past: int, channel_dim: int) -> None:
    if boundaries.shape != (x.shape[0] + 1,) or boundaries.dtype != torch.bool:
        raise ValueError(
            f"boundaries must be a bool tensor [{x.shape[0] + 1}], one more than the frames of x, true where a "
            f"clip begins and at the end; got {boundaries.dtype} {tuple(boundaries.shape)}. "
            "Use tsm_triton.temporal_shift(clip_lengths=...), which makes them."
        )
    if boundaries.device != x.device:
        raise ValueError(
            f"expected boundaries on the device of x, {x.device}, got {boundaries.device}: convert them"
        )
    check_channels(x, n_future, n_past, channel_dim)


@torch.library.register_fake("tsm_triton::temporal_shift_packed", lib=library)
def _(x: Tensor, *_shift: Any) -> Tensor:
    return torch.empty_like(x)


def _on_cuda(
    x: Tensor, boundaries: Tensor, n_future: int, n_past: int, future_first: bool, channel_dim: int
) -> Tensor:
    _check(x, boundaries, n_future, n_past, channel_dim)
    if x.itemsize > 8:  # complex128: no integer of its width to move it with
        return _by_copies(x, boundaries, n_future, n_past, future_first, channel_dim)
    from ..kernels import temporal_shift as kernel

    return kernel.temporal_shift(
        x, x.shape[0], n_future, n_past, future_first, channel_dim, boundaries.contiguous()
    )


def _on_cpu(
    x: Tensor, boundaries: Tensor, n_future: int, n_past: int, future_first: bool, channel_dim: int
) -> Tensor:
    _check(x, boundaries, n_future, n_past, channel_dim)
    return _by_copies(x, boundaries, n_future, n_past, future_first, channel_dim)


def _by_copies(
    x: Tensor, boundaries: Tensor, n_future: int, n_past: int, future_first: bool, channel_dim: int
) -> Tensor:
    # all frames as one clip, then zeros where that read across a boundary
    out = shift_by_copies(x, x.shape[0], n_future, n_past, future_first, channel_dim)
    n_first, n_second = (n_future, n_past) if future_first else (n_past, n_future)
    for start, length, reads_future in ((0, n_first, future_first), (n_first, n_second, not future_first)):
        edges = boundaries[1:] if reads_future else boundaries[:-1]
        out.narrow(channel_dim, start, length)[edges] = 0
    return out


class _PackedShift(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, boundaries: Tensor, *shift: Any) -> Tensor:
        with BelowAutograd():
            return temporal_shift_packed(x, boundaries, *shift)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])
        ctx.shift = inputs[2:]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (boundaries,) = ctx.saved_tensors
        n_future, n_past, future_first, channel_dim = ctx.shift
        grad = temporal_shift_packed(grads[0], boundaries, n_past, n_future, not future_first, channel_dim)
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


implement("temporal_shift_packed", _on_cpu, _on_cuda)
differentiate("temporal_shift_packed", _PackedShift)
