"""Which frames of a video to read: 0-based frame numbers, from the frame count alone."""

from typing import Literal, get_args

import torch
from torch import Tensor

from ..arguments import as_count

__all__ = ["Strategy", "sample_authors", "sample_dense", "sample_frames", "sample_uniform", "strategy_of"]

Strategy = Literal["uniform", "dense", "twice", "authors"]
# of a video in test
CLIPS = {"uniform": 1, "dense": 10, "twice": 2, "authors": 1}


def strategy_of(said: str | None) -> Strategy:
    """The strategy that a model says it was trained with; `"uniform"` where it says none, or one of another library."""
    return next((strategy for strategy in get_args(Strategy) if strategy == said), "uniform")


def sample_uniform(
    num_frames: int,
    num_segments: int,
    *,
    train: bool = False,
    generator: torch.Generator | None = None,
    twice: bool = False,
) -> Tensor:
    """One frame from each of `num_segments` equal parts of the video.

    In training a random frame of each part, in test its middle. A video with fewer frames than segments
    repeats frames in test and gives its first frame only in training, as the authors' release does.

    Args:
        num_frames: N, the frames of the video.
        num_segments: T, the frames of a clip.
        train: draw at random instead of taking the middles.
        generator: where the random numbers come from; the default generator if None.
        twice: test only: a second clip, of the frames that start the parts.

    Returns:
        int64 `[T]`, or `[2, T]` when `twice`; values in `[0, N)`, ascending along T.

    Raises:
        TypeError: a count that is not an integer.
        ValueError: a count below 1, or `twice` in training.

    Example:
        >>> sample_uniform(80, 8, twice=True)
        tensor([[ 5, 15, 25, 35, 45, 55, 65, 75],
                [ 0, 10, 20, 30, 40, 50, 60, 70]])

    Source: `TSNDataSet` in the authors' release (mit-han-lab/temporal-shift-module).
    """
    num_frames, num_segments = _counts(num_frames=num_frames, num_segments=num_segments)
    if train and twice:
        raise ValueError("twice=True: expected train=False, for testing, got train=True: drop one of the two")
    if train:
        part = num_frames // num_segments
        if part == 0:
            return torch.zeros(num_segments, dtype=torch.int64)
        return torch.arange(num_segments) * part + torch.randint(part, (num_segments,), generator=generator)
    tick = num_frames / num_segments
    middles = torch.tensor([int(tick / 2 + tick * i) for i in range(num_segments)])
    return (
        torch.stack([middles, torch.tensor([int(tick * i) for i in range(num_segments)])])
        if twice
        else middles
    )


def sample_authors(num_frames: int, num_segments: int) -> Tensor:
    """The frames by which the authors' training loop validates: the middles, and the first alone of a short video.

    Where a video has no more frames than segments, this is frame 0 throughout, even with as many frames as
    segments, of which `sample_uniform` takes each once. It is here to compare with their logs.

    Args:
        num_frames: N, the frames of the video.
        num_segments: T, the frames of a clip.

    Returns:
        int64 `[T]`; values in `[0, N)`, ascending.

    Raises:
        TypeError: a count that is not an integer.
        ValueError: a count below 1.

    Example:
        >>> sample_authors(16, 8), sample_authors(8, 8)
        (tensor([ 1,  3,  5,  7,  9, 11, 13, 15]), tensor([0, 0, 0, 0, 0, 0, 0, 0]))

    Source: `TSNDataSet._get_val_indices` in the authors' release.
    """
    num_frames, num_segments = _counts(num_frames=num_frames, num_segments=num_segments)
    if num_frames <= num_segments:
        return torch.zeros(num_segments, dtype=torch.int64)
    return sample_uniform(num_frames, num_segments)


