"""One frame of a stream: its first channels go into the cache, those of the frame before come out of it.

    out[c] = cache[c]        c < fold, the channels of the cache
    out[c] = x[c]            the rest
    kept[c] = x[c]           c < fold

`kept` is the cache of the next frame; it may be `cache` itself. The backward is this same kernel: the
gradients of `out` and `kept` are its `x` and `cache`.

Layouts: dense ones. In memory x is rows of `row_size` elements, the channel axis outermost in each: B rows
of C*H*W in NCHW, B*H*W rows of C in channels_last, NHWC and tokens. The first `cut` of a row are the fold's.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import device_guard

# Bytes of one access: what a thread moves with one instruction on every GPU we compile for.
VECTOR_BYTES = 16
# One vector a thread of AMD's four wavefronts, two of NVIDIA's four warps: a frame is small (the largest map
# of ResNet-50 at N=1 is 1.6 MB in bfloat16), and more programs fill the GPU sooner than longer ones.
BLOCK = 256
NUM_WARPS = 4

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def _shift_step_kernel(
    x_ptr,
    cache_ptr,
    out_ptr,
    kept_ptr,
    # all sizes count vectors of VEC elements
    size,
    row_size,
    cut,
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program moves BLOCK vectors.
    vec = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = vec // row_size
    col = vec % row_size
    inside = vec < size
    in_fold = inside & (col < cut)

    lane = tl.arange(0, VEC)[None, :]
    own = vec.to(tl.int64)[:, None] * VEC + lane
    in_cache = (row * cut + col).to(tl.int64)[:, None] * VEC + lane
    value = tl.load(x_ptr + own, mask=inside[:, None], other=0)
    past = tl.load(cache_ptr + in_cache, mask=in_fold[:, None], other=0)
    # every element of the cache is read and written by one thread, so cache and kept may be the same
    tl.store(kept_ptr + in_cache, value, mask=in_fold[:, None])
    tl.store(out_ptr + own, tl.where(in_fold[:, None], past, value), mask=inside[:, None])


def shift_step(x: Tensor, cache: Tensor, kept: Tensor, channel_dim: int) -> Tensor | None:
    """Launch; fills `kept`. None, with nothing done, where no launch can serve these strides or sizes."""
    layout = _layout(
        x.shape, x.stride(), cache.shape, cache.stride(), kept.stride(), channel_dim % x.dim(), x.itemsize
    )
    if layout is None:
        return None
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    row_size, cut, vec = layout
    # The launch knows a pointer's alignment only to 16 bytes; a less aligned one has no wide access.
    if any(tensor.data_ptr() % VECTOR_BYTES for tensor in (x, cache, kept)):
        vec = 1
    size = x.numel() // vec
    # A shift moves bits: integers of the same width serve every dtype, NaN payloads included.
    bits = _BITS[x.itemsize]
    with device_guard(x):
        _shift_step_kernel[(triton.cdiv(size, BLOCK),)](
            x.view(bits),
            cache.view(bits),
            out.view(bits),
            kept.view(bits),
            size,
            row_size // vec,
            cut // vec,
            VEC=vec,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
    return out


class _Layout(NamedTuple):
    """How x lies in memory, in elements."""

    row_size: int
    cut: int
    vector: int


@lru_cache(maxsize=4096)
def _layout(
    shape: tuple[int, ...],
    stride_x: tuple[int, ...],
    shape_cache: tuple[int, ...],
    stride_cache: tuple[int, ...],
    stride_kept: tuple[int, ...],
    channel_dim: int,
    itemsize: int,
) -> _Layout | None:
    """Write x as rows with the channel axis outermost in each; None where its memory does not allow it."""
    order = sorted((d for d in range(len(shape)) if shape[d] > 1), key=lambda d: -stride_x[d])
    dense = _is_dense(shape, stride_x, order)
    for stride in (stride_cache, stride_kept):
        dense = dense and _is_dense(shape_cache, stride, order)
    # vectors are counted in 32 bits
    if not dense or itemsize not in _BITS or math.prod(shape) >= 2**31:
        return None
    at = order.index(channel_dim) if channel_dim in order else 0
    row_size = math.prod(shape[d] for d in order[at:])
    cut = row_size // shape[channel_dim] * shape_cache[channel_dim] if row_size else 0
    return _Layout(row_size, cut, math.gcd(row_size, cut, VECTOR_BYTES // itemsize))


def _is_dense(shape: tuple[int, ...], stride: tuple[int, ...], order: list[int]) -> bool:
    """Whether the axes, outermost first, lie in memory in this order and without gaps."""
    expected = 1
    for d in reversed(order):
        if shape[d] > 1 and stride[d] != expected:
            return False
        expected *= shape[d]
    return True
