"""Inputs for tests: every kind of tensor a shift may meet, as Hypothesis strategies."""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..extras import requirements

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        f"tsm_triton.testing needs Hypothesis, which is not installed: pip install {requirements('hypothesis')}"
    ) from error

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "OTHER_RANKS",
    "ShiftCase",
    "axes_of",
    "laid_out",
    "moved_to",
    "ragged_cases",
    "shift_cases",
]

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
# further layouts, of fewer and of more axes, and with channels between two others
OTHER_RANKS = {"vectors": 1, "between": 2, "volumes": 1, "volumes_channels_last": 1}
CHANNEL_DIMS = LAYOUTS | OTHER_RANKS


@dataclass(frozen=True, repr=False)
class ShiftCase:
    """Arguments of one call of `torch.ops.tsm_triton.temporal_shift`, and how its input lies in memory.

    Its `repr` is the case: paste it to see a failure again.

    Args:
        clips: how many clips of `num_segments` frames; or `clip_lengths`, for packed clips of any length.
        channels: with `height` and `width`, the size of a frame.
        n_first: how many channels read the next frame; the `n_second` behind them read the previous one.
        reverse: whether the two groups read the other way round.
        layout: a name of `LAYOUTS` or of `OTHER_RANKS`.
        channel_dim: the channel axis, in either of its spellings.
        special: whether values need all bits of their dtype, and a tenth of a float tensor is NaN, infinite or -0.0.
        seed: of the values.

    Example:
        >>> case = ShiftCase(clips=2, num_segments=3, channels=8, n_first=1, n_second=1, layout="tokens")
        >>> case
        ShiftCase(clips=2, num_segments=3, channels=8, layout='tokens')
        >>> case.x.shape
        torch.Size([6, 1, 8])
    """

    clips: int = 1
    num_segments: int = 2
    clip_lengths: tuple[int, ...] = ()
    channels: int = 4
    height: int = 1
    width: int = 1
    n_first: int = 1
    n_second: int = 1
    reverse: bool = False
    channel_dim: int | None = None
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float32
    special: bool = False
    seed: int = 0

    def __repr__(self) -> str:
        values = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        said = ", ".join(f"{name}={value!r}" for name, value, default in values if value != default)
        return f"ShiftCase({said})"

    @cached_property
    def x(self) -> Tensor:
        """The input, on the CPU."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.frames, self.channels, self.height, self.width)
        x = torch.randint(-128, 128, shape, generator=generator).to(self.dtype)
        if self.dtype.is_complex:
            x = x + 1j * torch.randint(-128, 128, shape, generator=generator).to(self.dtype)
        if self.special:
            x = _in_all_bits(x, generator)
        if self.special and self.dtype.is_floating_point:
            special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0], dtype=self.dtype)
            places = torch.rand(shape, generator=generator) < 0.1
            x = torch.where(places, special[torch.randint(0, 4, shape, generator=generator)], x)
        return laid_out(x, self.layout)

    def new_x(self, device: str | torch.device = "cpu") -> Tensor:
        """The input once more, in memory of its own, which a shift may write without harm to `x`."""
        return moved_to(replace(self).x, device)

    def new_gradient(self) -> Tensor:
        """A dense gradient of what a shift makes of `x`, finite, on the CPU; of all bits where `x` is."""
        generator = self.generator()
        gradient = torch.randint(-128, 128, self.shape, generator=generator).to(self.dtype)
        return _in_all_bits(gradient, generator) if self.special else gradient

    @property
    def frames(self) -> int:
        return sum(self.clip_lengths) if self.clip_lengths else self.clips * self.num_segments

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape)

    @property
    def axis(self) -> int:
        """The channel axis of the call."""
        return CHANNEL_DIMS[self.layout] if self.channel_dim is None else self.channel_dim

    @property
    def groups(self) -> tuple[int, int, bool, int]:
        """`n_first, n_second, reverse, channel_dim`."""
        return self.n_first, self.n_second, self.reverse, self.axis

    @property
    def shift(self) -> tuple[int, int, int, bool, int]:
        """The arguments behind `x`."""
        return self.num_segments, *self.groups

    @property
    def adjoint(self) -> tuple[int, int, int, bool, int]:
        """The arguments, behind a gradient, of the shift that takes it back."""
        return self.num_segments, self.n_first, self.n_second, not self.reverse, self.axis

    def generator(self) -> torch.Generator:
        """For what a property draws besides `x`: the same for the same case."""
        return torch.Generator().manual_seed(self.seed + 1)


def _in_all_bits(x: Tensor, generator: torch.Generator) -> Tensor:
    """Values that no narrower dtype holds: one that passes through it comes out as another."""
    if x.dtype == torch.bool:
        return x
    if not (x.is_floating_point() or x.is_complex()):
        return torch.randint(-(2**63), 2**63 - 1, x.shape, generator=generator).to(x.dtype)
    wide = torch.complex128 if x.is_complex() else torch.float64
    return (x.to(wide) + torch.rand(x.shape, generator=generator, dtype=wide)).to(x.dtype)


def axes_of(layout: str) -> int:
    """How many axes a tensor of a layout has."""
    if layout.startswith("volumes"):
        return 5
    return 2 if layout == "vectors" else 3 if "tokens" in layout else 4


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of a contiguous `x` `[F, C, H, W]` in another memory layout.

    The result has shape `[F, C, H, W]`, or `[F, H, W, C]` and `[F, H*W, C]` for the layouts whose channel
    axis is the last; `[F, C]`, `[F, H, C, W]` and `[F, C, 2, H, W]` for those of `OTHER_RANKS`. `"expanded_frames"`
    repeats the first frame's values.

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
    # Out of half as much again: of twice as much, each vector that divides a size would divide its stride.
    channels, width = (max(1, x.shape[axis] // 2) for axis in (1, 3))
    if layout == "chunk_of_channels":
        return torch.cat([x, x[:, :channels]], 1)[:, : x.shape[1]]
    if layout == "chunk_of_channels_last":
        return torch.cat([x[:, :channels], x], 1).contiguous(memory_format=torch.channels_last)[:, channels:]
    if layout == "cropped":
        return torch.cat([x, x[..., :width]], 3)[..., : x.shape[3]]
    if layout == "cropped_channels_last":
        return torch.cat([x, x[..., :width]], 3).contiguous(memory_format=torch.channels_last)[
            ..., : x.shape[3]
        ]
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
    if layout == "vectors":
        return x[:, :, 0, 0].contiguous()
    if layout == "between":
        return x.transpose(1, 2).contiguous()
    if layout == "volumes":
        return torch.stack([x, x.flip(0)], 2)
    if layout == "volumes_channels_last":
        return torch.stack([x, x.flip(0)], 2).contiguous(memory_format=torch.channels_last_3d)
    return x


def moved_to(x: Tensor, device: str | torch.device) -> Tensor:
    """`x` on another device with its strides and storage offset, which `Tensor.to` may lay out anew.

    Example:
        >>> moved_to(torch.zeros(2, 6)[:, ::2], "cpu").stride()
        (6, 2)
    """
    if x.device == torch.device(device):
        return x
    moved = torch.empty(0, dtype=x.dtype, device=device)
    storage = x.untyped_storage().to(device=torch.device(device))
    return moved.set_(storage, x.storage_offset(), x.shape, x.stride())  # pyright: ignore[reportArgumentType]


@st.composite
def shift_cases(
    draw: Any,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    layouts: tuple[str, ...] = tuple(LAYOUTS),
    max_clips: int = 3,
) -> ShiftCase:
    """Hypothesis strategy: any shift of any small tensor, of infinities, NaN and values of all bits now and then.

    Covers empty batches, one-frame clips, one-pixel maps, odd `H*W`, folds of nothing and of everything,
    folds that vectors straddle, and both orders of the two groups.

    Example:
        >>> from hypothesis import find
        >>> find(shift_cases(dtypes=(torch.bool,)), lambda case: case.channels > 1).channels
        2
    """
    layout = draw(st.sampled_from(layouts))
    channels = draw(st.one_of(st.integers(1, 20), st.sampled_from((24, 32, 48, 64))))
    n_first = draw(st.integers(0, channels))
    axis = CHANNEL_DIMS[layout]
    return ShiftCase(
        # now and then none: an empty batch is one case, and shows nothing else
        clips=draw(st.sampled_from((*range(1, max_clips + 1), *range(1, max_clips + 1), 0))),
        num_segments=draw(st.integers(1, 5)),
        channels=channels,
        height=draw(st.integers(1, 8)),
        width=draw(st.integers(1, 8)),
        n_first=n_first,
        n_second=draw(st.integers(0, channels - n_first)),
        reverse=draw(st.booleans()),
        channel_dim=draw(st.sampled_from((axis, axis % axes_of(layout)))),
        layout=layout,
        dtype=draw(st.sampled_from(dtypes)),
        special=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@st.composite
def ragged_cases(draw: Any, **kwargs: Any) -> ShiftCase:
    """Hypothesis strategy: `shift_cases` whose clips have lengths of their own, empty ones among them."""
    case = draw(shift_cases(**kwargs))
    return replace(case, clip_lengths=tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=5))))
