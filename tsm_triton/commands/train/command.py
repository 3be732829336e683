"""`tsm-triton train DATA`: read what is asked for, build the model, and hand both to the loop."""

import argparse
import hashlib
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...backbones import create_model
from ...extras import check_installed
from ...preparation import preparation_of, set_preparation
from ...training.machine import default_precision, default_workers
from ...training.recipes import FINE_TUNING
from ...training.settings import Settings
from ...video.classifier import VideoClassifier
from ...video.datasets import Listing, VideoDataset, collate
from ...video.datasets.flips import named_pairs
from ...video.transforms import transform_for
from ..common import few_threads, make_folder, pick_device
from ..data import check_labels, names, read_data
from ..interrupt import stop_on_signal
from ..models import check_runs
from . import MODEL_DEFAULTS
from .recipe import recipe_options
from .start import Start, read_start

if TYPE_CHECKING:
    from ...training.state import Progress

__all__ = ["run"]

TRAINED_LR = 0.1  # of the default rate, for weights that have learnt already


def run(args: argparse.Namespace) -> int:
    check_installed("train", "av", "matplotlib", "accelerate", "torchmetrics", "tensorboard")
    from ...training.fitting import Stopped, fit
    from ...training.folder import check_apart, check_folder

    few_threads()
    device = None if args.device is None else pick_device(args.device)
    start = None if args.weights is None else read_start(args.weights)
    options = _options(args, start)
    settings = _settings(args, options)
    listing = read_data(args.data, args.split, args.root, default_split="train", on_error=args.on_error)
    val = _val_listing(args, listing)
    if val is not None:
        check_labels(val, args.data if args.val is None else args.val)
    read = [Path(data) for data in (args.data, args.val) if data is not None]
    check_apart(args.out, read, (video.path for part in (listing, val) if part for video in part.samples))
    check_folder(args.out, args.resume)
    torch.manual_seed(settings.seed)
    model = create_model(
        options["model"],
        options["num_segments"],
        len(listing.classes),
        options["pretrained"],
        options["direction"],
        place=options["place"],
        shift_div=options["shift_div"],
        dropout=options["dropout"],
        size=options["size"],
    )
    notes = [] if start is None else start.load(model, listing.classes, options["num_segments"])
    frames = preparation_of(model, size=options["size"])
    set_preparation(model, frames, options["sampling"])
    check_runs(model, options["model"], options["num_segments"], frames.size)
    train_data, val_data = _datasets(args, options, settings, model, listing, val)
    make_folder(args.out)
    if _is_first():
        print(*notes, sep="\n", end="\n" if notes else "", flush=True)

    with stop_on_signal() as interrupt:
        try:
            progress = fit(
                VideoClassifier(model, options["num_segments"]),
                train_data,
                val_data,
                settings,
                num_classes=len(listing.classes),
                labels=listing.classes,
                out=args.out,
                resume=args.resume,
                about={
                    **options,
                    "size": frames.size,
                    "frames": [frames.short_side, frames.mean, frames.std],
                    "flip_pairs": _named_flips(train_data),
                    "weights": start and start.name,
                    "data": _fingerprint(listing),
                    "val": val and _fingerprint(val),
                },
                collate=collate,
                device=device,
                stop=lambda: interrupt.asked,
            )
        except Stopped:
            _say(
                f"Stopped, with the state saved in {str(args.out)!r}: the same command with --resume goes on there."
            )
            return _parted(settings, 128 + interrupt.number)
    _say(_summary(args.out, progress, train_data, val_data))
    return _parted(settings, 0)


def _options(args: argparse.Namespace, start: Start | None) -> dict[str, Any]:
    """What the weights say, the recipe instead of them, and the command line instead of both."""
    recipe = {} if args.recipe is None else recipe_options(args.recipe)
    known = {*MODEL_DEFAULTS, *(field.name for field in fields(Settings))}
    given = {name: value for name, value in vars(args).items() if name in known and value is not None}
    if start is None:
        options = {**MODEL_DEFAULTS, **recipe, **given}
        _check_scratch(args.recipe, options)
        return options
    if args.pretrained:
        raise ValueError("expected one of --pretrained and --weights, got both: drop one")
    options = {**MODEL_DEFAULTS, **start.options(), **recipe, **given, "pretrained": False}
    start.check(options)
    return options


def _check_scratch(recipe: str | None, options: dict[str, Any]) -> None:
    """Raise for a recipe that makes sense from weights alone, and say what else does."""
    if options["pretrained"]:
        return
    if recipe in FINE_TUNING:
        raise ValueError(
            f"expected weights to start from with --recipe {recipe}, which fine-tunes, got none: pass --weights FILE, "
            "of Kinetics for instance, --pretrained for those of images, or choose another recipe"
        )
    frozen = options.get("freeze_bn", Settings.freeze_bn)
    if frozen != "none" and _is_first():
        print(
            f"tsm-triton: warning: --freeze-bn {frozen} keeps batch-norms as they were made, for no weights were "
            "given: pass --weights FILE or --pretrained, or --freeze-bn none",
            file=sys.stderr,
            flush=True,
        )


def _is_first() -> bool:
    """Whether this is the process that speaks: accelerate, which knows it too, is set up by the loop."""
    return int(os.environ.get("RANK", "0")) == 0


