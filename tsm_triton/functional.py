"""The functional API: turns `shift_div` and `direction` into counts of channels and calls the registered op.

What tensors must be is checked in the ops. Of that only whole clips and the channel axis are asked for here too, by
the same functions: the counts are read off that axis, and out of a compiled graph the error comes as it is.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import ops
from .activations import check_activation
from .arguments import as_count, as_int, as_ints
from .choices import DIRECTIONS, FOLD_ORDERS
from .ops.copies import Plan, copied, plan_copies
from .ops.direct import is_plain
from .torch_private import assert_async

__all__ = ["residual_shift", "shift_conv1x1", "temporal_shift"]


def check_shift(
    num_segments: Any, shift_div: Any, direction: str, fold_order: str = "future_first"
) -> tuple[int, int]:
    """Both numbers as plain integers; raise unless the three describe a shift."""
    num_segments, shift_div = as_count(num_segments, "num_segments"), as_count(shift_div, "shift_div")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(map(repr, DIRECTIONS))}, got {direction!r}")
    if direction == "bidirectional" and shift_div < 2:
        raise ValueError(
            f"shift_div must be at least 2, got {shift_div}: a bidirectional shift moves one part in shift_div twice"
        )
    if fold_order not in FOLD_ORDERS:
        raise ValueError(
            f"fold_order must be one of {', '.join(map(repr, FOLD_ORDERS))}, got {fold_order!r}; the second is "
            "PaddlePaddle's"
        )
    if fold_order == "past_first" and direction == "causal":
        raise ValueError(
            "expected fold_order='future_first' with direction='causal', of one fold, got 'past_first': leave it out"
        )
    return num_segments, shift_div


def fold_counts(
    channels: int, shift_div: int, direction: str, fold_order: str = "future_first"
) -> tuple[int, int, bool]:
    """`n_first, n_second, reverse` of the ops: two groups of channels, and whether the first reads t-1, not t+1.

    Example:
        >>> fold_counts(20, 8, "bidirectional"), fold_counts(20, 8, "causal")
        ((2, 2, False), (2, 0, True))
        >>> fold_counts(20, 8, "bidirectional", "past_first")
        (2, 3, True)
    """
    fold = channels // shift_div
    if direction == "causal":
        return fold, 0, True
    if fold_order == "past_first":  # Paddle's folds end at C/div and at 2C/div, each rounded down
        return fold, 2 * channels // shift_div - fold, True
    return fold, fold, False


def check_folded(shape: Sequence[int], num_segments: int, channel_dim: int = 1, name: str = "x") -> None:
    """Raise for the shape of a video that is not folded, whose clips a shift would mix where N is a multiple of T.

    Five axes are volumes, `[N*T, C, D, H, W]`, unless the axis where a video has its frames has T entries.
    """
    if num_segments == 1 or len(shape) < 5:
        return
    for axis in (1, 2) if channel_dim == 1 or len(shape) > 5 else (1,):
        if shape[axis] == num_segments:
            moved = "" if axis == 1 else f".movedim({axis}, 1)"
            raise ValueError(
                f"{name} must hold folded clips [N*T, C, ...], got {tuple(shape)} with as many entries on axis "
                f"{axis} as num_segments={num_segments}. Pass {name}{moved}.flatten(0, 1); if that axis is none of "
                "frames, call the op in torch.ops.tsm_triton with explicit counts."
            )


def clip_boundaries(
    clip_lengths: Sequence[int] | Tensor, num_frames: int | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Where packed clips begin: bool `[num_frames + 1]`, true at each clip's first frame and at the end.

    Without `num_frames` there are as many as the lengths add up to.

    Raises:
        TypeError: lengths that are not integers.
        ValueError: a negative length, or lengths that do not add up to `num_frames`.

    Example:
        >>> clip_boundaries([2, 1]).tolist()
        [True, False, True, True]
    """
    if torch.compiler.is_compiling() and isinstance(clip_lengths, Tensor) and num_frames is not None:
        return _traced_boundaries(clip_lengths, num_frames, device)
    lengths = as_ints(clip_lengths, "clip_lengths")
    num_frames = sum(lengths) if num_frames is None else num_frames
    if any(length < 0 for length in lengths) or sum(lengths) != num_frames:
        raise ValueError(
            f"clip_lengths must be non-negative and add up to the {num_frames} frames of x, "
            f"got {lengths}, together {sum(lengths)}"
        )
    boundaries = torch.zeros(num_frames + 1, dtype=torch.bool, device="cpu")
    boundaries[[0, *itertools.accumulate(lengths)]] = True
    return boundaries.to(device)


