"""A network's first convolution: what the kernel computes, and which calls are its."""

from typing import Any

import pytest
import torch
import triton
from torch.nn import functional as F

from tsm_triton.kernels import stem as kernel
from tsm_triton.testing import assert_close

HAS_CUDA = torch.cuda.is_available()
# its interpreter makes no number of a range's bound with NumPy 2
ranges = pytest.mark.skipif(
    not HAS_CUDA and triton.__version__.startswith("3.6"), reason="triton 3.6 interprets no range of a launch"
)
persistent = pytest.mark.parametrize(
    "persistent", [pytest.param(False, id="tile"), pytest.param(True, id="persistent", marks=ranges)]
)


@pytest.fixture
def device(monkeypatch) -> str:
    if HAS_CUDA:
        return "cuda"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return "cpu"


def to(kind, *values) -> Any:
    """Onto a device or in another dtype."""
    return [None if v is None else v.to(kind) for v in values]


def check(device, case, dtype, tile, biased=True):
    c_in, c_out, kernel_size, stride, padding, height, width = case
    x = torch.randn(2, c_in, height, width).to(dtype)
    weight = torch.randn(c_out, c_in, *kernel_size).div(10).to(dtype)
    bias = torch.randn(c_out).to(dtype) if biased else None
    assert kernel.takes(x, weight, stride, padding)
    arguments: list[Any] = [*to(device, x, weight, bias), stride, padding, "relu", tile]
    out = kernel.stem_convolution(*arguments)
    wide, kernels, biases = to(torch.float64, x, weight, bias)
    assert_close(out, F.conv2d(wide, kernels, biases, stride, padding).relu().to(dtype), roundings=2)
    assert out.is_contiguous(memory_format=torch.channels_last)


CASES = {
    "resnet": (3, 20, (7, 7), 2, 3, 19, 18),
    "mobilenet": (3, 8, (3, 3), 2, 1, 14, 13),
    "square stride one": (4, 8, (3, 3), 1, 0, 9, 8),
    "wide": (1, 5, (2, 5), 2, 2, 9, 11),
    "patches": (3, 16, (4, 4), 4, 0, 12, 14),
    "one row": (3, 8, (1, 1), 1, 0, 5, 5),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@persistent
def test_matches_torchs_convolution(device, case, persistent):
    # images that end inside a run of pixels and a tile
    (_, block_k, block_c), height = kernel.sizes(*case[:2], case[2][1], *case[3:5]), case[2][0]
    tile = kernel.tile_for(height, block_k, block_c, 2, persistent)
    assert bool(tile.PERSISTENT) == persistent
    check(device, case, torch.float16, tile)


def test_fp32_and_no_bias(device):
    check(device, CASES["mobilenet"], torch.float32, None, biased=False)


def test_an_empty_batch_gives_an_empty_result(device):
    x, weight = torch.zeros(0, 3, 8, 8, device=device), torch.zeros(4, 3, 3, 3, device=device)
    assert kernel.stem_convolution(x, weight, None, 2, 1, "relu").shape == (0, 4, 4, 4)


def test_leaves_other_dtypes_many_channels_and_tall_kernels_to_torch():
    def takes(c_in=3, c_out=64, size=7, dtype=torch.bfloat16):
        x = torch.zeros(1, c_in, 16, 16, dtype=dtype)
        return kernel.takes(x, torch.zeros(c_out, c_in, size, size, dtype=dtype), 2, 3)

    assert takes()
    assert not any((takes(c_in=5), takes(c_out=129), takes(size=9), takes(dtype=torch.float64)))


def test_weights_that_fill_the_shared_memory_are_read_again():
    assert kernel.tile_for(7, 32, 64, 2, True).PERSISTENT
    assert not kernel.tile_for(7, 64, 64, 2, True).PERSISTENT
    assert not kernel.tile_for(7, 32, 128, 2, True).PERSISTENT
    assert not kernel.tile_for(7, 32, 8, 4, True).PERSISTENT


@pytest.mark.cuda
@pytest.mark.parametrize("size", [7, 3])
def test_bf16_on_a_gpu(size):
    x = torch.randn(8, 3, 224, 224).bfloat16()
    weight, bias = torch.randn(64, 3, size, size).div(10).bfloat16(), torch.randn(64).bfloat16()
    out = kernel.stem_convolution(x.cuda(), weight.cuda(), bias.cuda(), 2, size // 2, "relu")
    expected = F.conv2d(x.float(), weight.float(), bias.float(), 2, size // 2).relu()
    assert_close(out, expected.bfloat16(), roundings=2)
