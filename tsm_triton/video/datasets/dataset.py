"""The videos of a listing as clips for a model, by their number."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...arguments import as_count, as_int
from ..sampling import CLIPS, Strategy
from .flips import FlipPairs, check_transform, find_flips
from .randomness import seed_of, seeded
from .reading import OnError, Sampling, Unreadable, check_on_error, read_errors
from .samples import Listing

__all__ = ["UNLABELLED", "VideoDataset"]

UNLABELLED = -1


class VideoDataset(Dataset[tuple[Tensor, int]]):
    """Clips and labels of the videos of a listing.

    Everything random is a function of `(seed, epoch, number of the video)` alone: the same clips come whatever the
    number of workers and processes, and after a resume. torch's default generator, which transforms draw from, starts
    from there for each item and is left as it was. `set_epoch` reaches the workers of a running `DataLoader`,
    persistent ones too.

    Args:
        listing: the videos, see `read_listing`.
        num_segments: T, the frames of a clip.
        transform: from uint8 `[..., T, 3, H, W]` to clips, see `tsm_triton.video.transforms`; None gives them as they
            are decoded.
        training: one clip, drawn at random.
        sampling: `"uniform"`, `"dense"`, `"twice"` or `"authors"`, see `sample_frames`.
        clips: in test, the evenly spaced clips that `"dense"` reads, 10 in the authors' release; `"twice"` always
            reads two, the others one.
        size: what FFmpeg scales the short side to while it decodes; the `short_side` of the transform saves it the
            work.
        on_error: of a video that cannot be read, or a wanted frame of it: `"raise"`, or `"skip"`, which warns once with
            its path, counts it in `unreadable`, and returns an item that `collate` leaves out.
        flip_pairs: mirror half of the training clips, with the labels that exchange by it, see `find_flips`. None, the
            default, mirrors nothing beyond what `transform` does.
        seed: of everything random.

    Items:
        `(clips, label)`: `[V, T, 3, H, W]`, V views for each clip in turn; in training the one clip as the transform
        gives it, `[T, 3, H, W]`. The label is `UNLABELLED`, -1, where the listing has none.

    Raises:
        ValueError: no videos, videos without labels to train on, an unknown choice, or a transform that mirrors videos
            whose labels say left and right.

    Example:
        >>> import tempfile, PIL.Image
        >>> from tsm_triton.video.datasets import VideoDataset, read_listing
        >>> from tsm_triton.video.transforms import eval_transform
        >>> frames = [PIL.Image.new("RGB", (64, 48), (20 * i, 0, 0)) for i in range(8)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     frames[0].save(f"{folder}/red.gif", save_all=True, append_images=frames[1:])
        ...     dataset = VideoDataset(read_listing(folder), 4, transform=eval_transform(32, short_side=48), size=48)
        ...     clips, label = dataset[0]
        >>> clips.shape, label
        (torch.Size([1, 4, 3, 32, 32]), -1)
    """

    def __init__(
        self,
        listing: Listing,
        num_segments: int,
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
        training: bool = False,
        sampling: Strategy = "uniform",
        clips: int = 1,
        size: int | None = None,
        on_error: OnError = "raise",
        flip_pairs: FlipPairs = None,
        seed: int = 0,
    ) -> None:
        if not listing.samples:
            raise ValueError("expected a listing with videos, got none: check what read_listing was given")
        unlabelled = next((sample.path for sample in listing.samples if sample.label is None), None)
        if training and unlabelled is not None:
            raise ValueError(
                f"expected a label for each video to train on, got none for {unlabelled!r}: write it into the list, or "
                "put each video into a folder of its class"
            )
        check_on_error(on_error)
        self.listing = listing
        self.sampling = Sampling(num_segments, sampling, training, clips_of(sampling, clips), size)
        self.sampling.check()
        self.flips = find_flips(flip_pairs, listing.classes)
        check_transform(transform, self.flips, listing.classes)
        self.transform = transform
        self.on_error = on_error
        self.seed = as_int(seed, "seed")
        # shared with the workers of a DataLoader
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._unreadable = torch.zeros(len(listing.samples), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.listing.samples)

    def set_epoch(self, epoch: int) -> None:
        """Draw the clips of this epoch from now on."""
        self._epoch.fill_(as_int(epoch, "epoch"))

    @property
    def unreadable(self) -> tuple[str, ...]:
        """The paths that could not be read so far, in whatever worker; in the order of the listing."""
        return tuple(self.listing.samples[at].path for at in self._unreadable.nonzero().flatten().tolist())

    @property
    def num_unreadable(self) -> int:
        return int(self._unreadable.sum())

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index = range(len(self))[as_int(index, "index")]
        sample = self.listing.samples[index]
        with seeded(seed_of(self.seed, int(self._epoch), index)):
            try:
                clips = self.sampling.read(sample.path)
            except read_errors() as error:
                if self.on_error == "raise":
                    raise
                return self._left_out(index, str(error))
            label = UNLABELLED if sample.label is None else sample.label
            return prepare(clips, label, self.sampling.train, self.flips, self.transform)

    def _left_out(self, index: int, reason: str) -> Any:
        unreadable = Unreadable(self.listing.samples[index].path, reason)
        if not self._unreadable[index]:
            self._unreadable[index] = True
            unreadable.report()
        return unreadable


def clips_of(sampling: str, clips: int) -> int | None:
    """`clips` as `sample_frames` takes it: 1 stands for a strategy's own number, but for that of `"dense"`."""
    clips = as_count(clips, "clips")
    return None if clips == 1 and sampling != "dense" and sampling in CLIPS else clips


def prepare(
    clips: Tensor,
    label: int,
    train: bool,
    flips: dict[int, int | None] | None,
    transform: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, int]:
    """An item of decoded clips `[num_clips, T, 3, H, W]`, by torch's default generator."""
    if train:
        clips = clips[0]
        mirror = bool(torch.rand(()) < 0.5)
        if flips is not None and mirror:
            mirrored = flips.get(label, label)
            if mirrored is not None:
                clips, label = clips.flip(-1), mirrored
    if transform is not None:
        clips = transform(clips)
    return clips if train else clips.flatten(0, -5), label