def _traced_boundaries(clip_lengths: Tensor, num_frames: int, device: torch.device | str) -> Tensor:
    """The same in a graph that takes the lengths as an input, where a check of values waits for the run."""
    if clip_lengths.dim() != 1 or clip_lengths.dtype.is_floating_point or clip_lengths.dtype == torch.bool:
        raise TypeError(
            f"clip_lengths must be a list of ints, got {clip_lengths.dtype} {tuple(clip_lengths.shape)}"
        )
    lengths = clip_lengths.to(device, torch.int64)
    fits = (lengths >= 0).all() & (lengths.sum() == num_frames)
    assert_async(fits, "clip_lengths must be non-negative and add up to the frames of x")
    boundaries = torch.zeros(num_frames + 1, dtype=torch.bool, device=device)
    # a wrong length must not reach past the end before the check is seen
    ends = lengths.cumsum(0).clamp(0, num_frames)
    boundaries = boundaries.index_fill(0, ends, True)
    return boundaries.index_fill(0, ends.new_zeros(1), True)


def temporal_shift(
    x: Tensor,
    num_segments: int | None,
    *,
    shift_div: int = 8,
    direction: str = "bidirectional",
    channel_dim: int = 1,
    clip_lengths: Sequence[int] | Tensor | None = None,
    fold_order: str = "future_first",
) -> Tensor:
    """Exchange channels between neighbouring frames of each clip.

    With `fold = C // shift_div`, `"bidirectional"` takes channels `[0, fold)` from frame t+1 and
    `[fold, 2*fold)` from frame t-1; `"causal"` takes channels `[0, fold)` from frame t-1. All other
    channels stay. What would come from outside the clip is zero. Values are moved, never computed:
    every dtype is exact, and the input is not written.

    Args:
        x: `[N*T, C, *spatial]` with `channel_dim=1`, or `[N*T, L, C]` and `[N*T, H, W, C]` with
            `channel_dim=-1`; any dtype, device and strides.
        num_segments: T, the number of frames of a clip; divides the first axis. None with `clip_lengths`.
        shift_div: one part in how many moves each way. 8 moves a quarter in all, the paper's choice.
        direction: `"bidirectional"`, or `"causal"` for online video.
        channel_dim: the channel axis, any but the first.
        clip_lengths: how many frames each clip has, where clips of different lengths are packed along the
            first axis without padding; the differences of a packed kernel's `cu_seqlens`.
        fold_order: `"past_first"` is PaddlePaddle's shift: channels `[0, C // shift_div)` from frame t-1 and
            those up to `2 * C // shift_div` from frame t+1.

    Returns:
        A new tensor of `x`'s shape, dtype and memory format. Differentiable any number of times, backward and
        forward, by `torch.autograd` and by the transforms of `torch.func`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: frames that do not divide into clips, fewer channels than `shift_div` (nothing would
            move; `torch.ops.tsm_triton.temporal_shift` takes explicit counts, zero included), a video
            `[N, T, C, H, W]` or `[N, C, T, H, W]` that is not folded, or a value outside the lists above. Volumes
            `[N*T, C, D, H, W]` with C or D of `num_segments` look like one: the registered op takes them.

    Example:
        >>> clip = torch.arange(1.0, 4).view(3, 1) * torch.ones(3, 4)  # frame t holds the value t
        >>> temporal_shift(clip, num_segments=3, shift_div=4)
        tensor([[2., 0., 1., 1.],
                [3., 1., 2., 2.],
                [0., 2., 3., 3.]])
        >>> temporal_shift(clip, None, shift_div=4, clip_lengths=[1, 2])  # frame 0, then frames 1 and 2
        tensor([[0., 0., 1., 1.],
                [3., 0., 2., 2.],
                [0., 2., 3., 3.]])

    Source: arXiv 1811.08383, section 3.
    """
    if clip_lengths is None and num_segments is not None:
        return shift_clips(x, num_segments, shift_div, direction, channel_dim, fold_order)
    _check_tensors(x=x)
    if clip_lengths is None or num_segments is not None:
        raise ValueError(
            "expected either num_segments or clip_lengths, got "
            + ("neither" if clip_lengths is None else f"both ({num_segments} and {clip_lengths})")
            + ": pass one of the two"
        )
    _, *shift = _checked(x.shape, 1, shift_div, direction, channel_dim, fold_order)
    return ops.temporal_shift_packed(x, clip_boundaries(clip_lengths, x.shape[0], x.device), *shift)


