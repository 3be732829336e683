"""The functional API: checks what the user passed, then calls the registered op."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import ops
from .arguments import as_count, as_int, as_ints
from .choices import DIRECTIONS, FOLD_ORDERS

__all__ = ["residual_shift", "shift_conv1x1", "temporal_shift"]


def check_shift(
    num_segments: Any, shift_div: Any, direction: str, fold_order: str = "future_first"
) -> tuple[int, int]:
    """Both numbers as plain integers; raise unless the three describe a shift."""
    num_segments, shift_div = as_count(num_segments, "num_segments"), as_count(shift_div, "shift_div")
    if direction not in DIRECTIONS:
        raise ValueError(
            f"direction must be one of {', '.join(map(repr, DIRECTIONS))}, got {direction!r}: pass one of them"
        )
    if direction == "bidirectional" and shift_div < 2:
        raise ValueError(
            "a bidirectional shift moves C // shift_div channels each way, so shift_div must be at least 2, "
            f"got {shift_div}: raise it, or pass direction='causal'"
        )
    if fold_order not in FOLD_ORDERS:
        raise ValueError(
            f"fold_order must be one of {', '.join(map(repr, FOLD_ORDERS))}, got {fold_order!r}: pass the second "
            "for weights of PaddlePaddle"
        )
    if fold_order == "past_first" and direction == "causal":
        raise ValueError(
            "expected fold_order='future_first' with direction='causal', a causal shift has one fold, got "
            "'past_first': leave it out"
        )
    return num_segments, shift_div


def fold_counts(
    channels: int, shift_div: int, direction: str, fold_order: str = "future_first"
) -> tuple[int, int]:
    """How many channels read t+1 and how many read t-1."""
    fold = channels // shift_div
    if fold_order == "past_first":  # Paddle's folds end at C/div and at 2C/div, each rounded down
        return 2 * channels // shift_div - fold, fold
    return (fold, fold) if direction == "bidirectional" else (0, fold)


def check_folded(x: Tensor, num_segments: int, channel_dim: int = 1, name: str = "x") -> None:
    """Raise for a video that is not folded, whose clips a shift would mix where N is a multiple of T.

    Five axes are volumes, `[N*T, C, D, H, W]`, unless the axis where a video has its frames has T entries.
    """
    if num_segments == 1 or x.dim() < 5:
        return
    for axis in (1, 2) if channel_dim == 1 or x.dim() > 5 else (1,):
        if x.shape[axis] == num_segments:
            moved = "" if axis == 1 else f".movedim({axis}, 1)"
            raise ValueError(
                f"{name} must hold folded clips [N*T, C, ...], got {tuple(x.shape)} with as many entries on axis "
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
            f"got {lengths}, together {sum(lengths)}: pass the lengths the batch was packed with"
        )
    boundaries = torch.zeros(num_frames + 1, dtype=torch.bool)
    boundaries[[0, *itertools.accumulate(lengths)]] = True
    return boundaries.to(device)


def _traced_boundaries(clip_lengths: Tensor, num_frames: int, device: torch.device | str) -> Tensor:
    """The same in a graph that takes the lengths as an input, where a check of values waits for the run."""
    if clip_lengths.dim() != 1 or clip_lengths.dtype.is_floating_point or clip_lengths.dtype == torch.bool:
        raise TypeError(
            f"clip_lengths must be a list of ints, got {clip_lengths.dtype} {tuple(clip_lengths.shape)}: convert it"
        )
    lengths = clip_lengths.to(device, torch.int64)
    fits = (lengths >= 0).all() & (lengths.sum() == num_frames)
    torch.ops.aten._assert_async.msg(
        fits, "clip_lengths must be non-negative and add up to the frames of x: pass those it has"
    )
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
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}: convert it")
    if (num_segments is None) == (clip_lengths is None):
        raise ValueError(
            "expected either num_segments or clip_lengths, got "
            + ("neither" if clip_lengths is None else f"both ({num_segments} and {clip_lengths})")
            + ": pass one of the two"
        )
    segments, shift_div = check_shift(
        1 if num_segments is None else num_segments, shift_div, direction, fold_order
    )
    channel_dim = as_int(channel_dim, "channel_dim")
    if x.dim() < 2:
        raise ValueError(
            f"x must have shape [N*T, C, ...] or [N*T, ..., C], got {tuple(x.shape)}: reshape it"
        )
    if not -x.dim() <= channel_dim < x.dim() or channel_dim % x.dim() == 0:
        raise ValueError(
            f"channel_dim must name an axis of x behind the frames, got {channel_dim} for shape "
            f"{tuple(x.shape)}: pass that of the channels"
        )
    check_folded(x, segments, channel_dim % x.dim())
    if x.shape[0] % segments:
        raise ValueError(
            f"x must hold whole clips: expected a first axis divisible by num_segments={segments}, "
            f"got {x.shape[0]} frames. Pass the num_segments the batch was folded with."
        )
    n_future, n_past = fold_counts(x.shape[channel_dim], shift_div, direction, fold_order)
    future_first = fold_order == "future_first"
    if n_past == 0:
        raise ValueError(
            f"expected at least shift_div={shift_div} channels on axis {channel_dim}, got "
            f"{x.shape[channel_dim]}: nothing would move. Lower shift_div, or call "
            "torch.ops.tsm_triton.temporal_shift with explicit counts."
        )
    if clip_lengths is not None:
        boundaries = clip_boundaries(clip_lengths, x.shape[0], x.device)
        return ops.temporal_shift_packed(x, boundaries, n_future, n_past, future_first, channel_dim)
    return ops.temporal_shift(x, segments, n_future, n_past, future_first, channel_dim)


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
    _check_floats(branch, "branch", "[N*T, C, *spatial]", range(2, 6))
    num_segments, shift_div = check_shift(num_segments, shift_div, direction)
    _check_match(identity, "identity", branch.shape, (branch.dtype,), branch.device)
    for name, value in (("scale", scale), ("bias", bias)):
        if value is not None:
            _check_match(value, name, branch.shape[1:2], (torch.float32, branch.dtype), branch.device)
    ops.check_activation(activation)
    check_folded(branch, num_segments, name="branch")
    n_future, n_past = _counts(branch, "branch", num_segments, shift_div, direction)
    return ops.residual_shift(branch, scale, bias, identity, num_segments, n_future, n_past, True, activation)


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
    _check_floats(x, "x", "[N*T, C_in, H, W]", range(4, 5))
    num_segments, shift_div = check_shift(num_segments, shift_div, direction)
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch.Tensor, got {type(weight).__name__}: convert it")
    c_in, (c_out, *kernel) = x.shape[1], weight.shape or (0,)
    if tuple(kernel) not in ((c_in,), (c_in, 1, 1)):
        raise ValueError(
            f"weight must have shape [C_out, {c_in}] or [C_out, {c_in}, 1, 1], got {tuple(weight.shape)}: reshape it"
        )
    _check_match(weight, "weight", weight.shape, (x.dtype,), x.device)
    for name, value, shape in (
        ("bias", bias, (c_out,)),
        ("identity", identity, (x.shape[0], c_out, *x.shape[2:])),
    ):
        if value is not None:
            _check_match(value, name, shape, (x.dtype,), x.device)
    ops.check_activation(activation)
    n_future, n_past = _counts(x, "x", num_segments, shift_div, direction)
    return ops.shift_conv1x1(x, weight, bias, identity, num_segments, n_future, n_past, True, activation)


def _check_floats(x: Tensor, name: str, shape: str, dims: range) -> None:
    """Raise unless `x` is a tensor of floats with as many axes as `dims` has."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}: convert it")
    if not x.is_floating_point():
        raise TypeError(f"{name} must hold floats, got {x.dtype}: convert it")
    if x.dim() not in dims:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}: reshape it")


def _check_match(
    value: Tensor, name: str, shape: Sequence[int], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    """Raise unless a tensor matches the one that the op is about."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}: convert it")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}: reshape it")
    if value.dtype not in dtypes or value.device != device:
        expected = " or ".join(str(dtype) for dtype in dict.fromkeys(dtypes))
        raise ValueError(
            f"{name} must be {expected} on {device}, got {value.dtype} on {value.device}. Convert it first."
        )


def _counts(x: Tensor, name: str, num_segments: int, shift_div: int, direction: str) -> tuple[int, int]:
    """The channels that read t+1 and t-1, once it is sure that `x` holds whole clips and something moves."""
    if x.shape[0] % num_segments:
        raise ValueError(
            f"{name} must hold whole clips: expected a first axis divisible by num_segments={num_segments}, "
            f"got {x.shape[0]} frames. Pass the num_segments the batch was folded with."
        )
    n_future, n_past = fold_counts(x.shape[1], shift_div, direction)
    if n_past == 0:
        raise ValueError(
            f"{name} must have at least shift_div={shift_div} channels, got {x.shape[1]}: nothing would move. "
            "Lower shift_div, or call the op in torch.ops.tsm_triton with explicit counts."
        )
    return n_future, n_past
