"""`tsm-triton classify VIDEO...`: the likeliest labels of each video, as a table, files and pictures."""

import argparse
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...extras import check_installed
from ...video.datasets import Sample, read_listing
from ...video.datasets.folders import split_folders
from ..common import few_threads, make_folder, printable
from ..interrupt import stop_on_signal
from ..labels import labels_of
from ..models import Said, load_trained_model
from ..outputs import check_writable, claim
from ..predicting import Predictor
from ..ranking import likeliest
from ..tables import as_text, save_csv, save_json, save_parquet
from .picture import save_picture

__all__ = ["row_of", "run"]

LISTS = (".csv", ".json", ".tsv", ".txt")


def run(args: argparse.Namespace) -> int:
    needed = ["av", *(["matplotlib"] if args.pictures else []), *(["pyarrow"] if args.parquet else [])]
    check_installed("classify", *needed, *(["ray", "pyarrow"] if args.engine == "ray" else []))
    few_threads()
    if args.engine == "ray" and args.parquet is None:
        args.parquet = Path("classes.parquet")
    _check_files(args)
    samples, missing = _samples(args)
    trained = load_trained_model(args.checkpoint, Said.of(args))
    predictor = Predictor.of(trained, args)
    labels = labels_of(args, trained.labels, predictor.num_classes)
    if args.pictures:
        make_folder(args.pictures)

    found: list[tuple[str, list[tuple[str, float]]]] = []
    with stop_on_signal() as interrupt:
        if args.engine == "ray":
            from .cluster import classify_on_cluster

            results = classify_on_cluster(args, samples, labels, predictor)
        else:
            predictions = predictor.predictions(samples, "Classifying", interrupt)
            results = ((samples[n].path, likeliest(logs, labels, args.top)) for n, logs in predictions)
        for path, top in results:
            if args.pictures:
                picture = args.pictures / _picture_name(len(found), path)
                save_picture(picture, path, top, predictor.num_segments)
            found.append((path, top))
        rows = [row_of(path, top) for path, top in found]
        if args.json:
            save_json(args.json, [_record(path, top) for path, top in found])
        if args.csv:
            save_csv(args.csv, rows)
        if args.parquet and args.engine == "local":
            save_parquet(args.parquet, rows)
    print(as_text([_shown(path, top) for path, top in found]))
    written = [str(path) for path in (args.json, args.csv, args.parquet, args.pictures) if path is not None]
    if written:
        print(f"Wrote {', '.join(map(printable, written))}.")
    if interrupt.asked:
        print(f"Stopped after {len(found)} of {len(samples)} videos.")
        return 128 + interrupt.number
    lost = len(samples) + len(missing) - len(found)
    if lost:
        print(f"Left out {lost} videos that cannot be read.")
    return 1 if lost else 0


def row_of(path: str, top: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """A line of CSV and Parquet: the video, then label and probability of each rank."""
    row: dict[str, Any] = {"video": path}
    for rank, (label, probability) in enumerate(top, 1):
        row |= {f"label_{rank}": label, f"probability_{rank}": probability}
    return row


def _record(path: str, top: Sequence[tuple[str, float]]) -> dict[str, Any]:
    return {
        "video": path,
        "top": [{"label": label, "probability": probability} for label, probability in top],
    }


def _shown(path: str, top: Sequence[tuple[str, float]]) -> dict[str, Any]:
    return {
        "video": path,
        **{f"top {rank}": f"{label} {share:.1%}" for rank, (label, share) in enumerate(top, 1)},
    }


def _samples(args: argparse.Namespace) -> tuple[list[Sample], list[str]]:
    """The videos of the arguments, in their order: files, and what folders and lists hold; and what is not there."""
    samples, missing = list[Sample](), list[str]()
    for video in args.videos:
        if os.path.isdir(video) or video.lower().endswith(LISTS):
            if args.split is None and os.path.isdir(video) and (splits := split_folders(video)):
                raise ValueError(
                    f"expected a part of {video!r}, which holds several, got none: pass "
                    f"{' or '.join(f'--split {name}' for name in splits)}, or one of its folders"
                )
            listing = read_listing(video, split=args.split, root=args.root, missing=args.on_error)
            samples += [Sample(sample.path) for sample in listing.samples]
            missing += listing.missing
        elif os.path.exists(video):
            samples.append(Sample(video))
        elif args.on_error == "skip":
            warnings.warn(f"left out {video!r}, which is not there", stacklevel=2)
            missing.append(video)
        else:
            raise ValueError(f"expected videos, got {video!r}, which is not there: check the path")
    if not samples:
        raise ValueError(
            f"expected videos, got {', '.join(map(repr, missing[:3]))}, which are not there: check the paths"
        )
    return samples, missing


def _picture_name(number: int, path: str) -> str:
    """Of a file of its own, whatever videos of other folders are called."""
    return f"{number:05d}-{re.sub(r'[^A-Za-z0-9._-]+', '_', Path(path).stem)[:80]}.png"


def _check_files(args: argparse.Namespace) -> None:
    """Raise now for what could not be written in the end, or would replace what is read."""
    read = (args.checkpoint, args.model and Path(args.model), args.labels, *map(Path, args.videos))
    taken = {path.resolve() for path in read if isinstance(path, Path)}
    for option in ("json", "csv", "parquet"):
        path: Path | None = getattr(args, option)
        if path is None:
            continue
        folder = option == "parquet" and args.engine == "ray"
        if folder:
            from .cluster import check_folder

            check_folder(path)
        check_writable(f"--{option}", path, folder=folder)
        claim(f"--{option}", path, taken)
