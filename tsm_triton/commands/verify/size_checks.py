"""What `tsm-triton verify` checks of sizes that drawn cases do not have: many tiles, large maps, 64-bit offsets."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor

from ... import ops, reference
from ...ops import copies
from ...testing import (
    LAYOUTS,
    ShiftCase,
    assert_close,
    assert_same_bits,
    fused,
    guarded_memory,
    moved_to,
    properties,
)
from ...testing.cases import CHANNEL_DIMS

__all__ = [
    "copy_engine",
    "frames_beyond_32_bits",
    "large_maps",
    "launched",
    "many_tiles",
    "tensors_beyond_32_bits",
]


def frames_beyond_32_bits(device: str) -> str:
    """Frames, and rows of one, that lie 2**31 elements apart; and frames that count as larger than that."""
    from ...kernels import temporal_shift as kernel

    far = _far_apart(device)
    for x, channel_dim in far:
        shift = min(2, len(x)), 1, 2, False, channel_dim
        expected = reference.temporal_shift(x.contiguous().cpu(), *shift)
        # the kernel itself: a copy would lie close together
        with mock.patch.object(Tensor, "contiguous", side_effect=AssertionError("expected no copy, got one")):
            actual = kernel.temporal_shift(x, *shift)
        assert_same_bits(actual.cpu(), expected)
    with mock.patch.object(kernel, "INT32_FRAME", 0):
        for layout in LAYOUTS:
            case = ShiftCase(2, 3, channels=24, height=3, width=3, n_first=3, n_second=5, layout=layout)
            properties.matches_reference(kernel.temporal_shift, case, device)
    return f"{len(far) + len(LAYOUTS)} calls"


def _far_apart(device: str) -> list[tuple[Tensor, int]]:
    """Small tensors, the last element 2.25 * 2**30 behind the first, with their channel axes; none without memory."""
    # Few of the 4 GiB are touched, and a CPU gives no memory to the others. Before the tensors is room, for an offset
    # that wraps would read memory of nobody's.
    apart, room = 3 * 2**28, 7 * 2**28
    size = room + 3 * apart + 256
    at = torch.device(device)
    if at.type == "cuda" and torch.cuda.mem_get_info(at)[0] < 2 * size:
        return []
    try:
        storage = torch.UntypedStorage(size, device=at)
    except RuntimeError:  # where addresses are limited
        return []
    whole = torch.empty(0, dtype=torch.int8, device=at).set_(storage)  # pyright: ignore[reportArgumentType]
    # of the last, one frame, an odd stride: its rows are counted in elements
    strides = {
        (4, 16, 4): (apart, 4, 1),
        (4, 4, 16): (apart, 16, 1),
        (1, 4, 4, 4): (4 * apart, apart + 1, 4, 1),
    }
    found = [whole.as_strided(shape, stride, room) for shape, stride in strides.items()]
    for x in found:
        x.copy_(torch.arange(x.numel()).view(x.shape))
    return list(zip(found, (1, -1, 2), strict=True))


def many_tiles(device: str) -> str:
    """Several tiles in every direction, the last one cut: small tiles, which take less time than large maps."""
    from ...kernels import depthwise, shift_conv1x1, stem

    maps = ShiftCase(
        2, 3, channels=20, height=11, width=9, n_first=3, n_second=5, layout="channels_last", seed=3
    )
    calls: list[Callable[[], None]] = []
    for form in range(len(fused.DEPTHWISE_FORMS)):
        case = replace(maps, clips=1, num_segments=1, height=5, width=7, seed=16 * form + 1)
        op = partial(_depthwise_in, depthwise.Tile(4, 16, 2))
        calls.append(partial(fused.depthwise_matches, op, case, "relu6", device))
    for form, (size, _, _) in enumerate(fused.STEM_FORMS):
        case = replace(maps, dtype=torch.float16, seed=16 * form + 1)
        # all rows of the kernel in one product where a program goes through several tiles
        tiles = [stem.Tile(16, 1, 4)]
        if _has_ranges(device):
            tiles.append(stem.Tile(16, 1 << (size - 1).bit_length(), 4, PERSISTENT=2))
        ops_in = [partial(_stem_in, tile) for tile in tiles]
        calls += [partial(fused.stem_matches, op, case, 40, "relu", device) for op in ops_in]
    # 594 rows are 5 tiles of 128 or 10 of 64: more than go before the next columns
    calls.append(partial(fused.conv_matches, ops.shift_conv1x1, maps, 70, "relu", device))
    calls.append(partial(fused.step_conv_matches, ops.shift_step_conv1x1, maps, 70, "relu", device))
    with (
        mock.patch.object(shift_conv1x1, "GROUP_M", 2),
        mock.patch.object(stem, "multiprocessors", return_value=1),
    ):
        for call in calls:
            with guarded_memory():
                call()
    return f"{len(calls)} calls"


def _has_ranges(device: str) -> bool:
    """Whether `range(tl.program_id(0), ...)` can be run: the interpreter of triton 3.6 cannot."""
    return torch.device(device).type == "cuda" or not triton.__version__.startswith("3.6")


def _depthwise_in(tile: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *form: Any) -> Tensor:
    from ...kernels import depthwise

    (stride, _), padding, (dilation, _), activation = form
    return depthwise.depthwise_convolution(
        x, weight, bias, stride, tuple(padding), dilation, activation, tile
    )


def _stem_in(tile: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *form: Any) -> Tensor:
    from ...kernels import stem

    (stride, _), (padding, _), activation = form
    return stem.stem_convolution(x, weight, bias, stride, padding, activation, tile)


def large_maps(device: str) -> str:
    """Every map counts as large, of which a CPU copies each part by itself."""
    with mock.patch.object(copies, "_SMALL", 0):
        for layout in CHANNEL_DIMS:
            for n_first, n_second in ((3, 5), (0, 0), (24, 0)):
                case = ShiftCase(
                    2, 3, channels=24, height=3, width=3, n_first=n_first, n_second=n_second, layout=layout
                )
                with guarded_memory():
                    properties.matches_reference(_copied, case, device)
    return f"{3 * len(CHANNEL_DIMS)} calls"


def _copied(x: Tensor, *shift: Any) -> Tensor:
    return copies.copied(x, copies.plan_copies(x.shape, x.stride(), int(x.storage_offset()), *shift))


def copy_engine(device: str) -> str:
    """The 1x1 convolution of Hopper and Blackwell, of clips and columns that end inside a tile."""
    from ...kernels import shift_conv1x1_tma as kernel

    at = torch.device(device)
    if at.type == "cuda" and (torch.version.hip or torch.cuda.get_device_capability(at)[0] not in (9, 10)):
        return "not here"
    tile = kernel.Tile(32 if at.type == "cpu" else 128, 32, 4, 2)
    # of a residual alone, of a bias and a weight of rank 4; with a program for several tiles
    runs = [(2, False), (5, False)] + [(5, True)] * _has_ranges(device)
    for seed, persistent in runs:
        tile = tile._replace(PERSISTENT=persistent)
        case = ShiftCase(
            2,
            num_segments=3,
            channels=128,
            height=3,
            width=4,
            n_first=64,
            n_second=32,
            reverse=bool(seed & 1),
            layout="channels_last",
            dtype=torch.float16,
            seed=seed,
        )
        arguments = fused.conv_arguments(case, 40, "relu")
        values: list[Any] = [moved_to(x, device) if isinstance(x, Tensor) else x for x in arguments]
        assert_close(launched(*values, tile=tile), reference.shift_conv1x1(*arguments), roundings=2)
    return f"{len(runs)} calls"


def launched(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    identity: Tensor | None,
    num_segments: int,
    n_first: int,
    n_second: int,
    reverse: bool,
    activation: str,
    tile: Any,
    multiprocessors: int = 3,
) -> Tensor:
    """`ops.shift_conv1x1` of maps `[frames, C, H, W]` by the copy engine's kernel, whatever `ops` would choose."""
    from ...kernels import shift_conv1x1_tma as kernel

    x = x.movedim(1, -1).contiguous()
    identity = None if identity is None else identity.movedim(1, -1).contiguous()
    frames, height, width, _ = x.shape
    weight, pixels = weight.flatten(1), height * width
    out = x.new_empty(frames, height, width, len(weight))
    clip_rows = pixels * (num_segments if n_first + n_second else frames)
    ends = (n_first, n_first + n_second)
    assert kernel.takes(x, weight, identity, *ends)
    kernel.launch(
        x, weight, bias, identity, out, clip_rows, pixels, *ends, reverse, activation, tile, multiprocessors
    )  # fmt: skip
    return out.movedim(-1, 1)


def tensors_beyond_32_bits(device: str) -> str:
    """More than 2**31 elements, where there is a GPU to hold them; their shapes everywhere."""
    for shape in ((2**16, 2**16, 2), (8, 2**33)):
        assert ops.temporal_shift(torch.empty(shape, device="meta"), 8, 1, 1, False, 1).shape == shape
    if torch.device(device).type != "cuda":
        return "shapes only"
    x = torch.empty(8, 64, 2049, 2048, dtype=torch.int8, device=device).random_(-128, 128)
    y = ops.temporal_shift(x, 8, 8, 8, False, 1)
    assert torch.equal(y[:-1, :8], x[1:, :8]), "expected the next frame's channels"
    assert torch.equal(y[1:, 8:16], x[:-1, 8:16]), "expected the previous frame's channels"
    assert torch.equal(y[:, 16:], x[:, 16:]), "expected the other channels unchanged"
    assert not y[-1, :8].any(), "expected zeros behind the clip's end"
    assert not y[0, 8:16].any(), "expected zeros before the clip's start"
    return "2 GiB"
