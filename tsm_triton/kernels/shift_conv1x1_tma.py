"""The shifted 1x1 convolution on the copy engine of Hopper and Blackwell (TMA): the equation of `shift_conv1x1.py`.

x is described as boxes, `[clips, num_segments * pixels, C_IN]`. A tile lies in one clip, a block of K in one fold, and
a shifted block is the same box `pixels` rows further or back: rows outside of the clip are outside of the box, where
the engine writes zeros. No mask in any loop. Without a shift all rows are one clip.

Only where an H200 was faster with it than with the plain kernel (`tile_for` says where), which takes the rest. Boxes of
several clips, for clips that end inside a tile, gave wrong results there with triton 3.6: a race.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import activate
from .launch import boxes, smaller
from .launch import launch as launch_kernel
from .layout import VECTOR_BYTES, is_aligned, is_traced

# Channels of a block: one row of the 128-byte swizzle that the matrix units read; fewer where folds are no multiples,
# down to what is still faster.
BLOCK_K = 64
LEAST_K = 32


class Tile(NamedTuple):
    """One way to cut the product into programs."""

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int
    num_stages: int
    # one program a multiprocessor that takes tile after tile
    PERSISTENT: bool = False


@triton.jit
def _tile(
    x_d, weight_d, bias_ptr, identity_ptr, out_d, tile, clip_rows, pixels,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, FIRST_END: tl.constexpr, SECOND_END: tl.constexpr,
    REVERSE: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n: tl.constexpr = (C_OUT + BLOCK_N - 1) // BLOCK_N
    tiles_r = (clip_rows + BLOCK_M - 1) // BLOCK_M
    n = tile % tiles_n * BLOCK_N
    r = tile // tiles_n % tiles_r * BLOCK_M
    clip = tile // (tiles_n * tiles_r)
    column = n + tl.arange(0, BLOCK_N)
    in_columns = column < C_OUT
    if identity_ptr is not None:
        # before the products, which hide it
        row = r + tl.arange(0, BLOCK_M)
        at = (clip.to(tl.int64) * clip_rows + row)[:, None] * C_OUT + column[None, :]
        mask = (row < clip_rows)[:, None] & in_columns[None, :]
        identity = tl.load(identity_ptr + at, mask=mask, other=0)
    first_dt: tl.constexpr = -1 if REVERSE else 1
    z = tl.full([BLOCK_M, BLOCK_N], 0, tl.float32)
    for k in range(0, C_IN, BLOCK_K):
        dt = tl.where(k < FIRST_END, first_dt, tl.where(k < SECOND_END, -first_dt, 0))
        x = x_d.load([clip, r + dt * pixels, k]).reshape(BLOCK_M, BLOCK_K)
        z = tl.dot(x, weight_d.load([n, k]).T, z)
    if identity_ptr is not None:
        z += identity.to(tl.float32)
    if bias_ptr is not None:
        z += tl.load(bias_ptr + column, mask=in_columns, other=0).to(tl.float32)[None, :]
    out = activate(z, ACTIVATION).to(out_d.dtype)
    out_d.store([clip, r, n], out.reshape(1, BLOCK_M, BLOCK_N))


@triton.jit
def _shift_conv1x1_tma_kernel(
    x_d,
    weight_d,
    bias_ptr,
    identity_ptr,
    out_d,
    tiles,
    clip_rows,
    pixels,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    FIRST_END: tl.constexpr,
    SECOND_END: tl.constexpr,
    REVERSE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PERSISTENT: tl.constexpr,
):
    # One program owns BLOCK_M rows of a clip and BLOCK_N columns of the output, or, persistent, every so many-th
    # such tile. Tiles of the same rows follow one another, so that those rows of x are still in L2.
    if PERSISTENT:
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            _tile(
                x_d, weight_d, bias_ptr, identity_ptr, out_d, tile, clip_rows, pixels,
                C_IN, C_OUT, FIRST_END, SECOND_END, REVERSE, ACTIVATION, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    else:
        _tile(
            x_d, weight_d, bias_ptr, identity_ptr, out_d, tl.program_id(0), clip_rows, pixels,
            C_IN, C_OUT, FIRST_END, SECOND_END, REVERSE, ACTIVATION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip


def fold_block(first_end: int, second_end: int) -> int:
    """Channels of a block that lies in one fold: the largest power of two up to `BLOCK_K`."""
    block = BLOCK_K
    while first_end % block or second_end % block:
        block //= 2
    return block


def tile_for(
    c_in: int, c_out: int, clips: int, clip_rows: int, added: bool, multiprocessors: int
) -> Tile | None:
    """What was fastest on an H200 in bf16; None where the plain kernel was, or where much of the tiles is outside.

    At 256 frames of 14x14 pixels, 1024 -> 256 is as fast as the plain kernel (54 us); no other shape measured is.
    """
    if added:
        tile = Tile(128, 128, 8, 3) if c_in >= 128 else None
    elif c_in >= 512:
        # the width whose last round of tiles leaves fewer multiprocessors idle
        tile = Tile(128, 128, 4, 4, PERSISTENT=True)
        wide = Tile(128, 256, 8, 3, PERSISTENT=True)
        if c_out % 256 == 0 and _time(wide, c_out, clips, clip_rows, multiprocessors) <= _time(
            tile, c_out, clips, clip_rows, multiprocessors
        ):
            tile = wide
    else:
        tile = Tile(128, 128, 4, 3) if c_in >= 256 else None
    if tile is None:
        return None
    tiles = _tiles(tile, c_out, clips, clip_rows)
    inside = clips * clip_rows * c_out
    enough = multiprocessors <= tiles and 4 * inside >= 3 * tiles * tile.BLOCK_M * tile.BLOCK_N
    return tile if enough else None


def _tiles(tile: Tile, c_out: int, clips: int, clip_rows: int) -> int:
    return clips * triton.cdiv(clip_rows, tile.BLOCK_M) * triton.cdiv(c_out, tile.BLOCK_N)


def _time(tile: Tile, c_out: int, clips: int, clip_rows: int, multiprocessors: int) -> int:
    return triton.cdiv(_tiles(tile, c_out, clips, clip_rows), multiprocessors) * tile.BLOCK_N


def takes(x: Tensor, weight: Tensor, identity: Tensor | None, first_end: int, second_end: int) -> bool:
    """Whether the kernel is made for these: half precision, folds of whole blocks, rows of whole vectors."""
    whole = all(c * x.itemsize % VECTOR_BYTES == 0 for c in weight.shape)
    half = x.dtype in (torch.bfloat16, torch.float16)
    aligned = is_traced(x) or is_aligned(x, weight, identity)
    return half and whole and aligned and fold_block(first_end, second_end) >= LEAST_K


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    identity: Tensor | None,
    out: Tensor,
    clip_rows: int,
    pixels: int,
    first_end: int,
    second_end: int,
    reverse: bool,
    activation: str,
    tile: Tile,
    multiprocessors: int,
) -> None:
    """Fill `out`: x, identity and out `[rows, C]` in memory, clips of `clip_rows` rows, weight `[C_OUT, C_IN]`."""
    c_out, c_in = weight.shape
    clips = x.numel() // (clip_rows * c_in)
    block_k = fold_block(first_end, second_end)
    tiles = _tiles(tile, c_out, clips, clip_rows)
    arguments = {
        "x_d": boxes(x, (clips, clip_rows, c_in), [1, tile.BLOCK_M, block_k]),
        "weight_d": boxes(weight, (c_out, c_in), [tile.BLOCK_N, block_k]),
        "bias_ptr": bias,
        "identity_ptr": identity,
        "out_d": boxes(out, (clips, clip_rows, c_out), [1, tile.BLOCK_M, tile.BLOCK_N]),
        "tiles": tiles,
        "clip_rows": clip_rows,
        "pixels": pixels,
        "C_IN": c_in,
        "C_OUT": c_out,
        "FIRST_END": first_end,
        "SECOND_END": second_end,
        "REVERSE": reverse,
        "ACTIVATION": activation,
        "BLOCK_M": tile.BLOCK_M,
        "BLOCK_N": tile.BLOCK_N,
        "BLOCK_K": block_k,
        "PERSISTENT": tile.PERSISTENT,
    }
    grid = (smaller(tiles, multiprocessors) if tile.PERSISTENT else tiles,)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    launch_kernel(_shift_conv1x1_tma_kernel, grid, x, arguments, **options)
