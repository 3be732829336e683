"""The shift as a layer, for networks that are written rather than patched."""

from torch import Tensor

from ..arguments import as_int
from ..functional import check_shift, temporal_shift
from .clip_layer import ClipLayer

__all__ = ["TemporalShift"]


class TemporalShift(ClipLayer):
    """`temporal_shift` as an `nn.Module`: no parameter, no buffer, nothing in `state_dict`.

    Place it at the start of a residual branch, not on the identity. `set_num_segments` and `VideoClassifier` tell it T,
    as they tell the shifts of a patched model; packed clips and streams are for those alone.

    Args:
        num_segments: T, the frames of a clip.
        shift_div: one part in how many of the channels moves each way.
        direction: `"bidirectional"`, or `"causal"` for online video.
        channel_dim: 1 for `[N*T, C, ...]`, -1 for tokens and NHWC.
        fold_order: `"past_first"` for PaddlePaddle's shift, see `temporal_shift`.

    Shapes:
        `[N*T, C, *spatial]` or `[N*T, ..., C]` -> the same.

    Raises:
        TypeError, ValueError: as `temporal_shift` does; bad settings when it is built.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> block = nn.Sequential(TemporalShift(num_segments=8), nn.Conv2d(16, 16, 1))
        >>> block(torch.randn(2 * 8, 16, 4, 4)).shape
        torch.Size([16, 16, 4, 4])
        >>> block[0]
        TemporalShift(num_segments=8, shift_div=8, direction='bidirectional', channel_dim=1)

    Source: arXiv 1811.08383, section 3.
    """

    def __init__(
        self,
        num_segments: int,
        *,
        shift_div: int = 8,
        direction: str = "bidirectional",
        channel_dim: int = 1,
        fold_order: str = "future_first",
    ) -> None:
        num_segments, shift_div = check_shift(num_segments, shift_div, direction, fold_order)
        super().__init__(num_segments)
        self.shift_div = shift_div
        self.direction = direction
        self.channel_dim = as_int(channel_dim, "channel_dim")
        self.fold_order = fold_order

    def forward(self, x: Tensor) -> Tensor:
        return temporal_shift(
            x,
            self.clip_length(),
            shift_div=self.shift_div,
            direction=self.direction,
            channel_dim=self.channel_dim,
            fold_order=self.fold_order,
        )

    def extra_repr(self) -> str:
        order = "" if self.fold_order == "future_first" else f", fold_order={self.fold_order!r}"
        return (
            f"num_segments={self.num_segments}, shift_div={self.shift_div}, direction={self.direction!r}, "
            f"channel_dim={self.channel_dim}{order}"
        )