def shift_clips(x: Tensor, *arguments: Any) -> Tensor:
    """`temporal_shift` of clips of one length, its arguments in their order."""
    if is_plain(x):
        return copied(x, plan_shift(x, *arguments))
    if not isinstance(x, Tensor):
        _check_tensors(x=x)
    return ops.shift(x, *_checked(x.shape, *arguments))


def plan_shift(
    x: Tensor, num_segments: int, shift_div: int, direction: str, channel_dim: int, fold_order: str
) -> Plan:
    """How what `is_plain` is shifted, and any other of its shape, strides and offset."""
    layout: tuple[Any, Any, Any] = x.shape, x.stride(), x.storage_offset()
    shift = num_segments, shift_div, direction, channel_dim, fold_order
    # of other types they are refused or converted, and True == 1 would find the plan of an int
    if (
        type(num_segments) is type(shift_div) is type(channel_dim) is int
        and type(direction) is type(fold_order) is str
    ):
        return _plan(*layout, *shift)
    return plan_copies(*layout, *_checked(x.shape, *shift))


@functools.lru_cache(maxsize=1024)
def _plan(shape: tuple[int, ...], read: Any, read_offset: int, *shift: Any) -> Plan:
    """Arguments are checked once a layout: at each call that would be a seventh of a small map's time."""
    return plan_copies(shape, read, read_offset, *_checked(shape, *shift))


def _checked(
    shape: Sequence[int], num_segments: Any, shift_div: Any, direction: str, channel_dim: Any, fold_order: str
) -> tuple[int, int, int, bool, int]:
    """The op's arguments behind `x`, for an `x` of this shape."""
    num_segments, shift_div = check_shift(num_segments, shift_div, direction, fold_order)
    channel_dim = as_int(channel_dim, "channel_dim")
    ops.check_channel_dim(shape, channel_dim)
    check_folded(shape, num_segments, channel_dim % len(shape))
    counts = _counts(shape, "x", num_segments, shift_div, direction, fold_order, channel_dim)
    return num_segments, *counts, channel_dim


def residual_shift(
    branch: Tensor,
    identity: Tensor,
    num_segments: int,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    shift_div: int = 8,
    direction: str = "bidirectional",
    activation: str = "relu",
) -> tuple[Tensor, Tensor]:
    """The end of a residual block and the shift that opens the next one, in one pass over memory.

    `y = act(branch * scale + bias + identity)` and `shifted = temporal_shift(y)`, with one scale and bias a
    channel: a batch-norm's, or none where the branch is normalised already. Arithmetic is float32 (float64
    for float64) and rounded once; `shifted` holds the very values of `y`, and zeros where a channel's frame
    lies outside the clip.

    Args:
        branch: `[N*T, C, *spatial]`, any float dtype and strides; contiguous and channels_last are fastest.
        identity: of `branch`'s shape, dtype and device.
        num_segments: T, the number of frames of a clip; divides the first axis.
        scale: `[C]`, float32 or `branch`'s dtype.
        bias: `[C]`, float32 or `branch`'s dtype.
        shift_div: one part in how many moves each way.
        direction: `"bidirectional"` or `"causal"`.
        activation: `"none"`, `"relu"`, or another of `tsm_triton.activations.ACTIVATIONS`, as torch defines them.

    Returns:
        `y` and `shifted`, of `branch`'s shape, dtype and memory format. Differentiable any number of times.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: tensors that do not match, frames that do not divide into clips, fewer channels than
            `shift_div` (`torch.ops.tsm_triton.residual_shift` takes explicit counts, zero included), or a
            value outside the lists above.

    Example:
        >>> branch, identity = torch.tensor([[1.0, -5.0], [2.0, 3.0]]), torch.ones(2, 2)
        >>> y, shifted = residual_shift(branch, identity, num_segments=2, shift_div=2)
        >>> y
        tensor([[2., 0.],
                [3., 4.]])
        >>> shifted
        tensor([[3., 0.],
                [0., 0.]])

    Source: arXiv 1811.08383, section 3, between two blocks of a residual network.
    """
    _check_tensors(branch=branch, identity=identity)
    _check_optional_tensors(scale=scale, bias=bias)
    num_segments, shift_div = check_shift(num_segments, shift_div, direction)
    check_activation(activation)
    ops.check_channel_dim(branch.shape, 1, "branch")
    check_folded(branch.shape, num_segments, name="branch")
    counts = _counts(branch.shape, "branch", num_segments, shift_div, direction)
    return ops.residual_shift(branch, scale, bias, identity, num_segments, *counts, activation)


