"""The shift of a folded clip batch, one read and one write per element.

    out[n, t, c] = x[n, t + 1, c]    c in the first group
    out[n, t, c] = x[n, t - 1, c]    c in the second, next to it
    out[n, t, c] = x[n, t, c]        the rest; zero where t + 1 or t - 1 leaves the clip

`REVERSE` exchanges the two time offsets. The backward is this same kernel with `REVERSE` flipped. Clips have
`num_segments` frames each, or, `PACKED`, begin at the frames that `boundaries` marks.

Layouts: in memory a frame is `rows` runs of `row_size` elements, the channel axis outermost in each run,
so NCHW is one row of C*H*W and channels_last, NHWC and tokens are H*W (or L) rows of C. Rows and frames
of the input may stand apart or repeat (chunks of channels, expanded frames).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import Plan, device_guard, remember
from .layout import BITS, VECTOR_BYTES, frame_rows, is_aligned
from .triton_private import launcher

# Vectors of one program, two a thread of 4 warps. An H200 moved every shape of ResNet-50 faster with 256 than with
# 512 (by 1 to 3 %), 1024 or 2048. Straddling vectors hold three loads at once: ptxas keeps them in 46 registers.
BLOCK = 256
NUM_WARPS = 4
# Above this many elements a frame's offsets need 64 bits (the last block may reach past the frame's end).
INT32_FRAME = 2**31 - BLOCK * VECTOR_BYTES


@triton.jit
def _temporal_shift_kernel(
    x_ptr,
    out_ptr,
    boundaries_ptr,
    num_segments,
    # all sizes and strides count vectors of VEC elements, except the two ends when folds are not aligned
    frame_size,
    row_size,
    first_end,
    second_end,
    stride_x_frame,
    stride_x_row,
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
    SINGLE_ROW: tl.constexpr,
    FOLDS_ALIGNED: tl.constexpr,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    INT64: tl.constexpr,
):
    # One program moves BLOCK vectors of one frame.
    blocks = (frame_size - 1) // BLOCK + 1
    frame = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    if INT64:
        block = block.to(tl.int64)
    vec = block * BLOCK + tl.arange(0, BLOCK)
    if PACKED:
        # all that matters of t is whether it is the first or the last
        t = tl.where(tl.load(boundaries_ptr + frame) != 0, 0, 1)
        last = tl.where(tl.load(boundaries_ptr + frame + 1) != 0, t, t + 1)
    else:
        t = frame % num_segments
        last = num_segments - 1
    in_frame = vec < frame_size

    own = frame.to(tl.int64) * stride_x_frame
    if SINGLE_ROW:
        col = vec
        own += col
    else:
        col = vec % row_size
        own += (vec // row_size).to(tl.int64) * stride_x_row + col

    first_dt: tl.constexpr = -1 if REVERSE else 1
    lane = tl.arange(0, VEC)[None, :]
    if FOLDS_ALIGNED:
        # every vector lies in one group: one load
        dt = tl.where(col < first_end, first_dt, tl.where(col < second_end, -first_dt, 0))
        source_t = t + dt
        mask = in_frame & (source_t >= 0) & (source_t <= last)
        source = own + dt.to(tl.int64) * stride_x_frame
        value = tl.load(x_ptr + source[:, None] * VEC + lane, mask=mask[:, None], other=0)
    else:
        # a vector may straddle groups: load whole vectors from each frame it needs, so that accesses
        # stay wide, and choose by lane
        start = col * VEC
        first_reads = (t > 0) if REVERSE else (t < last)
        second_reads = (t < last) if REVERSE else (t > 0)
        mask = in_frame & (start < tl.where(first_reads, first_end, 0))
        source = own + first_dt * stride_x_frame
        first = tl.load(x_ptr + source[:, None] * VEC + lane, mask=mask[:, None], other=0)
        mask = in_frame & (start + VEC > first_end) & (start < tl.where(second_reads, second_end, 0))
        source = own - first_dt * stride_x_frame
        second = tl.load(x_ptr + source[:, None] * VEC + lane, mask=mask[:, None], other=0)
        mask = in_frame & (start + VEC > second_end)
        rest = tl.load(x_ptr + own[:, None] * VEC + lane, mask=mask[:, None], other=0)
        channel = start[:, None] + lane
        value = tl.where(channel < first_end, first, tl.where(channel < second_end, second, rest))

    target = frame.to(tl.int64) * frame_size + vec
    tl.store(out_ptr + target[:, None] * VEC + lane, value, mask=in_frame[:, None])


# What a call of a shape launches, for the next one. It asks nothing again: a launch through the JIT takes
# longer than all the rest.
_PLANS: dict[tuple[Any, ...], Plan] = {}


def temporal_shift(
    x: Tensor,
    num_segments: int,
    n_first: int,
    n_second: int,
    reverse: bool,
    channel_dim: int,
    boundaries: Tensor | None = None,
) -> Tensor:
    """Launch; `boundaries`, bool `[frames + 1]`, replaces `num_segments` where it is given."""
    out = torch.empty_like(x)
    shift = (num_segments, n_first, n_second, reverse, channel_dim)
    key = (x.shape, x.stride(), x.dtype, x.get_device(), boundaries is None, *shift)
    aligned = is_aligned(x)
    if aligned and (plan := _PLANS.get(key)) is not None:
        with device_guard(x):
            plan.run(x, out, boundaries, *plan.arguments)
        return out
    if x.numel() == 0:
        return out
    layout = frame_rows(x.shape, x.stride(), out.stride(), channel_dim % x.dim(), VECTOR_BYTES // x.itemsize)
    if layout is None:
        # Crops, and tensors whose frames are not outermost in memory: through a contiguous copy and back.
        return out.copy_(temporal_shift(x.contiguous(), *shift, boundaries))

    frame_size, row_size, channel_stride, stride_x_row, vec = layout
    if not aligned:
        vec = 1
    first_end, second_end = n_first * channel_stride, (n_first + n_second) * channel_stride
    folds_aligned = first_end % vec == 0 and second_end % vec == 0
    sizes = (
        num_segments,
        frame_size // vec,
        row_size // vec,
        first_end // vec if folds_aligned else first_end,
        second_end // vec if folds_aligned else second_end,
        x.stride(0) // vec,
        stride_x_row // vec,
    )
    constants = {
        "VEC": vec,
        "BLOCK": BLOCK,
        "SINGLE_ROW": row_size == frame_size,
        "FOLDS_ALIGNED": folds_aligned,
        "REVERSE": reverse,
        "PACKED": boundaries is not None,
        "INT64": frame_size > INT32_FRAME,
    }
    bits = BITS[x.itemsize]
    starts = None if boundaries is None else boundaries.view(torch.uint8)
    grid = (x.shape[0] * triton.cdiv(frame_size // vec, BLOCK), 1, 1)
    with device_guard(x):
        compiled = _temporal_shift_kernel[grid](
            x.view(bits), out.view(bits), starts, *sizes, **constants, num_warps=NUM_WARPS
        )
        if aligned and compiled is not None:  # the interpreter compiles nothing
            remember(_PLANS, key, Plan(launcher(compiled, grid), (*sizes, *constants.values())))
    return out
