"""The end of a residual block and the shift that opens the next one, one read of each input.

    y = act(branch * scale + bias + identity)        scale and bias one a channel, either may be left out
    shifted[n, t - 1, c] = y[n, t, c]                c in the first group, which reads t + 1
    shifted[n, t + 1, c] = y[n, t, c]                c in the second, which reads t - 1; the rest stays at t

`REVERSE` exchanges the two time offsets.

Scatter form: where a group has no frame to go to, its place is the one at the clip's other end that no
frame fills, and it writes that one's zero. The backward is one kernel that gathers from the same places.
Where a pixel has few channels, a fold is a few bytes of it, and scattered stores are dear: there the forward
gathers instead, by computing y a second time where a moved vector comes from.

Layouts: contiguous (a frame is one row of C*H*W) and channels_last (H*W rows of C); inputs in another
layout than `branch` are copied to its own first. Arithmetic is fp32, for fp64 fp64.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..activations import ACTIVATIONS
from .activations import activate, activation_backward
from .launch import launch
from .layout import VECTOR_BYTES, is_aligned, is_channels_last, is_traced, packed

# Vectors of one program. An H200 ran the forward faster with 128 than with 256 (by 1 to 4 %) or 512; the gather and
# the backward take two a thread. On AMD 4 warps are 256 threads.
BLOCK = 128 if torch.version.hip is None else 256
WIDE_BLOCK = 256
# Up to this many channels the gather was faster on an H200: 0.96 of a copy's bandwidth, the scatter 0.88; from 256
# channels on they are equal.
GATHER_CHANNELS = 64
NUM_WARPS = 4


@triton.jit
def _reads(position, first_end, second_end, REVERSE: tl.constexpr):
    """How many frames ahead the group of `position` reads; different in each of the three groups."""
    first_dt: tl.constexpr = -1 if REVERSE else 1
    return tl.where(position < first_end, first_dt, tl.where(position < second_end, -first_dt, 0))


@triton.jit
def _destination(reads, t, num_segments):
    """How far the frame of `shifted` to write is from t, and whether it takes a zero instead of t's value."""
    to = t - reads
    wrapped = (to < 0) | (to >= num_segments)
    to = tl.where(to < 0, num_segments - 1, tl.where(to >= num_segments, 0, to))
    return (to - t).to(tl.int64), wrapped