def shift_conv1x1(
    x: Tensor,
    weight: Tensor,
    num_segments: int,
    *,
    bias: Tensor | None = None,
    identity: Tensor | None = None,
    shift_div: int = 8,
    direction: str = "bidirectional",
    activation: str = "none",
) -> Tensor:
    """A 1x1 convolution of the shifted input, with bias, residual and activation, in one pass over memory.

    `act(conv1x1(temporal_shift(x), weight) + bias + identity)`. The shift costs nothing of its own: the
    matrix product reads each channel from the frame it comes from, and zero where that lies outside the
    clip. Products are summed in float32 (float64 for float64); float32 inputs are multiplied in TF32 where
    `torch.backends.cuda.matmul.fp32_precision` says so.

    Args:
        x: `[N*T, C_in, H, W]`, any float dtype; channels_last, or it is copied to that.
        weight: `[C_out, C_in]` or `[C_out, C_in, 1, 1]`, of `x`'s dtype and device as all the tensors.
        num_segments: T, the number of frames of a clip; divides the first axis.
        bias: `[C_out]`.
        identity: `[N*T, C_out, H, W]`, added before the activation.
        shift_div: one part in how many moves each way.
        direction: `"bidirectional"` or `"causal"`.
        activation: `"none"`, `"relu"`, or another of `tsm_triton.activations.ACTIVATIONS`, as torch defines them.

    Returns:
        `[N*T, C_out, H, W]` of `x`'s dtype, channels_last. Differentiable any number of times.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: tensors that do not match, frames that do not divide into clips, fewer channels than
            `shift_div` (`torch.ops.tsm_triton.shift_conv1x1` takes explicit counts, zero included), or a
            value outside the lists above.

    Example:
        >>> x = torch.tensor([[1.0, 10.0], [2.0, 20.0]]).view(2, 2, 1, 1)  # two frames of two channels
        >>> shift_conv1x1(x, torch.ones(1, 2), num_segments=2, shift_div=2).flatten()  # 2 + 0, 0 + 10
        tensor([ 2., 10.])

    Source: arXiv 1811.08383, section 3: the shift and the 1x1 convolution that follows it.
    """
    _check_tensors(x=x, weight=weight)
    _check_optional_tensors(bias=bias, identity=identity)
    num_segments, shift_div = check_shift(num_segments, shift_div, direction)
    check_activation(activation)
    ops.check_channel_dim(x.shape, 1)
    counts = _counts(x.shape, "x", num_segments, shift_div, direction)
    return ops.shift_conv1x1(x, weight, bias, identity, num_segments, *counts, activation)


def _check_tensors(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def _check_optional_tensors(**values: Any) -> None:
    _check_tensors(**{name: value for name, value in values.items() if value is not None})


def _counts(
    shape: Sequence[int],
    name: str,
    num_segments: int,
    shift_div: int,
    direction: str,
    fold_order: str = "future_first",
    channel_dim: int = 1,
) -> tuple[int, int, bool]:
    """`fold_counts`, once it is sure that a shape is of whole clips and something moves."""
    ops.check_frames(shape[0], num_segments, name)
    channels = shape[channel_dim]
    counts = fold_counts(channels, shift_div, direction, fold_order)
    if counts[0] == 0:
        raise ValueError(
            f"{name} must have at least shift_div={shift_div} channels on axis {channel_dim}, got {channels}: nothing "
            "would move. Lower shift_div, or call the op in torch.ops.tsm_triton with explicit counts."
        )
    return counts
