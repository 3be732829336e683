"""Where one bottleneck ends and the next begins, in one kernel: the map between them is written and never read.

    y[r, c] = act(sum over k of x[r, k] * weight[c, k] + bias[c] + identity[r, c])
    z[r, o] = act(sum over c of y[r + dt(c) * pixels, c] * next_weight[o, c] + next_bias[o])
    r and dt as in `shift_conv1x1.py`; a term is zero where its frame lies outside r's clip

A tile holds all frames of a group of pixels, so the shift never leaves it. The products of the channels that
read t+1 are summed first and moved by one frame as sums, then those that read t-1, then the rest in place:
two moves of z in all, none of y.

Of a ResNet's first stage (64 -> 256 -> 64 channels) a pixel moves 64 + 256 + 256 + 64 = 640 values, where two
products that are fused each for itself move 896. No GPU has timed it yet, so `fuse` does not use it.

Layout: channels_last, another input is copied to it. The backward is that of two `shift_conv1x1`, in `ops`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import activate
from .device import device_guard
from .shift_conv1x1 import as_rows, fp32_precision

# Rows of a tile, all frames of some pixels: the sums of 64 rows and 128 columns, held twice while one is
# moved, are 128 of the 255 registers of 4 warps' threads.
BLOCK_M = 64
# Channels of y at a time: a fold of 256 / 8, so that a group of channels is whole blocks.
BLOCK_C = 32
# Bytes that x and z may hold of one row, 128 channels of half precision: both stay in registers while y goes
# by. 128 channels of fp32 spill (200 bytes on sm_80) and need 72 KiB of shared memory, gfx942 has 64.
MOST_BYTES = 256
NUM_WARPS = 4


@triton.jit
def _through_group(
    z,
    x,
    weight_ptr,
    bias_ptr,
    identity_ptr,
    y_ptr,
    next_weight_ptr,
    rows,
    in_rows,
    START: tl.constexpr,
    END: tl.constexpr,
    C_IN: tl.constexpr,
    C_MID: tl.constexpr,
    C_OUT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute and store the channels START ... END of y, and add their products to z."""
    dtype = y_ptr.dtype.element_ty
    k = tl.arange(0, BLOCK_K)
    column = tl.arange(0, BLOCK_N)
    for start in range(START, END, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        in_c = c < END
        mask = in_c[None, :] & (k < C_IN)[:, None]
        weight = tl.load(weight_ptr + c[None, :] * C_IN + k[:, None], mask=mask, other=0)
        y = tl.dot(x, weight, input_precision=PRECISION)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + c, mask=in_c, other=0).to(tl.float32)[None, :]
        at = rows[:, None] * C_MID + c[None, :]
        mask = in_rows[:, None] & in_c[None, :]
        y += tl.load(identity_ptr + at, mask=mask, other=0).to(tl.float32)
        rounded = activate(y, ACTIVATION).to(dtype)
        tl.store(y_ptr + at, rounded, mask=mask)
        mask = in_c[:, None] & (column < C_OUT)[None, :]
        weight = tl.load(next_weight_ptr + column[None, :] * C_MID + c[:, None], mask=mask, other=0)
        z = tl.dot(rounded, weight, z, input_precision=PRECISION)
    return z


@triton.jit
def _moved(z, t, dt: tl.constexpr, NUM_SEGMENTS: tl.constexpr, PIXELS: tl.constexpr):
    """The sums of frame t + dt in the rows of frame t, zero where the clip has no such frame."""
    row = tl.arange(0, z.shape[0])
    inside = (t + dt >= 0) & (t + dt < NUM_SEGMENTS)
    source = tl.where(inside, row + dt * PIXELS, row)
    moved = tl.gather(z, tl.broadcast_to(source[:, None], z.shape), 0)
    return tl.where(inside[:, None], moved, 0.0)