@triton.jit
def _per_channel(
    ptr, position, pixels, mask, VEC: tl.constexpr, CHANNELS_LAST: tl.constexpr, WHOLE_CHANNELS: tl.constexpr
):
    """The values of the channels that the vectors starting at `position` lie in."""
    if CHANNELS_LAST:
        channel = position[:, None] + tl.arange(0, VEC)[None, :]
    elif WHOLE_CHANNELS:
        channel = (position // pixels)[:, None]
    else:
        channel = (position[:, None] + tl.arange(0, VEC)[None, :]) // pixels
    return tl.load(ptr + channel, mask=mask[:, None], other=0)


@triton.jit
def _block_end(
    branch_ptr, identity_ptr, scale, bias, at, mask, wide: tl.constexpr, ACTIVATION: tl.constexpr
):  # fmt: skip
    z = tl.load(branch_ptr + at, mask=mask[:, None], other=0).to(wide)
    identity = tl.load(identity_ptr + at, mask=mask[:, None], other=0).to(wide)
    if scale is not None:
        z *= scale
    if bias is not None:
        z += bias
    return activate(z + identity, ACTIVATION)


@triton.jit
def _residual_shift_kernel(
    branch_ptr,
    scale_ptr,
    bias_ptr,
    identity_ptr,
    y_ptr,
    shifted_ptr,
    num_segments,
    # sizes count vectors of VEC elements; the two ends are positions in a row, in elements
    frame_size,
    row_size,
    first_end,
    second_end,
    pixels,
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WHOLE_CHANNELS: tl.constexpr,
    FOLDS_ALIGNED: tl.constexpr,
    REVERSE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATHER: tl.constexpr,
):
    # One program owns BLOCK vectors of one frame of y, and the places in `shifted` that they go to.
    blocks = (frame_size + BLOCK - 1) // BLOCK
    frame = tl.program_id(0) // blocks
    vec = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    t = frame % num_segments
    in_frame = vec < frame_size
    own = frame.to(tl.int64) * frame_size + vec
    position = (vec % row_size if CHANNELS_LAST else vec) * VEC
    lane = tl.arange(0, VEC)[None, :]
    at = own[:, None] * VEC + lane

    dtype = y_ptr.dtype.element_ty
    wide: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    scale = None
    bias = None
    if scale_ptr is not None:
        scale = _per_channel(scale_ptr, position, pixels, in_frame, VEC, CHANNELS_LAST, WHOLE_CHANNELS).to(
            wide
        )
    if bias_ptr is not None:
        bias = _per_channel(bias_ptr, position, pixels, in_frame, VEC, CHANNELS_LAST, WHOLE_CHANNELS).to(wide)
    y = _block_end(branch_ptr, identity_ptr, scale, bias, at, in_frame, wide, ACTIVATION).to(dtype)
    tl.store(y_ptr + at, y, mask=in_frame[:, None])

    reads = _reads(position, first_end, second_end, REVERSE)
    if GATHER:
        moved = in_frame & (reads != 0) & (t + reads >= 0) & (t + reads < num_segments)
        source = (own + reads.to(tl.int64) * frame_size)[:, None] * VEC + lane
        other = _block_end(branch_ptr, identity_ptr, scale, bias, source, moved, wide, ACTIVATION).to(dtype)
        value = tl.where((reads == 0)[:, None], y, tl.where(moved[:, None], other, 0.0))
        tl.store(shifted_ptr + at, value, mask=in_frame[:, None])
    else:
        dt, wrapped = _destination(reads, t, num_segments)
        to = (own + dt * frame_size)[:, None] * VEC + lane
        value = tl.where(wrapped[:, None], 0.0, y)
        if FOLDS_ALIGNED:
            tl.store(shifted_ptr + to, value, mask=in_frame[:, None])
        else:
            # vectors inside one group go as a whole, those that a fold's end cuts lane by lane
            whole = reads == _reads(position + VEC - 1, first_end, second_end, REVERSE)
            tl.store(shifted_ptr + to, value, mask=(in_frame & whole)[:, None])
            reads = _reads(position[:, None] + lane, first_end, second_end, REVERSE)
            dt, wrapped = _destination(reads, t, num_segments)
            to = (own[:, None] + dt * frame_size) * VEC + lane
            cut = in_frame & (whole == 0)
            tl.store(shifted_ptr + to, tl.where(wrapped, 0.0, y), mask=cut[:, None])


@triton.jit
def _residual_shift_backward_kernel(
    grad_y_ptr,
    grad_shifted_ptr,
    y_ptr,
    branch_ptr,
    scale_ptr,
    bias_ptr,
    identity_ptr,
    grad_ptr,
    grad_branch_ptr,
    num_segments,
    # as in the forward kernel
    frame_size,
    row_size,
    first_end,
    second_end,
    pixels,
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WHOLE_CHANNELS: tl.constexpr,
    FOLDS_ALIGNED: tl.constexpr,
    REVERSE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DERIVED_FROM: tl.constexpr,
):
    # One program owns BLOCK vectors of one frame of the gradient; it gathers from where the forward wrote.
    blocks = (frame_size + BLOCK - 1) // BLOCK
    frame = tl.program_id(0) // blocks
    vec = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    t = frame % num_segments
    in_frame = vec < frame_size
    own = frame.to(tl.int64) * frame_size + vec
    position = (vec % row_size if CHANNELS_LAST else vec) * VEC
    lane = tl.arange(0, VEC)[None, :]
    at = own[:, None] * VEC + lane

    dtype = grad_ptr.dtype.element_ty
    wide: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    grad = tl.full([BLOCK, VEC], 0, wide)
    if grad_y_ptr is not None:
        grad += tl.load(grad_y_ptr + at, mask=in_frame[:, None], other=0).to(wide)
    if grad_shifted_ptr is not None:
        reads = _reads(position, first_end, second_end, REVERSE)
        dt, wrapped = _destination(reads, t, num_segments)
        whole = in_frame & (wrapped == 0)
        if not FOLDS_ALIGNED:
            uncut = reads == _reads(position + VEC - 1, first_end, second_end, REVERSE)
            whole = whole & uncut
        to = (own + dt * frame_size)[:, None] * VEC + lane
        grad += tl.load(grad_shifted_ptr + to, mask=whole[:, None], other=0).to(wide)
        if not FOLDS_ALIGNED:
            reads = _reads(position[:, None] + lane, first_end, second_end, REVERSE)
            dt, wrapped = _destination(reads, t, num_segments)
            to = (own[:, None] + dt * frame_size) * VEC + lane
            cut = (in_frame & (uncut == 0))[:, None] & (wrapped == 0)
            grad += tl.load(grad_shifted_ptr + to, mask=cut, other=0).to(wide)

    if DERIVED_FROM == "output":
        y = tl.load(y_ptr + at, mask=in_frame[:, None], other=0).to(wide)
        grad = activation_backward(grad, y, ACTIVATION)
    elif DERIVED_FROM == "input":
        z = tl.load(branch_ptr + at, mask=in_frame[:, None], other=0).to(wide)
        identity = tl.load(identity_ptr + at, mask=in_frame[:, None], other=0).to(wide)
        if scale_ptr is not None:
            z *= _per_channel(scale_ptr, position, pixels, in_frame, VEC, CHANNELS_LAST, WHOLE_CHANNELS).to(
                wide
            )
        if bias_ptr is not None:
            z += _per_channel(bias_ptr, position, pixels, in_frame, VEC, CHANNELS_LAST, WHOLE_CHANNELS).to(
                wide
            )
        grad = activation_backward(grad, z + identity, ACTIVATION)
    tl.store(grad_ptr + at, grad.to(dtype), mask=in_frame[:, None])
    if scale_ptr is not None:
        scale = _per_channel(scale_ptr, position, pixels, in_frame, VEC, CHANNELS_LAST, WHOLE_CHANNELS).to(
            wide
        )
        tl.store(grad_branch_ptr + at, (grad * scale).to(dtype), mask=in_frame[:, None])


def residual_shift(
    branch: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    identity: Tensor,
    num_segments: int,
    n_first: int,
    n_second: int,
    reverse: bool,
    activation: str,
) -> tuple[Tensor, Tensor]:
    y, shifted = torch.empty_like(branch), torch.empty_like(branch)
    if y.numel() == 0:
        return y, shifted
    shift = (num_segments, n_first, n_second, reverse, activation)
    channels_last = is_channels_last(y)
    if channels_last is None:
        values = residual_shift(branch.contiguous(), scale, bias, identity, *shift)
        return y.copy_(values[0]), shifted.copy_(values[1])
    branch, identity = packed(branch, channels_last), packed(identity, channels_last)
    sizes, variant = _launch(y, (branch, identity), *shift[:4], channels_last)
    gather = channels_last and variant["FOLDS_ALIGNED"] and y.shape[1] <= GATHER_CHANNELS
    block = WIDE_BLOCK if gather else BLOCK
    grid = (y.shape[0] * triton.cdiv(sizes["frame_size"], block),)
    arguments = {
        "branch_ptr": branch,
        "scale_ptr": None if scale is None else scale.contiguous(),
        "bias_ptr": None if bias is None else bias.contiguous(),
        "identity_ptr": identity,
        "y_ptr": y,
        "shifted_ptr": shifted,
        **sizes,
        **variant,
        "BLOCK": block,
        "ACTIVATION": activation,
        "GATHER": gather,
    }
    launch(_residual_shift_kernel, grid, y, arguments, num_warps=NUM_WARPS)
    return y, shifted


def residual_shift_backward(
    template: Tensor,
    grad_y: Tensor | None,
    grad_shifted: Tensor | None,
    y: Tensor | None,
    branch: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    identity: Tensor | None,
    num_segments: int,
    n_first: int,
    n_second: int,
    reverse: bool,
    activation: str,
) -> list[Tensor]:
    """The gradient of the sum, then `branch`'s where there is a scale, in `template`'s memory format."""
    grads = [torch.empty_like(template) for _ in range(1 if scale is None else 2)]
    if template.numel() == 0:
        return grads
    shift = (num_segments, n_first, n_second, reverse, activation)
    channels_last = is_channels_last(grads[0])
    tensors = (grad_y, grad_shifted, y, branch, identity)
    if channels_last is None:
        template = template.contiguous()
        values = residual_shift_backward(
            template, grad_y, grad_shifted, y, branch, scale, bias, identity, *shift
        )
        return [grad.copy_(value) for grad, value in zip(grads, values, strict=True)]
    tensors = [None if x is None else packed(x, channels_last) for x in tensors]
    sizes, variant = _launch(grads[0], tensors, *shift[:4], channels_last)
    grid = (template.shape[0] * triton.cdiv(sizes["frame_size"], WIDE_BLOCK),)
    grad_y, grad_shifted, y, branch, identity = tensors
    arguments = {
        "grad_y_ptr": grad_y,
        "grad_shifted_ptr": grad_shifted,
        "y_ptr": y,
        "branch_ptr": branch,
        "scale_ptr": None if scale is None else scale.contiguous(),
        "bias_ptr": None if bias is None else bias.contiguous(),
        "identity_ptr": identity,
        "grad_ptr": grads[0],
        "grad_branch_ptr": grads[-1],
        **sizes,
        **variant,
        "BLOCK": WIDE_BLOCK,
        "ACTIVATION": activation,
        "DERIVED_FROM": ACTIVATIONS[activation].reads,
    }
    launch(_residual_shift_backward_kernel, grid, template, arguments, num_warps=NUM_WARPS)
    return grads


def _launch(
    out: Tensor,
    inputs: Sequence[Tensor | None],
    num_segments: int,
    n_first: int,
    n_second: int,
    reverse: bool,
    channels_last: bool,
) -> tuple[dict[str, int], dict[str, Any]]:
    """Sizes and constants that the two kernels share."""
    frame_size, channels = math.prod(out.shape[1:]), out.shape[1]
    pixels = frame_size // channels
    row_size, channel_stride = (channels, 1) if channels_last else (frame_size, pixels)
    vec = math.gcd(row_size, VECTOR_BYTES // out.itemsize)
    if not is_traced(out) and not is_aligned(*inputs):
        vec = 1
    first_end, second_end = n_first * channel_stride, (n_first + n_second) * channel_stride
    sizes = {
        "num_segments": num_segments,
        "frame_size": frame_size // vec,
        "row_size": row_size // vec,
        "first_end": first_end,
        "second_end": second_end,
        "pixels": pixels,
    }
    variant = {
        "VEC": vec,
        "CHANNELS_LAST": channels_last,
        "WHOLE_CHANNELS": pixels % vec == 0,
        "FOLDS_ALIGNED": first_end % vec == 0 and second_end % vec == 0,
        "REVERSE": reverse,
    }
    return sizes, variant
