"""A depthwise convolution with bias and activation: one read of x, one write.

    out[n, oh, ow, c] = act(bias[c] + sum over kh, kw of weight[c, kh, kw]
                            * x[n, oh * stride - padding + kh * dilation, ow * stride - padding + kw * dilation, c])

A program walks down the output rows of a strip of pixels. Where the kernel is 3x3 it keeps the unfinished sums of the
rows ahead, so that every row of x is read once a strip, three times side by side out of the L1; other kernels read all
their taps for each row.

Layout: channels_last, so that channels are what lies side by side. Arithmetic is fp32, for fp64 fp64. No backward: a
network is trained through torch's own convolution.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .activations import activate
from .launch import launch
from .layout import as_rows, new_channels_last


class Tile(NamedTuple):
    """Output pixels side by side, their channels, and the rows that a program walks."""

    BLOCK_W: int
    BLOCK_C: int
    ROWS: int


# A thread holds the three sums of 16 results of half precision: two whole vectors of channels.
NUM_WARPS = 4
TILE_BYTES = 4096


@triton.jit
def _taps(x_ptr, weight_ptr, ih, kh, iw0, channel, in_channels, wide: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, KW: tl.constexpr, DILATION: tl.constexpr,
):  # fmt: skip
    """What row `ih` of x gives to the outputs by row `kh` of the kernel."""
    ih = ih + 0 * iw0  # one mask a pixel
    in_row = (ih >= 0) & (ih < H)
    z = tl.full([iw0.shape[0], channel.shape[0]], 0, wide)
    for kw in tl.static_range(KW):
        iw = iw0 + kw * DILATION
        mask = (in_row & (iw >= 0) & (iw < W))[:, None] & in_channels[None, :]
        x = tl.load(x_ptr + (ih * W + iw)[:, None] * C + channel[None, :], mask=mask, other=0).to(wide)
        weight = tl.load(weight_ptr + (kh * KW + kw) * C + channel, mask=in_channels, other=0).to(wide)
        z += x * weight[None, :]
    return z


@triton.jit
def _three_rows(x_ptr, w_ptr, ih, iw0, channel, in_channels, above, here, below, wide: tl.constexpr,
    ABOVE: tl.constexpr, HERE: tl.constexpr, BELOW: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Read row `ih` once, and add what it gives to the rows of the output that see it as their 3rd, 2nd and 1st."""
    ih = ih + 0 * iw0  # one mask a pixel
    in_row = (ih >= 0) & (ih < H)
    for kw in tl.static_range(3):
        iw = iw0 + kw
        mask = (in_row & (iw >= 0) & (iw < W))[:, None] & in_channels[None, :]
        x = tl.load(x_ptr + (ih * W + iw)[:, None] * C + channel[None, :], mask=mask, other=0).to(wide)
        if ABOVE:
            above += x * tl.load(w_ptr + (6 + kw) * C + channel, mask=in_channels, other=0).to(wide)[None, :]
        if HERE:
            here += x * tl.load(w_ptr + (3 + kw) * C + channel, mask=in_channels, other=0).to(wide)[None, :]
        if BELOW:
            below += x * tl.load(w_ptr + kw * C + channel, mask=in_channels, other=0).to(wide)[None, :]
    return above, here, below