def _settings(args: argparse.Namespace, options: dict[str, Any]) -> Settings:
    """The loop's part of the options, which are left without it."""
    values = {field.name: options.pop(field.name) for field in fields(Settings) if field.name in options}
    milestones = tuple(values.get("milestones", ()))
    # a recipe's go with its schedule
    is_recipes = args.milestones is None and args.sched not in (None, "multistep")
    values["milestones"] = () if is_recipes else milestones
    if options["pretrained"] or args.weights is not None:
        values.setdefault("lr", Settings.lr * TRAINED_LR)
    values.setdefault("workers", default_workers())
    values.setdefault("precision", "no" if args.device == "cpu" else default_precision())
    return Settings(**values)


def _val_listing(args: argparse.Namespace, listing: Listing) -> Listing | None:
    if args.val is not None:
        return read_data(
            args.val, None, args.root, default_split="val", classes=listing.classes, on_error=args.on_error
        )
    if args.split in (None, "train") and names(args.data, "val"):
        return read_data(
            args.data, "val", args.root, default_split="val", classes=listing.classes, on_error=args.on_error
        )
    return None


def _datasets(
    args: argparse.Namespace,
    options: dict[str, Any],
    settings: Settings,
    model: Any,
    listing: Listing,
    val: Listing | None,
) -> tuple[VideoDataset, VideoDataset | None]:
    shared: dict[str, Any] = dict(
        sampling=options["sampling"],
        on_error=args.on_error,
        seed=settings.seed,
        size=preparation_of(model).short_side,
    )
    _check_flips(options, listing)
    train_data = VideoDataset(
        listing,
        options["num_segments"],
        transform=transform_for(model, train=True, flip=options["flip"]),
        training=True,
        flip_pairs=options["flip_pairs"],
        **shared,
    )
    if val is None:
        return train_data, None
    return train_data, VideoDataset(val, options["num_segments"], transform=transform_for(model), **shared)


def _check_flips(options: dict[str, Any], listing: Listing) -> None:
    """Raise in the words of the options for clips that are mirrored under a label which is then wrong."""
    if not options["flip"]:
        return
    if options["flip_pairs"] is not None:
        raise ValueError(
            f"expected --flip or --flip-pairs, got both, --flip-pairs {options['flip_pairs']}: pass --no-flip to "
            "mirror clips with their labels exchanged, or leave --flip-pairs out"
        )
    if pairs := named_pairs(listing.classes):
        raise ValueError(
            f"expected clips that are not mirrored under their own label (RandomHorizontalFlip), got flip with classes "
            f"as {listing.classes[pairs[0][0]]!r} and {listing.classes[pairs[0][1]]!r}: pass --no-flip, and "
            "--flip-pairs names to mirror them with their labels exchanged"
        )


def _named_flips(train_data: VideoDataset) -> dict[str, str | None] | None:
    """What labels become in mirrored clips, whichever file says so."""
    classes, flips = train_data.listing.classes, train_data.flips
    if flips is None:
        return None
    return {classes[label]: None if other is None else classes[other] for label, other in flips.items()}


def _fingerprint(listing: Listing) -> str:
    """Which videos with which labels, wherever they lie."""
    facts = (listing.classes, [(Path(sample.path).name, sample.label) for sample in listing.samples])
    return hashlib.blake2b(repr(facts).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _summary(out: Path, progress: "Progress", train: VideoDataset, val: VideoDataset | None) -> str:
    assert progress.best is not None
    best = progress.best
    lines = []
    if val is not None:
        lines.append(
            f"Best of {len(progress.rows)} epochs: epoch {best['epoch']}, {best['val_top1']:.1f} % top-1 and "
            f"{best['val_top5']:.1f} % top-5 of {len(val) - best['val_left_out']} videos."
        )
    read = [train] if val is None else [train, val]
    missing = [path for data in read for path in data.listing.missing]
    # names are known of what this start has read, on each process of its share; of what came before, the epoch's number
    seen = {path: None for process in _of_all([data.unreadable for data in read]) for path in process}
    clips = sum(best.get(f"{part}_left_out", 0) for part in ("train", "val"))
    if count := len(missing) + max(len(seen), clips):
        names = [*seen, *missing]
        named = f": {', '.join(names[:3])}{' ...' if count > len(names[:3]) else ''}" if names else ""
        lines.append(f"Left out {count} videos that cannot be read{named}")
    names = (
        "best.pt",
        "last.pt",
        "metrics.csv",
        "curves.png",
        *(["confusion.png"] if val is not None else []),
    )
    lines.append(f"Wrote {', '.join(names)} and tensorboard/ in {str(out)!r}.")
    return "\n".join(lines)


def _of_all(items: list[Any]) -> list[Any]:
    """Those of every process."""
    from accelerate.utils import gather_object

    return gather_object(items)


def _say(text: str) -> None:
    """On one of the processes."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        print(text, flush=True)


def _parted(settings: Settings, status: int) -> int:
    """End together with the other processes."""
    from accelerate import PartialState

    state = PartialState()
    if state.num_processes > 1:
        state.wait_for_everyone()
        if (
            settings.fsdp
        ):  # behind a sharded state that was loaded, gloo does not let the interpreter end (torch 2.15)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        state.destroy_process_group()
    return status
