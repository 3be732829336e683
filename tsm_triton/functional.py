"""The functional API: checks what the user passed, then calls the registered op."""

import torch
from torch import Tensor

from . import ops

__all__ = ["temporal_shift"]

DIRECTIONS = ("bidirectional", "causal")


def check_shift(num_segments: int, shift_div: int, direction: str) -> None:
    """Raise unless the three describe a shift."""
    for name, value in (("num_segments", num_segments), ("shift_div", shift_div)):
        if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
            raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(map(repr, DIRECTIONS))}, got {direction!r}")
    if direction == "bidirectional" and shift_div < 2:
        raise ValueError(
            "a bidirectional shift moves C // shift_div channels each way, so shift_div must be at least 2, "
            f"got {shift_div}"
        )


def fold_counts(channels: int, shift_div: int, direction: str) -> tuple[int, int]:
    """How many channels read t+1 and how many read t-1."""
    fold = channels // shift_div
    return (fold, fold) if direction == "bidirectional" else (0, fold)


def temporal_shift(
    x: Tensor,
    num_segments: int,
    *,
    shift_div: int = 8,
    direction: str = "bidirectional",
    channel_dim: int = 1,
) -> Tensor:
    """Exchange channels between neighbouring frames of each clip.

    With `fold = C // shift_div`, `"bidirectional"` takes channels `[0, fold)` from frame t+1 and
    `[fold, 2*fold)` from frame t-1; `"causal"` takes channels `[0, fold)` from frame t-1. All other
    channels stay. What would come from outside the clip is zero. Values are moved, never computed:
    every dtype is exact, and the input is not written.

    Args:
        x: `[N*T, C, *spatial]` with `channel_dim=1`, or `[N*T, L, C]` and `[N*T, H, W, C]` with
            `channel_dim=-1`; any dtype, device and strides.
        num_segments: T, the number of frames of a clip; divides the first axis.
        shift_div: one part in how many moves each way. 8 moves a quarter in all, the paper's choice.
        direction: `"bidirectional"`, or `"causal"` for online video.
        channel_dim: the channel axis, any but the first.

    Returns:
        A new tensor of `x`'s shape, dtype and memory format. Differentiable any number of times.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: frames that do not divide into clips, fewer channels than `shift_div` (nothing would
            move; `torch.ops.tsm_triton.temporal_shift` takes explicit counts, zero included), or a
            value outside the lists above.

    Example:
        >>> clip = torch.arange(1.0, 4).view(3, 1) * torch.ones(3, 4)  # frame t holds the value t
        >>> temporal_shift(clip, num_segments=3, shift_div=4)
        tensor([[2., 0., 1., 1.],
                [3., 1., 2., 2.],
                [0., 2., 3., 3.]])

    Source: arXiv 1811.08383, section 3.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    check_shift(num_segments, shift_div, direction)
    if x.dim() < 2:
        raise ValueError(f"x must have shape [N*T, C, ...] or [N*T, ..., C], got {tuple(x.shape)}")
    if not -x.dim() <= channel_dim < x.dim() or channel_dim % x.dim() == 0:
        raise ValueError(
            f"channel_dim must name an axis of x behind the frames, got {channel_dim} for shape {tuple(x.shape)}"
        )
    if x.shape[0] % num_segments:
        raise ValueError(
            f"x must hold whole clips: expected a first axis divisible by num_segments={num_segments}, "
            f"got {x.shape[0]} frames. Pass the num_segments the batch was folded with."
        )
    n_future, n_past = fold_counts(x.shape[channel_dim], shift_div, direction)
    if n_past == 0:
        raise ValueError(
            f"expected at least shift_div={shift_div} channels on axis {channel_dim}, got "
            f"{x.shape[channel_dim]}: nothing would move. Lower shift_div, or call "
            "torch.ops.tsm_triton.temporal_shift with explicit counts."
        )
    return ops.temporal_shift(x, num_segments, n_future, n_past, True, channel_dim)
