"""Data sets in tar files, read front to back: what a disk or a store far away gives quickly. Needs `webdataset`."""

import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ...arguments import as_int
from ...extras import check_installed
from ..pictures import natural
from ..sampling import Strategy
from .dataset import UNLABELLED, clips_of, prepare
from .finding import VIDEOS
from .flips import FlipPairs, check_transform, find_flips
from .labels import is_number, number_labels
from .lists import LABELS
from .randomness import seed_of, seeded
from .reading import OnError, Sampling, Unreadable, check_on_error, read_errors
from .samples import AnyPath

__all__ = ["ShardDataset", "read_shards"]

MAX_WORKERS = 1024


class ShardDataset(IterableDataset[tuple[Tensor, int]]):
    """Clips and labels of the videos in tar files, see `read_shards`."""

    def __init__(
        self,
        urls: AnyPath | Sequence[AnyPath],
        num_segments: int,
        *,
        classes: Sequence[str] = (),
        transform: Callable[[Tensor], Tensor] | None = None,
        training: bool = False,
        sampling: Strategy = "uniform",
        clips: int = 1,
        size: int | None = None,
        on_error: OnError = "raise",
        flip_pairs: FlipPairs = None,
        seed: int = 0,
        shuffle: int = 100,
    ) -> None:
        check_installed("reading shards", "webdataset")
        check_on_error(on_error)
        self.urls = _expanded(urls)
        self.sampling = Sampling(num_segments, sampling, training, clips_of(sampling, clips), size)
        self.sampling.check()
        self.classes = tuple(classes)
        self.flips = find_flips(flip_pairs, self.classes)
        check_transform(transform, self.flips, self.classes)
        self.transform = transform
        self.on_error = on_error
        self.seed = as_int(seed, "seed")
        self.shuffle = as_int(shuffle, "shuffle")
        self._dealt_to: tuple[int, int] | None = None
        # shared with the workers of a DataLoader, each of which counts in its own place
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._unreadable = torch.zeros(MAX_WORKERS, dtype=torch.int64).share_memory_()

    def __getstate__(self) -> dict[str, Any]:
        # a worker that is spawned knows no process group, so it is told; a process that is to join one asks itself
        dealt_to = (0, 1) if get_spawning_popen() is None else _process()
        return {**vars(self), "_dealt_to": None if dealt_to == (0, 1) else dealt_to}

    def set_epoch(self, epoch: int) -> None:
        """Draw the clips, and the order of the videos, of this epoch from now on."""
        self._epoch.fill_(as_int(epoch, "epoch"))

    @property
    def num_unreadable(self) -> int:
        """How many videos and tar files could not be read so far, in whatever worker; each time counts."""
        return int(self._unreadable.sum())

    def __iter__(self) -> Iterator[Any]:
        from webdataset import filters, shardlists

        urls, epoch = list(self.urls), int(self._epoch)
        if self.sampling.train:
            random.Random(seed_of(self.seed, epoch, "shards")).shuffle(urls)
        rank, world = self._dealt_to or _process()
        urls = list(shardlists.split_by_worker(iter(urls[rank::world])))
        videos: Iterator[Any] = (video for url in urls for video in self._videos(url))
        if self.sampling.train and self.shuffle > 1:
            order = random.Random(seed_of(self.seed, epoch, *urls))
            videos = filters.shuffle(self.shuffle, rng=order)(videos)
        for video in videos:
            yield video if isinstance(video, Unreadable) else self._item(video, epoch)

    def _videos(self, url: str) -> Iterator[Any]:
        """The videos of a tar file as webdataset groups its members: by their names up to the first dot."""
        from webdataset.gopen import gopen
        from webdataset.tariterators import group_by_keys, tar_file_expander

        try:
            with gopen(url) as stream:
                yield from group_by_keys(tar_file_expander([{"url": url, "stream": stream}]))
        except GeneratorExit:
            raise
        except Exception as error:  # tarfile's, zlib's, the system's and webdataset's own
            reason = f"{type(error).__name__}: {error.args[0] if error.args else ''}"
            if self.on_error == "raise":
                raise ValueError(
                    f"expected a tar file of videos, got {url!r} ({reason}): copy it again, or pass on_error='skip' "
                    "to leave the rest of it out"
                ) from error
            yield self._left_out(url, f"the rest of the tar file, {reason}")

    def _item(self, video: dict[str, Any], epoch: int) -> Any:
        name = f"{video['__url__']}/{video['__key__']}"
        fields = {field: data for field, data in video.items() if not field.startswith("__")}
        film = [field for field in fields if f".{field}".endswith(VIDEOS)]
        # of x.y.mp4 the label is x.y.cls
        behind = film[0].rpartition(".")[0] + "." if film else "."
        own = {field.removeprefix(behind): data for field, data in fields.items() if field.startswith(behind)}
        label = self._label({**fields, **own}, name)
        with seeded(seed_of(self.seed, epoch, os.path.basename(video["__url__"]), video["__key__"])):
            try:
                if len(film) != 1:
                    raise ValueError(
                        f"expected one video among the members of {name!r}, got {', '.join(fields)}: write each under "
                        "a name of its own, which has no dot but that of the suffix"
                    )
                clips = self._read(fields[film[0]], f".{film[0]}", name)
            except read_errors() as error:
                if self.on_error == "raise":
                    raise
                return self._left_out(name, str(error))
            return prepare(clips, label, self.sampling.train, self.flips, self.transform)

    def _read(self, data: bytes, suffix: str, name: str) -> Tensor:
        # From a file: the decoder opens it several times, and looks for what FFmpeg would pass over.
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, f"video{suffix}")
            Path(path).write_bytes(data)
            try:
                return self.sampling.read(path)
            except read_errors() as error:
                reason = str(error).replace(path, name)
                raise ValueError(
                    f"expected a video that can be read, got {name!r} ({reason}): write the tar file anew"
                ) from error

    def _label(self, fields: dict[str, bytes], name: str) -> int:
        label = _label_of(fields, name)
        if label is None:
            if self.sampling.train:
                raise ValueError(
                    f"expected a label for each video to train on, got {', '.join(fields)} for {name!r}: write a .cls "
                    "beside it"
                )
            return UNLABELLED
        if not self.classes and not is_number(str(label)):
            raise ValueError(
                f"expected the number of a class, got {label!r} for {name!r}: pass classes, their names in order"
            )
        (number,), _ = number_labels([label], self.classes or None, repr(name))
        return UNLABELLED if number is None else number

    def _left_out(self, name: str, reason: str) -> Any:
        worker = get_worker_info()
        self._unreadable[0 if worker is None else worker.id % MAX_WORKERS] += 1
        unreadable = Unreadable(name, reason)
        unreadable.report()
        return unreadable


