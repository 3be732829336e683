"""What the arguments of an op must be, or a form would leave its memory or mix clips."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["check_channel_dim", "check_channels", "check_clips", "check_floats", "check_frames", "check_like"]


def check_clips(
    x: Tensor, num_segments: int, n_first: int, n_second: int, channel_dim: int, name: str = "x"
) -> None:
    """That a shift of whole clips fits."""
    check_channels(x, n_first, n_second, channel_dim, name)
    check_frames(x.shape[0], num_segments, name)


def check_frames(frames: int, num_segments: int, name: str = "x") -> None:
    """That frames are whole clips."""
    if num_segments < 1 or frames % num_segments:
        raise ValueError(
            f"{name} must hold whole clips: expected a first axis divisible by num_segments={num_segments}, "
            f"got {frames} frames. Pass the num_segments the batch was folded with."
        )


def check_channels(x: Tensor, n_first: int, n_second: int, channel_dim: int, name: str = "x") -> None:
    """That the two groups of channels are there."""
    check_channel_dim(x.shape, channel_dim, name)
    channels = x.shape[channel_dim]
    if min(n_first, n_second) < 0 or n_first + n_second > channels:
        raise ValueError(
            f"expected n_first + n_second between 0 and the {channels} channels of axis {channel_dim}, "
            f"got {n_first} + {n_second}"
        )


def check_channel_dim(shape: Sequence[int], channel_dim: int, name: str = "x") -> None:
    """That the channels have an axis of their own."""
    if len(shape) < 2:
        raise ValueError(f"{name} must have shape [N*T, C, ...] or [N*T, ..., C], got {tuple(shape)}")
    if not -len(shape) <= channel_dim < len(shape) or channel_dim % len(shape) == 0:
        raise ValueError(
            f"channel_dim must name an axis of {name} behind the frames, got {channel_dim} for shape "
            f"{tuple(shape)}"
        )


def check_floats(x: Tensor, name: str, shape: str, dims: range) -> None:
    """That a tensor holds floats and has as many axes as `dims` has."""
    if not x.is_floating_point():
        raise TypeError(f"{name} must hold floats, got {x.dtype}")
    if x.dim() not in dims:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")


def check_like(
    value: Tensor | None, name: str, shape: tuple[int, ...], x: Tensor, *others: torch.dtype
) -> None:
    """That an operand, where there is one, has its shape, and the device and dtype of `x`, or a dtype of `others`."""
    if value is None:
        return
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")
    if value.device != x.device or value.dtype not in (x.dtype, *others):
        expected = " or ".join(str(dtype) for dtype in dict.fromkeys((x.dtype, *others)))
        raise ValueError(f"{name} must be {expected} on {x.device}, got {value.dtype} on {value.device}")
