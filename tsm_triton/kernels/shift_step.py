"""One frame of a stream: its first channels go into the cache, those of the frame before come out of it.

    out[c] = cache[c]        c < fold, the channels of the cache
    out[c] = x[c]            the rest
    kept[c] = x[c]           c < fold

`kept` is the cache of the next frame; it may be `cache` itself. The backward is this same kernel: the
gradients of `out` and `kept` are its `x` and `cache`.

Layouts: dense ones. In memory x is rows of `row_size` elements, the channel axis outermost in each: B rows
of C*H*W in NCHW, B*H*W rows of C in channels_last, NHWC and tokens. The first `cut` of a row are the fold's.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import device_guard
from .layout import BITS, cached_rows, is_aligned

# One vector a thread of AMD's four wavefronts, two of NVIDIA's four warps: a frame is small (the largest map
# of ResNet-50 at N=1 is 1.6 MB in bfloat16), and more programs fill the GPU sooner than longer ones.
BLOCK = 256
NUM_WARPS = 4


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
    layout = cached_rows(
        x.shape, x.stride(), cache.shape, cache.stride(), kept.stride(), channel_dim % x.dim(), x.itemsize
    )
    if layout is None:
        return None
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    row_size, cut, vec = layout
    if not is_aligned(x, cache, kept):
        vec = 1
    size = x.numel() // vec
    bits = BITS[x.itemsize]
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
