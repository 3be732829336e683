"""A 1x1 convolution that reads its input shifted: one matrix product, no traffic for the shift.

    out[r, o] = act(sum over k of x[r + dt(k) * pixels, k] * weight[o, k] + bias[o] + identity[r, o])
    dt(k) = 1 for channels k of the first group, -1 for those of the second, 0 for the rest; REVERSE exchanges the two
    r = frame * pixels + pixel; a term is zero where its frame lies outside r's clip

One frame of a stream, whose past is in a cache of the first channels:

    out[r, o] = act(sum over k of (cache if k < fold else x)[r, k] * weight[o, k] + bias[o] + identity[r, o])
    kept[r, k] = x[r, k] for k < fold

Layout: channels_last, so that x, identity and out are matrices of rows r; another input is copied to it.
The backward is made of torch's own convolutions and the adjoint shift, in `ops`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import shift_conv1x1_tma as copy_engine
from .activations import activate
from .device import device_guard, fp32_precision, has_copy_engine, multiprocessors
from .launch import hint, launch_into_graph
from .layout import as_rows, is_traced, new_channels_last
from .triton_private import is_interpreted

# Bytes of one row of a tile of x and of weight: one row of the 128-byte swizzle that the matrix units read,
# 64 channels of half precision, 32 of fp32.
K_BYTES = 128
# Row tiles that share their columns' weights in L2 before the next columns begin.
GROUP_M = 8

# Outputs of a program, warps and stages of loads. x is read once for every BLOCK_N columns, so wide tiles
# suit large C_out and small ones small layers. All compile without a spill for sm_80 to sm_100 and gfx942
# (ptxas: at most 255 registers); 128 x 256 does not (320 bytes on sm_90), so it is not among them.
CONFIGS = [
    triton.Config({"BLOCK_M": 128, "BLOCK_N": 64, "K_BYTES": K_BYTES}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_M": 64, "BLOCK_N": 64, "K_BYTES": K_BYTES}, num_warps=4, num_stages=4),
    triton.Config({"BLOCK_M": 64, "BLOCK_N": 128, "K_BYTES": K_BYTES}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_M": 128, "BLOCK_N": 128, "K_BYTES": K_BYTES}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_M": 256, "BLOCK_N": 64, "K_BYTES": K_BYTES}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_M": 64, "BLOCK_N": 256, "K_BYTES": K_BYTES}, num_warps=8, num_stages=3),
]
# The one that keeps its sums in registers when they are twice as wide.
FLOAT64_CONFIG = CONFIGS[1]


# Tiles to try by columns of the output, best guesses first, as measured on an H200; few, because each costs the first
# call of a shape half a second. Few rows want small tiles, or most of the GPU idles.
_TRIED = 3
FEW_ROWS = 4096


def _worth_trying(configs: list[triton.Config], _: dict[str, Any], **arguments: Any) -> list[triton.Config]:
    """A few tiles, none that needs a third more columns than narrow ones, and none that spills in float64."""
    if arguments["x_ptr"].dtype == torch.float64:
        return [FLOAT64_CONFIG]
    c_out = arguments["C_OUT"]
    if arguments["rows"] <= FEW_ROWS:
        order = [(64, 64), (64, 128), (128, 64)]
    elif c_out <= 64:
        order = [(128, 64), (256, 64), (64, 64)]
    else:
        order = [(64, 256)] * (c_out >= 256) + [(128, 128), (64, 128), (128, 64)]
    least = triton.cdiv(c_out, 64) * 64
    by_tile = {(config.kwargs["BLOCK_M"], config.kwargs["BLOCK_N"]): config for config in configs}
    return [by_tile[tile] for tile in order if 3 * triton.cdiv(c_out, tile[1]) * tile[1] <= 4 * least][
        :_TRIED
    ]


def _quick_bench(call: Callable[[], None], quantiles: Sequence[float]) -> Any:
    """Triton's own takes 125 ms a tile."""
    return triton.testing.do_bench(call, warmup=5, rep=20, quantiles=quantiles)


def _rows_bucket(rows: Any) -> int:
    """Row counts that share a tuning: the next power of four, and all beyond what fills any GPU."""
    return min(4 ** triton.cdiv((hint(rows) - 1).bit_length(), 2), 4**8)


