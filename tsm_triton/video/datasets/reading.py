"""One video of a data set as uint8 clips, or why it cannot be read."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor
from torch.utils.data import default_collate

from ..decoding import read_clip
from ..pictures import read_frame_folder
from ..sampling import Strategy, sample_frames

__all__ = [
    "EmptyBatchError",
    "OnError",
    "Sampling",
    "Unreadable",
    "check_on_error",
    "collate",
    "read_errors",
    "readable",
]

OnError = Literal["raise", "skip"]


@dataclass(frozen=True)
class Sampling:
    """Which frames are read, and how large.

    Attributes:
        num_segments: T, the frames of a clip.
        strategy: see `sample_frames`.
        train: one clip, drawn at random.
        num_clips: of a video in test; None for the strategy's own.
        size: of the short side in pixels; None for the video's own.
    """

    num_segments: int
    strategy: Strategy = "uniform"
    train: bool = False
    num_clips: int | None = None
    size: int | None = None

    def check(self) -> None:
        """Raise now for what would be refused of every video."""
        sample_frames(1, self.num_segments, self.strategy, train=self.train, num_clips=self.num_clips)
        if self.size is not None and self.size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {self.size}: pass None for the video's own")

    def read(self, path: str) -> Tensor:
        """uint8 `[num_clips, T, 3, H, W]` of a video file or a folder of frames, by torch's default generator."""
        options: dict[str, Any] = dict(train=self.train, num_clips=self.num_clips, size=self.size)
        if os.path.isdir(path):
            return read_frame_folder(path, self.num_segments, self.strategy, **options)
        return read_clip(path, self.num_segments, self.strategy, strict=True, **options)


@dataclass(frozen=True)
class Unreadable:
    """Stands in a batch for a video that cannot be read; `collate` leaves it out."""

    path: str
    reason: str

    def report(self) -> None:
        # one text for each video, so that the default filter shows each once
        warnings.warn(f"left out {self.path!r}, which cannot be read: {self.reason}", stacklevel=2)


class EmptyBatchError(ValueError):
    """None of a batch's videos can be read."""


def check_on_error(on_error: str) -> None:
    if on_error not in get_args(OnError):
        raise ValueError(
            f"on_error must be one of {', '.join(map(repr, get_args(OnError)))}, got {on_error!r}"
        )


def read_errors() -> tuple[type[Exception], ...]:
    """What reading a damaged or missing video raises."""
    try:
        from av.error import FFmpegError
    except ImportError:
        return (OSError, ValueError)
    return (OSError, ValueError, FFmpegError)


def readable(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader, without those of which no item could be read: each item was reported.

    Raises:
        EmptyBatchError: there is no other.
    """
    parts, lost, any_read = iter(batches), None, False
    while True:
        try:
            batch = next(parts)
        except StopIteration:  # noqa: PERF203 - a loader raises, and goes on
            break
        except EmptyBatchError as error:
            lost = error
        else:
            any_read = True
            yield batch
    if lost is not None and not any_read:
        raise lost


def collate(batch: Sequence[tuple[Tensor, int] | Unreadable]) -> tuple[Tensor, Tensor]:
    """Stack the items of a batch, without those that could not be read.

    Args:
        batch: items of a `VideoDataset`, or of `read_shards`.

    Returns:
        `[N, ...]`, the clips, and int64 `[N]`, their labels; N may be less than the items.

    Raises:
        EmptyBatchError: no item could be read. A loop may catch it and go on with the next batch of the loader.
        ValueError: the clips differ in shape.

    Example:
        >>> import torch
        >>> clips, labels = collate([(torch.zeros(8, 3, 4, 4), 2), Unreadable("a.mp4", "empty")])
        >>> clips.shape, labels
        (torch.Size([1, 8, 3, 4, 4]), tensor([2]))
    """
    kept = [item for item in batch if not isinstance(item, Unreadable)]
    if not kept:
        lost = [f"{item.path!r} ({item.reason})" for item in batch if isinstance(item, Unreadable)]
        raise EmptyBatchError(
            f"expected a batch with at least one video that can be read, got {len(batch)} that cannot: "
            f"{'; '.join(lost[:3])}. Leave them out of the list, or use larger batches."
        )
    shapes = {tuple(clip.shape) for clip, _ in kept}
    if len(shapes) > 1:
        raise ValueError(
            f"expected clips of one shape, got {sorted(shapes)}: pass a transform that crops, "
            "tsm_triton.video.transforms.transform_for(model)"
        )
    clips, labels = default_collate(kept)
    return clips, labels