@triton.jit
def _depthwise_kernel(
    x_ptr,
    weight_ptr,  # [KH, KW, C]
    bias_ptr,
    out_ptr,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    ROLLING: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    # One program owns ROWS rows of BLOCK_W output pixels, BLOCK_C channels of one image. Blocks of channels come
    # first, so that programs side by side read side by side.
    blocks_c: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    blocks_w: tl.constexpr = (OW + BLOCK_W - 1) // BLOCK_W
    blocks_h: tl.constexpr = (OH + ROWS - 1) // ROWS
    pid = tl.program_id(0)
    channel = pid % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    ow = pid // blocks_c % blocks_w * BLOCK_W + tl.arange(0, BLOCK_W)
    first_oh = pid // (blocks_c * blocks_w) % blocks_h * ROWS
    n = (pid // (blocks_c * blocks_w * blocks_h)).to(tl.int64)
    in_channels = channel < C
    iw0 = ow * STRIDE - PADDING_W
    x_ptr += n * (H * W * C)
    out_ptr += n * (OH * OW * C)
    dtype = out_ptr.dtype.element_ty
    wide: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    bias = tl.full([BLOCK_C], 0, wide)
    if bias_ptr is not None:
        bias += tl.load(bias_ptr + channel, mask=in_channels, other=0).to(wide)
    zero = tl.full([BLOCK_W, BLOCK_C], 0, wide)
    here = zero
    below = zero
    # fmt: off
    if ROLLING:
        ih = first_oh * STRIDE - PADDING_H
        _, _, here = _three_rows(x_ptr, weight_ptr, ih, iw0, channel, in_channels, zero, zero, here, wide,
                                 False, False, True, H, W, C)
        if STRIDE == 1:
            _, here, below = _three_rows(x_ptr, weight_ptr, ih + 1, iw0, channel, in_channels, zero, here, below, wide,
                                         False, True, True, H, W, C)
    for i in range(ROWS):
        oh = first_oh + i
        ih = oh * STRIDE - PADDING_H
        if not ROLLING:
            z = zero
            for kh in tl.static_range(KH):
                z += _taps(x_ptr, weight_ptr, ih + kh * DILATION, kh, iw0, channel, in_channels, wide,
                           H, W, C, KW, DILATION)
        elif STRIDE == 1:
            z, here, below = _three_rows(x_ptr, weight_ptr, ih + 2, iw0, channel, in_channels, here, below, zero, wide,
                                         True, True, True, H, W, C)
        else:
            _, here, _ = _three_rows(x_ptr, weight_ptr, ih + 1, iw0, channel, in_channels, zero, here, zero, wide,
                                     False, True, False, H, W, C)
            z, _, here = _three_rows(x_ptr, weight_ptr, ih + 2, iw0, channel, in_channels, here, zero, zero, wide,
                                     True, False, True, H, W, C)
        # fmt: on
        mask = ((oh + 0 * ow < OH) & (ow < OW))[:, None] & in_channels[None, :]
        out = activate(z + bias[None, :], ACTIVATION).to(dtype)
        tl.store(out_ptr + (oh * OW + ow)[:, None] * C + channel[None, :], out, mask=mask)


def tile_for(c: int, out_height: int, out_width: int, stride: int, itemsize: int) -> Tile:
    """What was fastest on an H200 in the layers of MobileNetV2 in bf16: 1.07 of cuDNN's bare convolutions."""
    block_c = min(64 if 8 < out_width <= 32 else 32, max(8, triton.next_power_of_2(c)))
    block_w = min(TILE_BYTES // itemsize // block_c, 64, triton.next_power_of_2(out_width))
    rows = 14 if stride == 1 else 4 if out_width > 16 else 7
    return Tile(block_w, block_c, min(out_height, rows))


def depthwise_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int | tuple[int, int],
    dilation: int,
    activation: str,
    tile: Tile | None = None,
) -> Tensor:
    """Launch; x `[N, C, H, W]`, weight `[C, 1, KH, KW]`; the result `[N, C, OH, OW]` is channels_last."""
    frames, c, height, width = x.shape
    kernel_height, kernel_width = weight.shape[2:]
    padding_height, padding_width = (padding, padding) if isinstance(padding, int) else padding
    out_height = (height + 2 * padding_height - dilation * (kernel_height - 1) - 1) // stride + 1
    out_width = (width + 2 * padding_width - dilation * (kernel_width - 1) - 1) // stride + 1
    out = new_channels_last(x, frames, c, out_height, out_width)
    if out.numel() == 0:
        return out
    if tile is None:
        tile = tile_for(c, out_height, out_width, stride, x.itemsize)
    rolling = (kernel_height, kernel_width, dilation) == (3, 3, 1) and stride <= 2
    blocks = (
        triton.cdiv(c, tile.BLOCK_C)
        * triton.cdiv(out_width, tile.BLOCK_W)
        * triton.cdiv(out_height, tile.ROWS)
    )
    arguments = {
        "x_ptr": as_rows(x),
        "weight_ptr": weight.view(c, kernel_height, kernel_width).permute(1, 2, 0).contiguous(),
        "bias_ptr": None if bias is None else bias.contiguous(),
        "out_ptr": out,
        "H": height,
        "W": width,
        "C": c,
        "OH": out_height,
        "OW": out_width,
        "KH": kernel_height,
        "KW": kernel_width,
        "STRIDE": stride,
        "PADDING_H": padding_height,
        "PADDING_W": padding_width,
        "DILATION": dilation,
        **tile._asdict(),
        "ROLLING": rolling,
        "ACTIVATION": activation,
    }
    launch(_depthwise_kernel, (frames * blocks,), x, arguments, num_warps=NUM_WARPS)
    return out
