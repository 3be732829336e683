"""What the tests of this package are made of, for users who test the ops on their own machines."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        "tsm_triton.testing needs Hypothesis, which is not installed: pip install 'tsm-triton[test]'"
    ) from error

__all__ = ["DTYPES", "LAYOUTS", "ShiftCase", "assert_same_bits", "laid_out", "shift_cases"]

DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int8,
    torch.int32,
    torch.int64,
    torch.bool,
)

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# name -> channel axis; the memory each names is made by `laid_out`
LAYOUTS = {
    "contiguous": 1,
    "channels_last": 1,
    "frames_inner": 1,
    "expanded_frames": 1,
    "chunk_of_channels": 1,
    "chunk_of_channels_last": 1,
    "cropped": 1,
    "cropped_channels_last": 1,
    "every_second_column": 1,
    "unaligned": 1,
    "nhwc": -1,
    "tokens": -1,
    "transposed_tokens": -1,
}


@dataclass(frozen=True)
class ShiftCase:
    """Arguments of one call of `torch.ops.tsm_triton.temporal_shift`, and how its input lies in memory."""

    x: Tensor = field(repr=False)
    num_segments: int
    n_future: int
    n_past: int
    future_first: bool
    channel_dim: int
    layout: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def shift(self) -> tuple[int, int, int, bool, int]:
        """The arguments behind `x`."""
        return self.num_segments, self.n_future, self.n_past, self.future_first, self.channel_dim

    @property
    def adjoint(self) -> tuple[int, int, int, bool, int]:
        """The arguments, behind a gradient, of the shift that takes it back."""
        return self.num_segments, self.n_past, self.n_future, not self.future_first, self.channel_dim


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of a contiguous `x` `[F, C, H, W]` in another memory layout.

    The result has shape `[F, C, H, W]`, or `[F, H, W, C]` and `[F, H*W, C]` for the layouts whose channel
    axis is the last; `"expanded_frames"` repeats the first frame's values.

    Example:
        >>> laid_out(torch.zeros(2, 8, 3, 3), "tokens").shape
        torch.Size([2, 9, 8])
    """
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "frames_inner":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "expanded_frames":
        return x[:1].expand_as(x)
    if layout == "chunk_of_channels":
        return torch.cat([x, x], 1)[:, : x.shape[1]]
    if layout == "chunk_of_channels_last":
        return torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)[:, x.shape[1] :]
    if layout == "cropped":
        return torch.cat([x, x], 3)[..., : x.shape[3]]
    if layout == "cropped_channels_last":
        return torch.cat([x, x], 3).contiguous(memory_format=torch.channels_last)[..., : x.shape[3]]
    if layout == "every_second_column":
        return x.repeat_interleave(2, dim=3)[..., ::2]
    if layout == "unaligned":
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)
    if layout == "nhwc":
        return x.permute(0, 2, 3, 1).contiguous()
    if layout == "tokens":
        return x.flatten(2).transpose(1, 2).contiguous()
    if layout == "transposed_tokens":
        return x.flatten(2).transpose(1, 2)
    return x


@st.composite
def shift_cases(
    draw: Any,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    layouts: tuple[str, ...] = tuple(LAYOUTS),
    max_clips: int = 3,
    device: str | torch.device = "cpu",
) -> ShiftCase:
    """Hypothesis strategy: any shift of any small tensor; floats hold infinities and NaN now and then.

    Covers empty batches, one-frame clips, one-pixel maps, odd `H*W`, folds of nothing and of everything,
    folds that vectors straddle, and both orders of the two groups.
    """
    layout, dtype = draw(st.sampled_from(layouts)), draw(st.sampled_from(dtypes))
    clips, num_segments = draw(st.integers(0, max_clips)), draw(st.integers(1, 5))
    channels = draw(st.one_of(st.integers(1, 20), st.sampled_from((24, 32, 48, 64))))
    height, width = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    n_future = draw(st.integers(0, channels))
    n_past = draw(st.integers(0, channels - n_future))

    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    shape = (clips * num_segments, channels, height, width)
    x = torch.randint(-128, 128, shape, generator=generator).to(dtype)
    if dtype.is_floating_point and draw(st.booleans()):
        special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0], dtype=dtype)
        places = torch.rand(shape, generator=generator) < 0.1
        x = torch.where(places, special[torch.randint(0, 4, shape, generator=generator)], x)
    x = laid_out(x.to(device), layout)
    return ShiftCase(
        x,
        num_segments,
        n_future,
        n_past,
        draw(st.booleans()),
        draw(st.sampled_from((LAYOUTS[layout], LAYOUTS[layout] % x.dim()))),
        layout,
        tuple(x.shape),
        dtype,
    )


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Fail unless two tensors have one shape, one dtype and the same bits: NaN payloads and signed zeros too.

    Raises:
        AssertionError: naming the first element that differs.

    Example:
        >>> assert_same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
        >>> assert_same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
        Traceback (most recent call last):
        ...
        AssertionError: expected the same bits, got 1 of 1 different, the first at (0,): 0.0 for -0.0
    """
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise AssertionError(
            f"expected {tuple(expected.shape)} {expected.dtype}, got {tuple(actual.shape)} {actual.dtype}"
        )
    bits = _BITS[actual.itemsize]
    different = actual.contiguous().view(bits) != expected.contiguous().to(actual.device).view(bits)
    if different.any():
        where = tuple(different.nonzero()[0].tolist())
        raise AssertionError(
            f"expected the same bits, got {int(different.sum())} of {different.numel()} different, "
            f"the first at {where}: {actual[where].item()} for {expected[where].item()}"
        )