def read_shards(
    urls: AnyPath | Sequence[AnyPath], num_segments: int, *, classes: Sequence[str] = (), **options: Any
) -> ShardDataset:
    """Clips and labels of the videos in tar files, as webdataset packs them.

    The members of a video have its name: `0001.mp4`, and its label as `0001.cls` (a number or the name of a class),
    `.txt`, `.label`, or as `label` in `0001.json`. Tar files are dealt out to processes and workers: give at least
    as many. The processes of a distributed training may get unequally many videos.

    Args:
        urls: of tar files: paths, `shard-{000..099}.tar`, a folder of them, or what else webdataset opens.
        num_segments: T, the frames of a clip.
        classes: the names in the order of their numbers, where labels are names, and for `flip_pairs`. Numbers count
            from 0; they are names where all classes are numbers.
        options: `transform`, `training`, `sampling`, `clips`, `size`, `on_error`, `flip_pairs` and `seed` as for
            `VideoDataset`, with the same items; of a damaged tar file, what follows cannot be read. And `shuffle`, how
            many videos a worker holds in training to pick the next one from; 1 keeps the order.

    Returns:
        An `IterableDataset`. The clip drawn of a video is a function of the seed, the epoch (`set_epoch`), its name
        and that of the tar file; the order also of how many workers there are. `num_unreadable` counts.

    Raises:
        ImportError: webdataset is not installed.
        ValueError: as for `VideoDataset`; no tar file; while reading, a label that is none.

    Example:
        >>> import io, tarfile, tempfile, PIL.Image
        >>> frames, film = [PIL.Image.new("RGB", (64, 48), (20 * i, 0, 0)) for i in range(8)], io.BytesIO()
        >>> frames[0].save(film, "gif", save_all=True, append_images=frames[1:])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with tarfile.open(f"{folder}/videos.tar", "w") as tar:
        ...         for name, data in (("a.gif", film.getvalue()), ("a.cls", b"3")):
        ...             member = tarfile.TarInfo(name)
        ...             member.size = len(data)
        ...             tar.addfile(member, io.BytesIO(data))
        ...     [(clips.shape, label) for clips, label in read_shards(folder, 4)]
        [(torch.Size([1, 4, 3, 48, 64]), 3)]
    """
    return ShardDataset(urls, num_segments, classes=classes, **options)


def _process() -> tuple[int, int]:
    """Which process of a training this is, and of how many."""
    from webdataset.utils import pytorch_worker_info

    rank, world, *_ = pytorch_worker_info()
    return rank, world


def _expanded(urls: AnyPath | Sequence[AnyPath]) -> list[str]:
    from webdataset.shardlists import expand_urls

    given = [urls] if isinstance(urls, (str, os.PathLike)) else list(urls)
    found = []
    for url in [os.fspath(url) for url in given]:
        if os.path.isdir(url):
            names = [name for name in os.listdir(url) if name.lower().endswith((".tar", ".tar.gz", ".tgz"))]
            found += [os.path.join(url, name) for name in sorted(names, key=natural)]
        else:
            found += [url] if os.path.exists(url) else expand_urls(url)
    missing = [url for url in found if ":" not in url and not os.path.exists(url)]
    if missing or not found:
        raise ValueError(
            f"expected tar files, got {', '.join(map(repr, missing[:5] or given))}, "
            f"{'which do not exist' if missing else 'without one'}: check the path"
        )
    return found


def _label_of(fields: dict[str, bytes], name: str) -> str | int | None:
    """The label among the members of a video."""
    for field in ("cls", "label", "txt"):
        if field in fields:
            return fields[field].decode("utf-8", "replace").strip()
    if "json" not in fields:
        return None
    try:
        row = json.loads(fields["json"])
        return next((row[key] for key in LABELS if row.get(key) not in (None, "")), None)
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"expected an object with a label in the JSON of {name!r}, got {error}: write the tar file anew"
        ) from error