def sample_dense(
    num_frames: int,
    num_segments: int,
    *,
    train: bool = False,
    num_clips: int = 10,
    window: int = 64,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Frames at the fixed stride `window // T`, wrapping around at the end of a short video.

    Args:
        num_frames: N, the frames of the video.
        num_segments: T, the frames of a clip; at most `window`.
        train: one clip from a random start instead of `num_clips` clips from evenly spaced starts.
        num_clips: how many clips a test reads.
        window: the frames a clip spans.
        generator: where the random numbers come from; the default generator if None.

    Returns:
        int64 `[T]` in training, `[num_clips, T]` in test; values in `[0, N)`.

    Raises:
        TypeError: a count that is not an integer.
        ValueError: a count below 1, or more segments than the window has frames.

    Example:
        >>> sample_dense(100, 8, num_clips=3)
        tensor([[ 0,  8, 16, 24, 32, 40, 48, 56],
                [18, 26, 34, 42, 50, 58, 66, 74],
                [36, 44, 52, 60, 68, 76, 84, 92]])

    Source: the `dense_sample` option of the authors' release; the idea is I3D's and non-local networks'.
    """
    num_frames, num_segments, num_clips, window = _counts(
        num_frames=num_frames, num_segments=num_segments, num_clips=num_clips, window=window
    )
    stride = window // num_segments
    if stride == 0:
        raise ValueError(
            f"dense sampling: expected num_segments <= window={window}, got {num_segments}: "
            "every frame of a clip would be the same. Use uniform sampling or a larger window."
        )
    last_start = max(0, num_frames - window)
    if train:
        # The last start is never drawn: numpy's randint(0, last_start) in the release excludes its end.
        start = int(torch.randint(last_start, (), generator=generator)) if last_start else 0
        starts = torch.tensor(start)
    else:
        # numpy.linspace(0, last_start, num_clips) cast to int, to the last bit: the step is rounded once.
        step = last_start / max(1, num_clips - 1)
        spaced = [int(k * step) for k in range(num_clips)]
        starts = torch.tensor([*spaced[:-1], last_start] if num_clips > 1 else spaced)
    return (starts[..., None] + stride * torch.arange(num_segments)) % num_frames


def sample_frames(
    num_frames: int,
    num_segments: int,
    strategy: Strategy = "uniform",
    *,
    train: bool = False,
    generator: torch.Generator | None = None,
    num_clips: int | None = None,
) -> Tensor:
    """The frames of every clip to read under a named strategy.

    Args:
        num_frames: N, the frames of the video.
        num_segments: T, the frames of a clip.
        strategy: `"uniform"`; `"dense"`, ten clips in test; `"twice"`, two uniform clips in test; or `"authors"`,
            the rule of their validation, see `sample_authors`.
        train: draw one clip at random (`"twice"` and `"authors"` then train as `"uniform"` does).
        generator: where the random numbers come from; the default generator if None.
        num_clips: how many clips a test reads, where the strategy leaves it open: `"dense"`.

    Returns:
        int64 `[num_clips, T]`, always two axes; values in `[0, N)`.

    Raises:
        TypeError: a count that is not an integer.
        ValueError: an unknown strategy, clips that it does not have, or what the strategy itself refuses.

    Example:
        >>> sample_frames(300, 8, "dense").shape
        torch.Size([10, 8])
        >>> sample_frames(3, 8)  # shorter than a clip
        tensor([[0, 0, 0, 1, 1, 2, 2, 2]])
    """
    if strategy not in get_args(Strategy):
        raise ValueError(
            f"strategy must be one of {', '.join(map(repr, get_args(Strategy)))}, got {strategy!r}"
        )
    if num_clips is not None and not train and strategy != "dense" and num_clips != CLIPS[strategy]:
        raise ValueError(
            f"expected num_clips={CLIPS[strategy]} with {strategy!r}, got {num_clips}: leave it out, or use 'dense'"
        )
    if strategy == "dense":
        frames = sample_dense(
            num_frames,
            num_segments,
            train=train,
            num_clips=CLIPS["dense"] if num_clips is None else num_clips,
            generator=generator,
        )
    elif strategy == "authors" and not train:
        frames = sample_authors(num_frames, num_segments)
    else:
        twice = strategy == "twice" and not train
        frames = sample_uniform(num_frames, num_segments, train=train, generator=generator, twice=twice)
    return frames.view(-1, num_segments)


def _counts(**counts: int) -> list[int]:
    return [as_count(value, name) for name, value in counts.items()]
