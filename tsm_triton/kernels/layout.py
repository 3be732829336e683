"""How tensors lie in memory: the rows, the vectors and the alignment that kernels move their elements by."""

import math
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..torch_private import FakeTensor

# Bytes of one access: what a thread moves with one instruction on every GPU we compile for.
VECTOR_BYTES = 16

# A shift moves bits: integers of the same width serve every dtype, NaN payloads included.
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_traced(x: Tensor) -> bool:
    """Whether a launch of `x` goes into a graph: its sizes may be symbols, and it has no address."""
    return isinstance(x, FakeTensor)


def is_aligned(*tensors: Tensor | None) -> bool:
    """Whether all begin where a vector may: a launch knows of a pointer to 16 bytes or nothing."""
    for x in tensors:  # noqa: SIM110 - half the time of all(...), in every eager call
        if x is not None and x.data_ptr() % VECTOR_BYTES:
            return False
    return True


def is_channels_last(x: Tensor) -> bool | None:
    """How a dense tensor lies: False for contiguous, True for channels_last of any rank, None for neither."""
    if x.is_contiguous():
        return False
    return True if x.movedim(1, -1).is_contiguous() else None


def packed(x: Tensor, channels_last: bool) -> Tensor:
    """`x`, or its copy where it does not lie as asked; the shape no longer matters to a kernel."""
    return (x.movedim(1, -1) if channels_last else x).contiguous()


def as_rows(x: Tensor) -> Tensor:
    """`[rows, channels]`, a view where `x` is channels_last."""
    return x.permute(0, 2, 3, 1).contiguous()


def new_channels_last(x: Tensor, frames: int, channels: int, height: int, width: int) -> Tensor:
    """Memory for a result `[frames, channels, height, width]` of `x`'s dtype and device."""
    if is_traced(x):  # where the memory format of new memory would be a copy of it
        return x.new_empty((frames, height, width, channels)).permute(0, 3, 1, 2)
    return torch.empty(
        (frames, channels, height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


class FrameRows(NamedTuple):
    """How a frame lies in memory, in elements."""

    frame_size: int
    row_size: int
    channel_stride: int
    stride_x_row: int
    vector: int


@lru_cache(maxsize=4096)
def frame_rows(
    shape: tuple[int, ...],
    stride_x: tuple[int, ...],
    stride_out: tuple[int, ...],
    channel_dim: int,
    max_vector: int,
) -> FrameRows | None:
    """Write a frame as rows with the channel axis outermost in each; None where strides do not allow it."""
    inner = sorted((d for d in range(1, len(shape)) if shape[d] > 1), key=lambda d: -stride_out[d])
    frame_size = math.prod(shape[1:])
    if shape[0] > 1 and stride_out[0] != frame_size:
        return None
    at = inner.index(channel_dim) if channel_dim in inner else 0
    rows, run = inner[:at], inner[at:]
    # Inside a run the input must be as dense as the output; the rows must stand one stride apart.
    if any(stride_x[d] != stride_out[d] for d in run):
        return None
    if any(stride_x[a] != shape[b] * stride_x[b] for a, b in pairwise(rows)):
        return None
    row_size = math.prod(shape[d] for d in run)
    channel_stride = row_size // shape[channel_dim]
    stride_x_row = stride_x[rows[-1]] if rows else row_size
    vector = math.gcd(row_size, stride_x[0], stride_x_row, max_vector)
    return FrameRows(frame_size, row_size, channel_stride, stride_x_row, vector)


class CachedRows(NamedTuple):
    """How x lies in memory, and its cache of the first channels, in elements."""

    row_size: int
    cut: int
    vector: int


@lru_cache(maxsize=4096)
def cached_rows(
    shape: tuple[int, ...],
    stride_x: tuple[int, ...],
    shape_cache: tuple[int, ...],
    stride_cache: tuple[int, ...],
    stride_kept: tuple[int, ...],
    channel_dim: int,
    itemsize: int,
) -> CachedRows | None:
    """Write x as rows with the channel axis outermost in each; None where its memory does not allow it."""
    order = sorted((d for d in range(len(shape)) if shape[d] > 1), key=lambda d: -stride_x[d])
    dense = _is_dense(shape, stride_x, order)
    for stride in (stride_cache, stride_kept):
        dense = dense and _is_dense(shape_cache, stride, order)
    # vectors are counted in 32 bits
    if not dense or itemsize not in BITS or math.prod(shape) >= 2**31:
        return None
    at = order.index(channel_dim) if channel_dim in order else 0
    row_size = math.prod(shape[d] for d in order[at:])
    cut = row_size // shape[channel_dim] * shape_cache[channel_dim] if row_size else 0
    return CachedRows(row_size, cut, math.gcd(row_size, cut, VECTOR_BYTES // itemsize))


def _is_dense(shape: tuple[int, ...], stride: tuple[int, ...], order: list[int]) -> bool:
    """Whether the axes, outermost first, lie in memory in this order and without gaps."""
    expected = 1
    for d in reversed(order):
        if shape[d] > 1 and stride[d] != expected:
            return False
        expected *= shape[d]
    return True
