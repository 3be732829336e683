"""The 1x1 convolution on the copy engine: what it computes, and which calls are its."""

from typing import Any

import pytest
import torch
import triton

from tsm_triton import ops, reference
from tsm_triton.commands.verify.size_checks import launched
from tsm_triton.kernels import shift_conv1x1 as plain
from tsm_triton.kernels import shift_conv1x1_tma as kernel
from tsm_triton.testing import assert_close, assert_same_bits

HAS_CUDA = torch.cuda.is_available()
# its interpreter makes no number of a range's bound with NumPy 2
ranges = pytest.mark.skipif(
    not HAS_CUDA and triton.__version__.startswith("3.6"), reason="triton 3.6 interprets no range of a launch"
)
persistent = pytest.mark.parametrize(
    "persistent", [pytest.param(False, id="tile"), pytest.param(True, id="persistent", marks=ranges)]
)
H200 = 132  # multiprocessors
SHIFTED = [(256, 128, 56), (512, 128, 28), (512, 256, 28), (1024, 256, 14), (1024, 512, 14), (2048, 512, 7)]
ADDED = [(128, 512, 28), (256, 1024, 14), (512, 2048, 7)]


@pytest.fixture
def device(monkeypatch) -> str:
    if HAS_CUDA:
        if torch.version.hip is not None or torch.cuda.get_device_capability()[0] not in (9, 10):
            pytest.skip("needs the copy engine of Hopper or Blackwell")
        return "cuda"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return "cpu"


def arguments(frames, c_in, c_out, side, added, dtype=torch.float16) -> Any:
    x = torch.randn(frames, c_in, side, side + 1).to(dtype)
    weight = torch.randn(c_out, c_in).div(c_in**0.5).to(dtype)
    identity = torch.randn(frames, c_out, side, side + 1).to(dtype) if added else None
    return x, weight, torch.randn(c_out).to(dtype), identity


def to(device, values) -> Any:
    """There, images in channels_last."""
    last = [
        v.movedim(1, -1).contiguous().movedim(-1, 1) if v is not None and v.dim() == 4 else v for v in values
    ]
    return [None if v is None else v.to(device) for v in last]


@persistent
@pytest.mark.parametrize(
    ("shift", "c_in", "added"),
    [
        ((4, 32, 32, False), 128, False),
        ((2, 64, 32, True), 136, True),
        ((3, 64, 0, True), 128, False),
        ((1, 32, 32, False), 128, True),
        ((4, 0, 0, False), 72, True),
    ],
)
def test_matches_the_reference(device, shift, c_in, added, persistent):
    # rows that end inside a tile and a clip, columns that end inside a tile
    values = arguments(12, c_in, 40, 3, added)
    tile = (
        kernel.Tile(32, 32, 4, 2, persistent) if device == "cpu" else kernel.Tile(128, 32, 4, 2, persistent)
    )
    out = launched(*to(device, values), *shift, "relu", tile)
    expected: list[Any] = [*values, *shift, "relu"]
    assert_close(out, reference.shift_conv1x1(*expected), roundings=2)


def test_a_clip_that_holds_no_numbers_reaches_no_other(device):
    x, weight, bias, _ = to(device, arguments(6, 64, 8, 3, False))
    x[3:] = torch.nan
    out = launched(x, weight, bias, None, 3, 32, 32, False, "none", kernel.Tile(64, 16, 4, 2))
    assert out[:3].isfinite().all()
    assert out[3:].isnan().all()


def tile(c_in, c_out, side, added, clips=32, shifted=True) -> Any:
    rows = 8 * side * side if shifted else clips * 8 * side * side
    return kernel.tile_for(c_in, c_out, clips if shifted else 1, rows, added, H200)


def test_takes_the_shapes_it_was_measured_faster_at():
    assert all(tile(*shape, False) is not None for shape in SHIFTED)
    assert all(tile(*shape, True, shifted=False) is not None for shape in ADDED)
    assert tile(256, 64, 56, False) is None
    assert tile(64, 256, 56, True, shifted=False) is None
    # MobileNetV2's last
    assert tile(960, 160, 7, False, shifted=False) is None


def test_the_last_round_of_tiles_chooses_their_width():
    widths = {shape: tile(*shape, False).BLOCK_N for shape in SHIFTED}
    assert {shape for shape, width in widths.items() if width == 256} == {(512, 256, 28), (2048, 512, 7)}


def test_leaves_few_rows_to_small_tiles_and_clips_that_fill_no_tile():
    assert tile(2048, 512, 7, False, clips=1) is None
    assert tile(2048, 512, 2, False, clips=1000) is None


@pytest.mark.parametrize("fold", [3, 8, 16, 96])
def test_blocks_lie_inside_a_fold(fold):
    block = kernel.fold_block(fold, 2 * fold)
    assert block == min(fold & -fold, kernel.BLOCK_K)


def test_leaves_other_dtypes_folds_and_unaligned_tensors_to_the_plain_kernel():
    x, weight = torch.zeros(4, 256, dtype=torch.bfloat16), torch.zeros(128, 256, dtype=torch.bfloat16)
    assert kernel.takes(x, weight, None, 32, 64)
    assert not kernel.takes(x.float(), weight.float(), None, 32, 64)
    assert not kernel.takes(x, weight, None, 16, 32)
    assert not kernel.takes(x, weight[:100], None, 32, 64)
    assert not kernel.takes(torch.zeros(1025, dtype=x.dtype)[1:].view(4, 256), weight, None, 32, 64)


def test_the_op_asks_for_it(device, monkeypatch):
    monkeypatch.setattr(plain, "has_copy_engine", lambda _: True)
    monkeypatch.setattr(plain, "multiprocessors", lambda _: 1)
    small = kernel.Tile(64, 16, 4, 2)
    asked = []
    monkeypatch.setattr(kernel, "tile_for", lambda *shape: asked.append(shape) or small)
    values = arguments(6, 64, 16, 3, True)
    shifted, still = ((3, fold, fold, False, "relu") for fold in (32, 0))
    expected: list[Any] = [*values, *shifted]
    given = to(device, values)
    assert_close(ops.shift_conv1x1(*given, *shifted), reference.shift_conv1x1(*expected), roundings=2)
    assert asked == [(64, 16, 2, 36, True, 1)]
    ops.shift_conv1x1(*given, *still)
    assert asked[-1] == (64, 16, 1, 72, True, 1)


@pytest.mark.cuda
@pytest.mark.parametrize("added", [False, True])
def test_on_a_gpu_repeats_its_bits_and_is_captured(device, added):
    c_in, c_out, side = (256, 1024, 14) if added else (1024, 256, 14)
    fold = 0 if added else c_in // 8
    values = to(device, arguments(256, c_in, c_out, side, added, torch.bfloat16))
    call: list[Any] = [*values, 8, fold, fold, False, "relu"]
    first = ops.shift_conv1x1(*call)
    assert_close(first, reference.shift_conv1x1(*call), roundings=2)
    for _ in range(20):
        assert_same_bits(ops.shift_conv1x1(*call).cpu(), first.cpu())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.shift_conv1x1(*call)
    graph.replay()
    assert_same_bits(captured.cpu(), first.cpu())