@triton.autotune(
    CONFIGS,
    key=["rows_bucket", "C_IN", "C_OUT", "PRECISION"],  # and every dtype, which triton adds
    prune_configs_by={"early_config_prune": _worth_trying},
    do_bench=_quick_bench,
    cache_results=True,
)
@triton.jit(do_not_specialize=["rows_bucket"])
def _shift_conv1x1_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    identity_ptr,
    out_ptr,
    # of a stream, else None
    cache_ptr,
    kept_ptr,
    rows,
    pixels,
    num_segments,
    rows_bucket,  # read by the tuner alone
    # constants, because the widths of accesses follow from what divides them
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    FIRST_END: tl.constexpr,
    SECOND_END: tl.constexpr,
    REVERSE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    K_BYTES: tl.constexpr,
):
    # One program owns BLOCK_M rows and BLOCK_N columns of the output. Programs run down GROUP_M row tiles
    # before they take the next columns, so that those rows of x are still in L2.
    tiles_m = (rows + BLOCK_M - 1) // BLOCK_M
    tiles_n: tl.constexpr = (C_OUT + BLOCK_N - 1) // BLOCK_N
    group = tl.program_id(0) // (GROUP_M * tiles_n)
    in_group = tl.program_id(0) % (GROUP_M * tiles_n)
    group_m = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    tile_m = group * GROUP_M + in_group % group_m
    tile_n = in_group // group_m

    # the tile's first row in 64 bits, inside the tile 32
    start = tile_m.to(tl.int64) * BLOCK_M
    row = tl.arange(0, BLOCK_M)
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = row < rows - start
    in_columns = column < C_OUT
    first_t = (start // pixels % num_segments).to(tl.int32)
    t = (first_t + ((start % pixels).to(tl.int32) + row) // pixels) % num_segments

    dtype = x_ptr.dtype.element_ty
    wide: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    BLOCK_K: tl.constexpr = K_BYTES * 8 // dtype.primitive_bitwidth
    first_dt: tl.constexpr = -1 if REVERSE else 1
    x_rows = x_ptr + start * C_IN + row * C_IN
    weight_rows = weight_ptr + column * C_IN
    z = tl.full([BLOCK_M, BLOCK_N], 0, wide)
    for k_start in range(0, C_IN, BLOCK_K):
        k = k_start + tl.arange(0, BLOCK_K)
        in_k = k < C_IN
        if cache_ptr is None:
            # which frame a channel comes from: the same for a whole vector where the folds are multiples of it
            dt = tl.where(k < FIRST_END, first_dt, tl.where(k < SECOND_END, -first_dt, 0))
            source_t = t[:, None] + dt[None, :]
            mask = in_rows[:, None] & in_k[None, :] & (source_t >= 0) & (source_t < num_segments)
            source = k + dt * (pixels * C_IN)
            x = tl.load(x_rows[:, None] + source[None, :], mask=mask, other=0)
        else:
            in_fold = in_rows[:, None] & (k < FIRST_END)[None, :]
            in_cache = start * FIRST_END + (row[:, None] * FIRST_END + k[None, :])
            now = tl.load(x_rows[:, None] + k[None, :], mask=in_rows[:, None] & in_k[None, :], other=0)
            past = tl.load(cache_ptr + in_cache, mask=in_fold, other=0)
            # the programs of other columns read the cache too, so kept is another tensor
            if tile_n == 0:
                tl.store(kept_ptr + in_cache, now, mask=in_fold)
            x = tl.where(in_fold, past, now)
        weight_mask = in_columns[None, :] & in_k[:, None]
        weight = tl.load(weight_rows[None, :] + k[:, None], mask=weight_mask, other=0)
        z = tl.dot(x, weight, z, input_precision=PRECISION, out_dtype=wide)

    at = start * C_OUT + (row[:, None] * C_OUT + column[None, :])
    mask = in_rows[:, None] & in_columns[None, :]
    if identity_ptr is not None:
        z += tl.load(identity_ptr + at, mask=mask, other=0).to(wide)
    # last: before the identity it makes ptxas spill 8 bytes for sm_100, where C_IN is one block
    if bias_ptr is not None:
        z += tl.load(bias_ptr + column, mask=in_columns, other=0).to(wide)[None, :]
    tl.store(out_ptr + at, activate(z, ACTIVATION).to(dtype), mask=mask)


# The interpreter cannot be timed: it runs the first configuration.
_INTERPRETED = is_interpreted(_shift_conv1x1_kernel.fn)


def shift_conv1x1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    identity: Tensor | None,
    num_segments: int,
    n_first: int,
    n_second: int,
    reverse: bool,
    activation: str,
) -> Tensor:
    counts = {
        "num_segments": num_segments,
        "FIRST_END": n_first,
        "SECOND_END": n_first + n_second,
        "REVERSE": reverse,
    }
    return _launch(x, weight, bias, identity, activation, None, None, counts)


def shift_step_conv1x1(
    x: Tensor, cache: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    fold = cache.shape[1]
    counts = {"num_segments": 1, "FIRST_END": fold, "SECOND_END": fold, "REVERSE": True}
    kept = torch.empty_like(cache)
    rows = torch.empty_like(cache, memory_format=torch.channels_last)
    rows = kept if kept.stride() == rows.stride() else rows
    out = _launch(x, weight, bias, identity, activation, cache, rows, counts)
    return out, kept if rows is kept else kept.copy_(rows)


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    identity: Tensor | None,
    activation: str,
    cache: Tensor | None,
    kept: Tensor | None,
    counts: dict[str, Any],
) -> Tensor:
    frames, c_in, height, width = x.shape
    c_out = weight.shape[0]
    out = new_channels_last(x, frames, c_out, height, width)
    if out.numel() == 0:
        return out
    rows, pixels = frames * height * width, height * width
    x, weight = as_rows(x), weight.reshape(c_out, c_in).contiguous()
    bias = None if bias is None else bias.contiguous()
    identity = None if identity is None else as_rows(identity)
    if cache is None and _by_copy_engine(x, weight, bias, identity, out, activation, rows, pixels, **counts):
        return out

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (triton.cdiv(rows, meta["BLOCK_M"]) * triton.cdiv(c_out, meta["BLOCK_N"]),)

    arguments = {
        "x_ptr": x,
        "weight_ptr": weight,
        "bias_ptr": bias,
        "identity_ptr": identity,
        "out_ptr": out,
        "cache_ptr": None if cache is None else as_rows(cache),
        "kept_ptr": kept,
        "rows": rows,
        "pixels": pixels,
        "rows_bucket": _rows_bucket(rows),
        "C_IN": c_in,
        "C_OUT": c_out,
        "ACTIVATION": activation,
        "PRECISION": fp32_precision(),
        "GROUP_M": GROUP_M,
        **counts,
    }
    if is_traced(x):
        tiles = _worth_trying(CONFIGS, {}, **{**arguments, "rows": hint(rows)})
        launch_into_graph(_shift_conv1x1_kernel.fn, grid, arguments, tiles)
        return out
    with device_guard(x):
        if _INTERPRETED:
            _shift_conv1x1_kernel.fn[grid](**arguments, **CONFIGS[0].kwargs)
        else:
            _shift_conv1x1_kernel[grid](**arguments)
    return out


def _by_copy_engine(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    identity: Tensor | None,
    out: Tensor,
    activation: str,
    rows: int,
    pixels: int,
    num_segments: int,
    FIRST_END: int,
    SECOND_END: int,
    REVERSE: bool,
) -> bool:
    """Whether the copy engine's kernel was faster for such a shape, and has filled `out`."""
    if not has_copy_engine(x) or not copy_engine.takes(x, weight, identity, FIRST_END, SECOND_END):
        return False
    clip_rows = num_segments * pixels if SECOND_END else rows
    c_out, c_in = weight.shape
    processors = multiprocessors(x.get_device())
    added = identity is not None
    tile = copy_engine.tile_for(c_in, c_out, hint(rows // clip_rows), hint(clip_rows), added, processors)
    if tile is None:
        return False
    copy_engine.launch(
        x, weight, bias, identity, as_rows(out), clip_rows, pixels,
        FIRST_END, SECOND_END, REVERSE, activation, tile, processors,
    )  # fmt: skip
    return True
