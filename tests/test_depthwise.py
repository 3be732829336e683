"""The depthwise convolution: what the kernel computes, in both of its forms."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tsm_triton.kernels import depthwise as kernel
from tsm_triton.testing import assert_close

HAS_CUDA = torch.cuda.is_available()


@pytest.fixture
def device(monkeypatch) -> str:
    if HAS_CUDA:
        return "cuda"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return "cpu"


def to(kind, *values) -> Any:
    """Onto a device or in another dtype."""
    return [None if v is None else v.to(kind) for v in values]


def check(device, c, size, stride, padding, dilation, shape, dtype=torch.float32, tile=None, biased=True):
    x = torch.randn(2, c, *shape).to(dtype)
    weight = torch.randn(c, 1, *size).div(3).to(dtype)
    bias = torch.randn(c).to(dtype) if biased else None
    arguments: list[Any] = [*to(device, x, weight, bias), stride, padding, dilation, "relu6", tile]
    out = kernel.depthwise_convolution(*arguments)
    wide, kernels, biases = to(torch.float64, x, weight, bias)
    expected = F.relu6(F.conv2d(wide, kernels, biases, stride, padding, dilation, c))
    assert_close(out, expected.to(dtype), roundings=2)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_unfinished_sums_are_kept_across_rows(device, stride, rows):
    # strips and blocks of channels that end inside the image, rows that end inside a program
    check(device, 12, (3, 3), stride, 1, 1, (7, 11), tile=kernel.Tile(4, 8, rows))


@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"),
    [
        ((3, 3), 1, 0, 1),
        ((3, 3), 2, 2, 1),
        ((3, 3), 3, 1, 1),
        ((3, 3), 1, 2, 2),
        ((5, 5), 2, 2, 1),
        ((3, 5), 1, (1, 2), 1),
        ((1, 1), 1, 0, 1),
        ((7, 7), 1, 3, 1),
    ],
)
def test_matches_torchs_convolution(device, size, stride, padding, dilation):
    check(device, 9, size, stride, padding, dilation, (8, 9))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(device, dtype):
    check(device, 8, (3, 3), 1, 1, 1, (5, 6), dtype, biased=False)


def test_an_empty_batch_gives_an_empty_result(device):
    x, weight = torch.zeros(0, 8, 8, 8, device=device), torch.zeros(8, 1, 3, 3, device=device)
    assert kernel.depthwise_convolution(x, weight, None, 2, 1, 1, "relu").shape == (0, 8, 4, 4)


def test_a_tile_is_two_vectors_a_thread_where_the_image_is_large_enough():
    # MobileNetV2's: 112, 56, 28, 14 and 7 pixels
    tiles = [kernel.tile_for(960, side, side, 1, 2) for side in (112, 56, 28, 14, 7)]
    assert tiles == [(64, 32, 14), (64, 32, 14), (32, 64, 14), (16, 64, 14), (8, 32, 7)]
    for itemsize in (2, 4, 8):
        tile = kernel.tile_for(960, 112, 112, 1, itemsize)
        assert tile.BLOCK_W * tile.BLOCK_C * itemsize == kernel.TILE_BYTES


@pytest.mark.cuda
@pytest.mark.parametrize(("c", "side", "stride"), [(32, 112, 1), (96, 112, 2), (576, 14, 2), (960, 7, 1)])
def test_bf16_on_a_gpu(c, side, stride):
    check("cuda", c, (3, 3), stride, 1, 1, (side, side), torch.bfloat16)
