"""`tsm-triton eval DATA`: accuracies, per class and per video."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from ...extras import check_installed
from ...files import replacing
from ...training.charts import save_confusion
from ..common import few_threads, make_folder
from ..data import check_labels, read_data
from ..interrupt import stop_on_signal
from ..labels import check_distinct, labels_for
from ..models import Said, load_trained_model
from ..outputs import RESULTS, others_of
from ..predicting import Predictor
from ..ranking import likeliest
from ..tables import as_text, save_csv, save_parquet

__all__ = ["run"]

TABLES = {"csv", "parquet"}
SHOWN = 20  # classes in what is printed


def run(args: argparse.Namespace) -> int:
    modules = ["av", "matplotlib", "torchmetrics", *(["pyarrow"] if args.table == "parquet" else [])]
    check_installed("eval", *modules)
    from ...training.metrics import Scores

    _check_folder(args.out)
    few_threads()
    trained = load_trained_model(args.checkpoint, Said.of(args))
    predictor = Predictor.of(trained, args)
    names = labels_for(args.labels, trained.labels)
    check_distinct(names or (), str(args.labels or args.checkpoint or args.model))
    listing = read_data(
        args.data, args.split, args.root, default_split="val", classes=names, on_error=args.on_error
    )
    check_labels(listing, args.data)
    if names is None and not all(name.isdecimal() for name in listing.classes):
        raise ValueError(
            f"expected a model that says which class is which, got one without labels for {args.data!r}: pass --labels "
            "with one on each line, in the order of the model's classes"
        )
    labels, num_classes = listing.classes, predictor.num_classes
    if len(labels) != num_classes:
        raise ValueError(
            f"expected videos of the model's {num_classes} classes, got {len(labels)} in {args.data!r}: choose the "
            "checkpoint that was trained on them"
        )
    make_folder(args.out)
    total = len(listing.samples) + len(listing.missing)

    scores, rows = Scores(num_classes, "cpu", confusion=True), []
    with stop_on_signal() as interrupt:
        for index, logs in predictor.predictions(listing.samples, "Testing", interrupt):
            sample = listing.samples[index]
            assert sample.label is not None
            scores.update(logs[None], torch.tensor([sample.label]))
            (first, share), *_ = top = likeliest(logs, labels, 5)
            rows.append(
                {
                    "video": sample.path,
                    "class": labels[sample.label],
                    "predicted": first,
                    "probability": share,
                    "correct": first == labels[sample.label],
                    "in_top5": labels[sample.label] in [label for label, _ in top],
                }
            )
        if interrupt.asked:  # accuracies of some of the videos would pass for those of all
            print(f"Stopped after {len(rows)} of {len(listing.samples)} videos; nothing was written.")
            return 128 + interrupt.number
        if not rows:
            raise ValueError(f"expected videos that can be read, got none in {args.data!r}: check the files")
        matrix, accuracy = scores.confusion(), scores.compute()
        classes = _per_class(labels, matrix)
        _write(args, rows, classes, matrix, labels, accuracy, total)
    print(as_text(sorted(classes, key=lambda row: row["top1"])[:SHOWN]))
    if len(classes) > SHOWN:
        print(f"... the {SHOWN} lowest of {len(classes)} classes")
    print(
        f"Top-1 {accuracy['top1']:.1f} %, top-5 {accuracy['top5']:.1f} % of {len(rows)} videos"
        f"{_left_out(total - len(rows))}.\n"
        f"Wrote predictions.{args.table}, classes.csv, results.json and confusion.png in {str(args.out)!r}."
    )
    return 0


def _check_folder(out: Path) -> None:
    """Raise for a folder whose files would be replaced, and no evaluation wrote."""
    names = (*(f"predictions.{table}" for table in sorted(TABLES)), "classes.csv", "confusion.png")
    others = others_of(out, names, {"top1", "confusion", "left_out"})
    if others:
        raise ValueError(
            f"expected --out to be a new folder, or an evaluation's, got {str(out)!r} with {min(others)!r} in it: pass "
            "another one"
        )


def _left_out(count: int) -> str:
    return f", {count} left out that cannot be read" if count else ""


def _per_class(labels: tuple[str, ...], matrix: list[list[int]]) -> list[dict[str, Any]]:
    """How many videos of each class there are, and how many percent were recognised."""
    found = []
    for number, (label, row) in enumerate(zip(labels, matrix, strict=True)):
        videos = sum(row)
        if videos:
            found.append({"class": label, "videos": videos, "top1": round(100 * row[number] / videos, 2)})
    return found


def _write(
    args: argparse.Namespace,
    rows: list[dict[str, Any]],
    classes: list[dict[str, Any]],
    matrix: list[list[int]],
    labels: tuple[str, ...],
    accuracy: dict[str, float],
    total: int,
) -> None:
    out: Path = args.out
    if args.table == "parquet":
        save_parquet(out / "predictions.parquet", rows)
    else:
        save_csv(out / "predictions.csv", rows)
    for table in TABLES - {args.table}:  # of the evaluation before
        (out / f"predictions.{table}").unlink(missing_ok=True)
    save_csv(out / "classes.csv", classes)
    title = f"{accuracy['top1']:.1f} % top-1 of {len(rows)} videos"
    save_confusion(out / "confusion.png", matrix, labels, title)
    results = {**accuracy, "videos": len(rows), "left_out": total - len(rows), "confusion": matrix}
    with replacing(out / RESULTS) as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n")
