"""The shifted 1x1 convolution on the copy engine of Hopper and Blackwell (TMA): the equation of `shift_conv1x1.py`.

x is described twice: flat, `[rows, C_IN]`, for the channels that stay, and as boxes for those that are shifted,
`[2, clips, (num_segments - 1) * pixels, C_IN]`: all frames of a clip but its last, the past of the frame behind each,
and all but its first, the future of the frame before. A row that has no such frame lies outside of the box, where the
engine writes zeros: no mask in any loop. A tile whose rows lie in several clips adds up what each clip's box gives.

Folds are whole blocks of K here (`takes` says so); others, other dtypes and other GPUs take the plain kernel.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .activations import activate

# Channels of a block: one row of the 128-byte swizzle that the matrix units read; shifted ones by what divides
# their folds, no less than one step of a product of half precision.
BLOCK_K = 64
LEAST_K = 16
# Both ends of the copy engine want multiples of this.
VECTOR_BYTES = 16


class Tile(NamedTuple):
    """One way to cut the product into programs."""

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int
    num_stages: int
    # programs a multiprocessor that each take tile after tile; 0 for one program a tile
    PERSISTENT: int = 0
    # when the identity is read: after the products ("late"), or before them, by the engine ("engine") or by the
    # threads ("threads")
    IDENTITY: str = "late"
    # clips of a box; 0 reads boxes of one clip and the rest flat
    CLIPS: int = 0


@triton.jit
def _products(
    z, box_d, fold_weight_d, x_d, weight_d, first_row, n, clip_rows, pixels,
    C_IN: tl.constexpr, FIRST_END: tl.constexpr, SECOND_END: tl.constexpr, FUTURE_FIRST: tl.constexpr,
    BLOCK_M: tl.constexpr, FOLD_K: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    first_side: tl.constexpr = 1 if FUTURE_FIRST else 0
    if box_d is not None:
        folds: tl.constexpr = SECOND_END // FOLD_K
        clip = first_row // clip_rows
        r = first_row % clip_rows
        clips = (r + BLOCK_M - 1) // clip_rows + 1
        for step in range(0, clips * folds):
            k = step % folds * FOLD_K
            nth = step // folds
            side = tl.where(k < FIRST_END, first_side, 1 - first_side)
            at = r - nth * clip_rows - (1 - side) * pixels
            x = box_d.load([side, clip + nth, at, k]).reshape(BLOCK_M, FOLD_K)
            z = tl.dot(x, fold_weight_d.load([n, k]).T, z)
    for k in range(SECOND_END, C_IN, BLOCK_K):
        z = tl.dot(x_d.load([first_row, k]), weight_d.load([n, k]).T, z)
    return z


@triton.jit
def _boxed_products(
    z, box_d, fold_weight_d, clip, r, n, pixels,
    C_IN: tl.constexpr, FIRST_END: tl.constexpr, SECOND_END: tl.constexpr, FUTURE_FIRST: tl.constexpr,
    BLOCK_M: tl.constexpr, FOLD_K: tl.constexpr,
):  # fmt: skip
    first_dt: tl.constexpr = 1 if FUTURE_FIRST else -1
    for k in range(0, C_IN, FOLD_K):
        dt = tl.where(k < FIRST_END, first_dt, tl.where(k < SECOND_END, -first_dt, 0))
        x = box_d.load([clip, r + dt * pixels, k]).reshape(BLOCK_M, FOLD_K)
        z = tl.dot(x, fold_weight_d.load([n, k]).T, z)
    return z


@triton.jit
def _tile(
    box_d, fold_weight_d, x_d, weight_d, bias_ptr, identity_d, identity_ptr, out_d, tile, rows, clip_rows, pixels,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, FIRST_END: tl.constexpr, SECOND_END: tl.constexpr,
    FUTURE_FIRST: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    FOLD_K: tl.constexpr, BLOCK_K: tl.constexpr, CLIPS: tl.constexpr, IDENTITY: tl.constexpr,
):  # fmt: skip
    tiles_n: tl.constexpr = (C_OUT + BLOCK_N - 1) // BLOCK_N
    m = tile // tiles_n
    n = tile % tiles_n * BLOCK_N
    column = n + tl.arange(0, BLOCK_N)
    z = tl.full([BLOCK_M, BLOCK_N], 0, tl.float32)
    first_row = m * BLOCK_M
    if CLIPS == 0:
        if identity_d is not None and IDENTITY == "engine":
            z = identity_d.load([first_row, n]).to(tl.float32)
        if identity_ptr is not None:
            row = first_row + tl.arange(0, BLOCK_M)
            at = row.to(tl.int64)[:, None] * C_OUT + column[None, :]
            mask = (row < rows)[:, None] & (column < C_OUT)[None, :]
            identity = tl.load(identity_ptr + at, mask=mask, other=0)
        z = _products(
            z, box_d, fold_weight_d, x_d, weight_d, first_row, n, clip_rows, pixels,
            C_IN, FIRST_END, SECOND_END, FUTURE_FIRST, BLOCK_M, FOLD_K, BLOCK_K,
        )  # fmt: skip
        if identity_ptr is not None:
            z += identity.to(tl.float32)
        if identity_d is not None and IDENTITY == "late":
            z += identity_d.load([first_row, n]).to(tl.float32)
    else:
        BLOCK_R: tl.constexpr = BLOCK_M // CLIPS
        tiles_r = (clip_rows + BLOCK_R - 1) // BLOCK_R
        clip = m // tiles_r * CLIPS
        r = m % tiles_r * BLOCK_R
        z = _boxed_products(
            z, box_d, fold_weight_d, clip, r, n, pixels,
            C_IN, FIRST_END, SECOND_END, FUTURE_FIRST, BLOCK_M, FOLD_K,
        )  # fmt: skip
        if identity_d is not None:
            z += identity_d.load([clip, r, n]).reshape(BLOCK_M, BLOCK_N).to(tl.float32)
    if bias_ptr is not None:
        z += tl.load(bias_ptr + column, mask=column < C_OUT, other=0).to(tl.float32)[None, :]
    out = activate(z, ACTIVATION).to(out_d.dtype)
    if CLIPS == 0:
        out_d.store([first_row, n], out)
    else:
        out_d.store([clip, r, n], out.reshape(CLIPS, BLOCK_R, BLOCK_N))


@triton.jit
def _shift_conv1x1_tma_kernel(
    box_d,  # x by clips, None where nothing is shifted
    fold_weight_d,
    x_d,  # x flat
    weight_d,
    bias_ptr,
    identity_d,
    identity_ptr,
    out_d,
    rows,
    clip_rows,
    pixels,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    FIRST_END: tl.constexpr,
    SECOND_END: tl.constexpr,
    FUTURE_FIRST: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FOLD_K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PERSISTENT: tl.constexpr,
    CLIPS: tl.constexpr,
    IDENTITY: tl.constexpr,
):
    # One program owns BLOCK_M rows and BLOCK_N columns of the output, or, persistent, every so many-th such
    # tile. Tiles of the same rows follow one another, so that those rows of x are still in L2.
    if PERSISTENT:
        tiles_n: tl.constexpr = (C_OUT + BLOCK_N - 1) // BLOCK_N
        if CLIPS == 0:
            tiles = (rows + BLOCK_M - 1) // BLOCK_M * tiles_n
        else:
            BLOCK_R: tl.constexpr = BLOCK_M // CLIPS
            clips = rows // clip_rows
            tiles = (clips + CLIPS - 1) // CLIPS * ((clip_rows + BLOCK_R - 1) // BLOCK_R) * tiles_n
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            _tile(
                box_d, fold_weight_d, x_d, weight_d, bias_ptr, identity_d, identity_ptr, out_d, tile, rows, clip_rows,
                pixels, C_IN, C_OUT, FIRST_END, SECOND_END, FUTURE_FIRST, ACTIVATION, BLOCK_M, BLOCK_N, FOLD_K,
                BLOCK_K, CLIPS, IDENTITY,
            )  # fmt: skip
    else:
        _tile(
            box_d, fold_weight_d, x_d, weight_d, bias_ptr, identity_d, identity_ptr, out_d, tl.program_id(0), rows,
            clip_rows, pixels, C_IN, C_OUT, FIRST_END, SECOND_END, FUTURE_FIRST, ACTIVATION, BLOCK_M, BLOCK_N, FOLD_K,
            BLOCK_K, CLIPS, IDENTITY,
        )  # fmt: skip


def fold_block(first_end: int, second_end: int) -> int:
    """Channels of a block that lies in one fold: the largest power of two up to `BLOCK_K`."""
    block = BLOCK_K
    while first_end % block or second_end % block:
        block //= 2
    return block


def takes(x: Tensor, c_out: int, first_end: int, second_end: int) -> bool:
    """Whether the kernel is made for these: half precision, folds of whole blocks, rows of whole vectors."""
    c_in = x.shape[1]
    whole = (c_in * x.itemsize) % VECTOR_BYTES == 0 and (c_out * x.itemsize) % VECTOR_BYTES == 0
    return (
        x.dtype in (torch.bfloat16, torch.float16) and whole and fold_block(first_end, second_end) >= LEAST_K
    )


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    identity: Tensor | None,
    out: Tensor,
    num_segments: int,
    first_end: int,
    second_end: int,
    future_first: bool,
    activation: str,
    tile: Tile,
    multiprocessors: int,
) -> None:
    """Fill `out`. x, identity and out are `[frames, H, W, C]` in memory, weight is `[C_OUT, C_IN]`."""
    frames, height, width, c_in = x.shape
    c_out, pixels = weight.shape[0], height * width
    rows, clip_rows = frames * pixels, num_segments * pixels
    clips = frames // num_segments
    fold_k = fold_block(first_end, second_end)
    block_m, block_n = tile.BLOCK_M, tile.BLOCK_N
    boxed = second_end > 0 and num_segments > 1
    if tile.CLIPS:
        block_r = block_m // tile.CLIPS
        tiles = triton.cdiv(clips, tile.CLIPS) * triton.cdiv(clip_rows, block_r)
        out_shape, out_block = (clips, clip_rows, c_out), [tile.CLIPS, block_r, block_n]
        boxes, box_block, boxed = x.view(clips, clip_rows, c_in), [tile.CLIPS, block_r, fold_k], True
    else:
        tiles = triton.cdiv(rows, block_m)
        out_shape, out_block = (rows, c_out), [block_m, block_n]
        sides, strides = (2, clips, clip_rows - pixels, c_in), (pixels * c_in, clip_rows * c_in, c_in, 1)
        boxes, box_block = x.as_strided(sides, strides) if boxed else x, [1, 1, block_m, fold_k]
    tiles *= triton.cdiv(c_out, block_n)

    described = TensorDescriptor.from_tensor
    by_threads = identity is not None and tile.IDENTITY == "threads"
    grid = (min(tiles, tile.PERSISTENT * multiprocessors) if tile.PERSISTENT else tiles,)
    _shift_conv1x1_tma_kernel[grid](
        described(boxes, box_block) if boxed else None,
        described(weight, [block_n, fold_k]) if boxed else None,
        None if tile.CLIPS else described(x.view(rows, c_in), [block_m, BLOCK_K]),
        None if tile.CLIPS else described(weight, [block_n, BLOCK_K]),
        bias,
        None if identity is None or by_threads else described(identity.view(out_shape), out_block),
        identity if by_threads else None,
        described(out.view(out_shape), out_block),
        rows,
        clip_rows,
        pixels,
        C_IN=c_in,
        C_OUT=c_out,
        FIRST_END=first_end,
        SECOND_END=second_end,
        FUTURE_FIRST=future_first,
        ACTIVATION=activation,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        FOLD_K=fold_k,
        BLOCK_K=BLOCK_K,
        PERSISTENT=tile.PERSISTENT > 0,
        CLIPS=tile.CLIPS,
        IDENTITY=tile.IDENTITY,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
