"""A network's first convolution, few channels in: bias and activation inside, each value of x read as wide as it lies.

    out[n, oh, ow, o] = act(sum over kh, kw, c of x[n, oh * stride - padding + kh, ow * stride - padding + kw, c]
                            * weight[o, c, kh, kw] + bias[o])

A matrix product whose row is a run of PAIR output pixels and whose columns are their channels: the pixels under such
a run lie side by side in channels_last memory, so a row of the kernel is one read of BLOCK_K values. It begins early,
at a whole vector, where the weights are zero, as they are behind its end and where a pixel of the run sees nothing.
Two pixels of ResNet's 7x7, stride 2, see 9 x 3 values of a row: 3 zeros, 27, 2 zeros are 32, read by 8 bytes.

Layout: channels_last. No backward: a network is trained through torch's own convolution.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import activate
from .device import fp32_precision, has_copy_engine, multiprocessors
from .launch import launch, smaller
from .layout import as_rows, new_channels_last

# Output pixels of one row of the product. Two of them share 27 of 32 columns of K, one alone would fill 21.
PAIR = 2
# Values that a read begins at: 8 bytes of half precision, what 2 * 3 * stride values are multiples of.
VECTOR = 4


class Tile(NamedTuple):
    """Rows of a tile, rows of the kernel that one product takes, and how it runs."""

    BLOCK_M: int
    KERNEL_ROWS: int
    num_warps: int
    # programs a multiprocessor, each of them over many tiles; 0 for one program a tile
    PERSISTENT: int = 0


@triton.jit
def _rows_of_x(
    x_ptr, row, kh0,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, OH: tl.constexpr, RUNS: tl.constexpr, KH: tl.constexpr,
    STEP: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, LEAD: tl.constexpr,
    KERNEL_ROWS: tl.constexpr, BLOCK_K: tl.constexpr, total,
):  # fmt: skip
    """KERNEL_ROWS rows under each of the runs `row`, from the kernel's row kh0: `[len(row), KERNEL_ROWS * BLOCK_K]`."""
    k = tl.arange(0, KERNEL_ROWS * BLOCK_K)
    kh = kh0 + k // BLOCK_K
    run = row % RUNS
    oh = row // RUNS % OH
    n = (row // (RUNS * OH)).to(tl.int64)
    ih = oh[:, None] * STRIDE - PADDING + kh[None, :]
    at = run[:, None] * STEP - LEAD + (k % BLOCK_K)[None, :]
    mask = (ih >= 0) & (ih < H) & (at >= 0) & (at < W * C) & (kh < KH)[None, :] & (row < total)[:, None]
    return tl.load(x_ptr + (n * (H * W * C))[:, None] + (ih * (W * C) + at), mask=mask, other=0)


@triton.jit
def _store(
    z, bias_ptr, out_ptr, row, total,
    C_OUT: tl.constexpr, OW: tl.constexpr, RUNS: tl.constexpr, PAIR: tl.constexpr, BLOCK_C: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, PAIR * BLOCK_C)
    channel = column % BLOCK_C
    if bias_ptr is not None:
        z += tl.load(bias_ptr + channel, mask=channel < C_OUT, other=0).to(tl.float32)[None, :]
    ow = (row % RUNS * PAIR)[:, None] + (column // BLOCK_C)[None, :]
    at = (row // RUNS).to(tl.int64)[:, None] * (OW * C_OUT) + (ow * C_OUT + channel[None, :])
    mask = (row < total)[:, None] & (channel < C_OUT)[None, :] & (ow < OW)
    tl.store(out_ptr + at, activate(z, ACTIVATION).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _stem_kernel(
    x_ptr,
    weight_ptr,  # [KH rounded up, BLOCK_K, PAIR, BLOCK_C]
    bias_ptr,
    out_ptr,
    total,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    C_OUT: tl.constexpr,
    KH: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    LEAD: tl.constexpr,
    PAIR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    KERNEL_ROWS: tl.constexpr,
    PERSISTENT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # One program owns BLOCK_M runs of PAIR output pixels, all their channels; persistent, every so many-th such tile.
    RUNS: tl.constexpr = (OW + PAIR - 1) // PAIR
    STEP: tl.constexpr = PAIR * STRIDE * C
    BLOCK_N: tl.constexpr = PAIR * BLOCK_C
    WIDE_K: tl.constexpr = KERNEL_ROWS * BLOCK_K
    k = tl.arange(0, WIDE_K)
    column = tl.arange(0, BLOCK_N)
    weight_ptrs = weight_ptr + k[:, None] * BLOCK_N + column[None, :]
    if PERSISTENT:
        # all rows of the kernel in one product: its weights stay in shared memory
        weight = tl.load(weight_ptrs)
        tiles = (total + BLOCK_M - 1) // BLOCK_M
        for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
            x = _rows_of_x(
                x_ptr, row, 0, H, W, C, OH, RUNS, KH, STEP, STRIDE, PADDING, LEAD, KERNEL_ROWS, BLOCK_K, total
            )
            z = tl.dot(x, weight, input_precision=PRECISION)
            _store(z, bias_ptr, out_ptr, row, total, C_OUT, OW, RUNS, PAIR, BLOCK_C, ACTIVATION)
    else:
        row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        z = tl.full([BLOCK_M, BLOCK_N], 0, tl.float32)
        for kh in tl.static_range(0, KH, KERNEL_ROWS):
            x = _rows_of_x(
                x_ptr, row, kh, H, W, C, OH, RUNS, KH, STEP, STRIDE, PADDING, LEAD, KERNEL_ROWS, BLOCK_K, total
            )  # fmt: skip
            z = tl.dot(x, tl.load(weight_ptrs + kh * BLOCK_K * BLOCK_N), z, input_precision=PRECISION)
        _store(z, bias_ptr, out_ptr, row, total, C_OUT, OW, RUNS, PAIR, BLOCK_C, ACTIVATION)


class _Sizes(NamedTuple):
    """How the rows of a kernel lie in the columns of the product."""

    LEAD: int
    BLOCK_K: int
    BLOCK_C: int


@lru_cache(maxsize=256)
def sizes(c_in: int, c_out: int, kernel_width: int, stride: int, padding: int) -> _Sizes:
    """Values before the first that a run sees, from a whole vector on; values of a read; channels, rounded up."""
    begin = padding * c_in
    lead = triton.cdiv(begin, VECTOR) * VECTOR
    seen = (kernel_width + stride * (PAIR - 1)) * c_in
    block_k = max(16, triton.next_power_of_2(lead - begin + seen))
    return _Sizes(lead, block_k, max(8, triton.next_power_of_2(c_out)))


def arranged(weight: Tensor, stride: int, padding: int) -> Tensor:
    """`weight` `[C_OUT, C, KH, KW]` as the product reads it: `[KH rounded up, BLOCK_K, PAIR, BLOCK_C]`."""
    c_out, c_in, kernel_height, kernel_width = weight.shape
    lead, block_k, block_c = sizes(c_in, c_out, kernel_width, stride, padding)
    rows = triton.next_power_of_2(kernel_height)
    width = kernel_width * c_in
    values = weight.permute(2, 3, 1, 0).reshape(kernel_height, width, c_out)
    pixels = []
    for pixel in range(PAIR):
        start = lead - padding * c_in + pixel * stride * c_in
        around = (0, block_c - c_out, start, block_k - start - width, 0, rows - kernel_height)
        pixels.append(torch.constant_pad_nd(values, around))
    return torch.stack(pixels, 2)


# The most bytes of weights that a persistent program keeps in shared memory: those of ResNet's 7x7.
KEPT_BYTES = 2**16


def tile_for(kernel_height: int, block_k: int, block_c: int, itemsize: int, persistent: bool) -> Tile:
    """What was fastest on an H200 in bf16: 354 us of ResNet's 7x7, 378 not persistent; 96 and 104 of a 3x3."""
    rows = triton.next_power_of_2(kernel_height)
    if itemsize > 2:
        return Tile(32, 1, 4)
    if persistent and rows * block_k * PAIR * block_c * itemsize <= KEPT_BYTES:
        return Tile(64, rows, 4, PERSISTENT=6 if kernel_height <= 3 else 2)
    return Tile(64, min(2, rows), 4) if kernel_height <= 3 else Tile(128, 1, 8)


def takes(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether the kernel is made for these: few channels in, at most 128 out, results and runs in registers."""
    c_out, c_in, kernel_height, kernel_width = weight.shape
    _, block_k, _ = sizes(c_in, c_out, kernel_width, stride, padding)
    small = c_in <= 4 and c_out <= 128 and kernel_height <= 8 and block_k <= 64
    return small and x.dtype in (torch.bfloat16, torch.float16, torch.float32)


def stem_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    activation: str,
    tile: Tile | None = None,
) -> Tensor:
    """Launch; x `[N, C, H, W]`, weight `[C_OUT, C, KH, KW]`; the result `[N, C_OUT, OH, OW]` is channels_last."""
    frames, c_in, height, width = x.shape
    c_out, _, kernel_height, kernel_width = weight.shape
    out_height = (height + 2 * padding - kernel_height) // stride + 1
    out_width = (width + 2 * padding - kernel_width) // stride + 1
    out = new_channels_last(x, frames, c_out, out_height, out_width)
    if out.numel() == 0:
        return out
    lead, block_k, block_c = sizes(c_in, c_out, kernel_width, stride, padding)
    if tile is None:
        tile = tile_for(kernel_height, block_k, block_c, x.itemsize, has_copy_engine(x))
    total = frames * out_height * triton.cdiv(out_width, PAIR)
    tiles = triton.cdiv(total, tile.BLOCK_M)
    if tile.PERSISTENT:
        tiles = smaller(tiles, tile.PERSISTENT * (multiprocessors(x.get_device()) if x.is_cuda else 1))
    arguments = {
        "x_ptr": as_rows(x),
        "weight_ptr": arranged(weight, stride, padding),
        "bias_ptr": None if bias is None else bias.contiguous(),
        "out_ptr": out,
        "total": total,
        "H": height,
        "W": width,
        "C": c_in,
        "OH": out_height,
        "OW": out_width,
        "C_OUT": c_out,
        "KH": kernel_height,
        "STRIDE": stride,
        "PADDING": padding,
        "LEAD": lead,
        "PAIR": PAIR,
        "BLOCK_C": block_c,
        "BLOCK_K": block_k,
        "BLOCK_M": tile.BLOCK_M,
        "KERNEL_ROWS": tile.KERNEL_ROWS,
        "PERSISTENT": tile.PERSISTENT > 0,
        "ACTIVATION": activation,
        "PRECISION": fp32_precision(),
    }
    launch(_stem_kernel, (tiles,), x, arguments, num_warps=tile.num_warps, num_stages=1)
    return out
