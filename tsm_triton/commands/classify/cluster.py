"""`tsm-triton classify --engine ray`: Ray Data reads and decodes on CPUs, and predicts on the accelerators there are.

Every machine must see the videos, the checkpoint and the folder of the Parquet files under the same paths. A block
whose worker is lost is computed again, by Ray.
"""

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...progress import say
from ...video.datasets import Listing, Sample, Unreadable, VideoDataset
from ..common import printable
from ..exported import exported_file
from ..interrupt import exit_on_signal
from ..models import Said, load_trained_model
from ..predicting import Predictor
from ..ranking import likeliest
from ..workers import reasons_in

__all__ = ["check_folder", "classify_on_cluster"]


class Decoder:
    """A row with a video's path -> a row with its clips `[V, T, 3, H, W]`; none of one that is left out."""

    def __init__(self, num_segments: int, options: dict[str, Any]) -> None:
        self.num_segments, self.options = num_segments, options

    def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        item: Any = VideoDataset(Listing((Sample(row["video"]),)), self.num_segments, **self.options)[0]
        return [] if isinstance(item, Unreadable) else [{**row, "clips": item[0].numpy()}]


class Classifying:
    """A batch of clips -> the rows of a table; an actor for each accelerator."""

    def __init__(self, args: argparse.Namespace, labels: Sequence[str]) -> None:
        torch.set_num_threads(1)
        trained = load_trained_model(args.checkpoint, Said.of(args))
        self.predictor, self.labels, self.top = Predictor.of(trained, args), labels, args.top

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        from .command import row_of

        logs = self.predictor.log_probabilities(torch.from_numpy(batch["clips"].copy()))
        rows = [
            row_of(path, likeliest(one, self.labels, self.top))
            for path, one in zip(batch["video"], logs, strict=True)
        ]
        return {"number": batch["number"], **{key: [row[key] for row in rows] for key in rows[0]}}


def classify_on_cluster(
    args: argparse.Namespace, samples: Sequence[Sample], labels: Sequence[str], predictor: Predictor
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """The likeliest labels of each video that can be read, in their order; `args.parquet` becomes a folder of files.

    A cluster that runs is taken (`RAY_ADDRESS`); else this machine is one.
    """
    import ray
    from ray.exceptions import RayTaskError

    begun = not ray.is_initialized()
    if begun:
        ray.init(include_dashboard=False, log_to_driver=False)
    whole = args.parquet.resolve()
    partial = whole.with_name(f".{whole.name}.{os.getpid()}.partial")
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0)) if args.device != "cpu" else 0
        rows = [{"number": number, "video": os.path.abspath(s.path)} for number, s in enumerate(samples)]
        say(f"Classifying {len(rows)} videos on {gpus or 'no'} accelerators")
        blocks = max(1, min(len(rows) // args.batch_size, 1000))
        clips = ray.data.from_items(rows, override_num_blocks=blocks).flat_map(
            Decoder(predictor.num_segments, predictor.options), num_cpus=1
        )
        tables = clips.map_batches(
            Classifying,
            fn_constructor_args=(_absolute(args), list(labels)),
            batch_size=args.batch_size,
            compute=ray.data.ActorPoolStrategy(size=gpus or 1),
            num_gpus=1 if gpus else 0,
            num_cpus=1,
        )
        # Ctrl-C would be Ray's to handle from here on, and Ray cannot be asked to end behind a block
        with exit_on_signal(), _said_by_workers(RayTaskError):
            tables.write_parquet(str(partial))
            found = _rows(partial)
        _replace_folder(partial, whole)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if begun:
            ray.shutdown()
    for row in found:
        ranks = range(1, 1 + sum(key.startswith("label_") for key in row))
        yield samples[row["number"]].path, [(row[f"label_{k}"], row[f"probability_{k}"]) for k in ranks]


@contextmanager
def _said_by_workers(kind: type[Exception]) -> Iterator[None]:
    """An error of a worker in its own words: what is raised here has its traceback for a message."""
    try:
        yield
    except kind as error:
        own = [reason for reason in reasons_in(str(error)) if not reason.startswith("UDF failed")]
        told = ValueError(own[0] if own else str(error).strip().rpartition("\n")[2])
        raise told from error


def _rows(folder: Path) -> list[dict[str, Any]]:
    """What was written, in the order of the videos.

    Raises:
        ValueError: nothing.
    """
    from pyarrow import parquet

    written = folder.is_dir() and any(folder.iterdir())
    rows = parquet.read_table(folder).to_pylist() if written else []
    if not rows:
        raise ValueError("expected videos that can be read, got none: check the files")
    return sorted(rows, key=lambda row: row["number"])


def _absolute(args: argparse.Namespace) -> argparse.Namespace:
    """Workers stand in another folder."""
    path = args.checkpoint.absolute() if isinstance(args.checkpoint, Path) else args.checkpoint
    exported = exported_file(args.model, args.checkpoint, "--checkpoint")
    model = args.model if exported is None else str(exported.absolute())
    return argparse.Namespace(**{**vars(args), "checkpoint": path, "model": model})


def check_folder(path: Path) -> None:
    """Whether results may become this folder.

    Raises:
        ValueError: it is no folder, the one that is stood in, or it holds what is not of a classification before.
    """
    whole = path.resolve()
    if whole in (here := Path.cwd(), *here.parents):
        got = "the current folder or one around it"
    elif whole.exists() and not whole.is_dir():
        got = "a file"
    elif whole.is_dir() and (other := next((each for each in whole.iterdir() if not _written(each)), None)):
        got = f"a folder with {printable(other.name)!r} in it, which is not of a classification with ray"
    else:
        return
    raise ValueError(
        f"expected --parquet to be a new folder, or one of a classification with ray alone, which is replaced, got "
        f"{printable(str(path))!r}, {got}: pass another path"
    )


def _written(path: Path) -> bool:
    """Whether a file is a part of a table of ours."""
    from pyarrow import ArrowException, parquet

    if path.is_symlink() or not path.is_file() or path.suffix != ".parquet":
        return False
    try:
        names = parquet.read_schema(path).names
    except (ArrowException, OSError):
        return False
    return {"number", "video", "label_1", "probability_1"} <= set(names)


def _replace_folder(new: Path, path: Path) -> None:
    """Of files of ours alone: what came into it since it was checked stays, and so does the folder."""
    check_folder(path)
    if path.is_dir():
        for part in list(path.iterdir()):
            part.unlink()
        path.rmdir()
    os.replace(new, path)