@triton.jit
def _conv1x1_shift_conv1x1_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    identity_ptr,
    next_weight_ptr,
    next_bias_ptr,
    y_ptr,
    z_ptr,
    pixels,
    NUM_SEGMENTS: tl.constexpr,
    C_IN: tl.constexpr,
    C_MID: tl.constexpr,
    C_OUT: tl.constexpr,
    FIRST_END: tl.constexpr,
    SECOND_END: tl.constexpr,
    FUTURE_FIRST: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEXT_ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # One program owns all frames of PIXELS pixels of one clip, all channels of y and of z. Its rows lie
    # frame by frame.
    groups = (pixels + PIXELS - 1) // PIXELS
    clip = (tl.program_id(0) // groups).to(tl.int64)
    row = tl.arange(0, BLOCK_M)
    t = row // PIXELS
    pixel = tl.program_id(0) % groups * PIXELS + row % PIXELS
    in_rows = (t < NUM_SEGMENTS) & (pixel < pixels)
    rows = (clip * NUM_SEGMENTS + t) * pixels + pixel

    k = tl.arange(0, BLOCK_K)
    column = tl.arange(0, BLOCK_N)
    first_dt: tl.constexpr = 1 if FUTURE_FIRST else -1
    mask = in_rows[:, None] & (k < C_IN)[None, :]
    x = tl.load(x_ptr + rows[:, None] * C_IN + k[None, :], mask=mask, other=0)
    z = tl.full([BLOCK_M, BLOCK_N], 0, tl.float32)
    # fmt: off
    if FIRST_END > 0:
        z = _through_group(
            z, x, weight_ptr, bias_ptr, identity_ptr, y_ptr, next_weight_ptr, rows, in_rows, 0, FIRST_END,
            C_IN, C_MID, C_OUT, ACTIVATION, PRECISION, BLOCK_K, BLOCK_C, BLOCK_N,
        )
        z = _moved(z, t, first_dt, NUM_SEGMENTS, PIXELS)
    if SECOND_END > FIRST_END:
        second = _through_group(
            tl.full([BLOCK_M, BLOCK_N], 0, tl.float32), x, weight_ptr, bias_ptr, identity_ptr, y_ptr,
            next_weight_ptr, rows, in_rows, FIRST_END, SECOND_END,
            C_IN, C_MID, C_OUT, ACTIVATION, PRECISION, BLOCK_K, BLOCK_C, BLOCK_N,
        )
        z += _moved(second, t, -first_dt, NUM_SEGMENTS, PIXELS)
    z = _through_group(
        z, x, weight_ptr, bias_ptr, identity_ptr, y_ptr, next_weight_ptr, rows, in_rows, SECOND_END, C_MID,
        C_IN, C_MID, C_OUT, ACTIVATION, PRECISION, BLOCK_K, BLOCK_C, BLOCK_N,
    )
    # fmt: on
    if next_bias_ptr is not None:
        z += tl.load(next_bias_ptr + column, mask=column < C_OUT, other=0).to(tl.float32)[None, :]
    mask = in_rows[:, None] & (column < C_OUT)[None, :]
    z = activate(z, NEXT_ACTIVATION).to(z_ptr.dtype.element_ty)
    tl.store(z_ptr + rows[:, None] * C_OUT + column[None, :], z, mask=mask)


def takes(x: Tensor, next_weight: Tensor, num_segments: int) -> bool:
    """Whether the kernel is made for these sizes: all frames in a tile, x and z in registers."""
    widest = max(x.shape[1], next_weight.shape[0])
    return num_segments <= BLOCK_M and widest * x.itemsize <= MOST_BYTES and x.dtype != torch.float64


def tile(c_in: int, c_out: int, num_segments: int) -> dict[str, int]:
    """The sizes of a program: as many pixels as all their frames fill BLOCK_M rows with."""
    return {
        "PIXELS": BLOCK_M // triton.next_power_of_2(num_segments),
        "BLOCK_M": BLOCK_M,
        "BLOCK_K": max(16, triton.next_power_of_2(c_in)),
        "BLOCK_C": BLOCK_C,
        "BLOCK_N": max(16, triton.next_power_of_2(c_out)),
    }


def conv1x1_shift_conv1x1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    identity: Tensor,
    next_weight: Tensor,
    next_bias: Tensor | None,
    num_segments: int,
    n_future: int,
    n_past: int,
    future_first: bool,
    activation: str,
    next_activation: str,
) -> tuple[Tensor, Tensor]:
    frames, c_in, height, width = x.shape
    c_mid, c_out, pixels = weight.shape[0], next_weight.shape[0], height * width
    y, z = (
        torch.empty(
            (frames, channels, height, width),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        for channels in (c_mid, c_out)
    )
    if y.numel() == 0 or z.numel() == 0:
        return y, z
    sizes = tile(c_in, c_out, num_segments)
    grid = (frames // num_segments * triton.cdiv(pixels, sizes["PIXELS"]),)
    with device_guard(x):
        _conv1x1_shift_conv1x1_kernel[grid](
            as_rows(x),
            weight.reshape(c_mid, c_in).contiguous(),
            None if bias is None else bias.contiguous(),
            as_rows(identity),
            next_weight.reshape(c_out, c_mid).contiguous(),
            None if next_bias is None else next_bias.contiguous(),
            y,
            z,
            pixels,
            NUM_SEGMENTS=num_segments,
            C_IN=c_in,
            C_MID=c_mid,
            C_OUT=c_out,
            FIRST_END=n_future if future_first else n_past,
            SECOND_END=n_future + n_past,
            FUTURE_FIRST=future_first,
            ACTIVATION=activation,
            NEXT_ACTIVATION=next_activation,
            PRECISION=fp32_precision(),
            **sizes,
            num_warps=NUM_WARPS,
        )
    return y, z
