"""What `tsm-triton inspect` prints: a row for each thing that is known of a file, and the line that loads it."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from ...checkpoints.download import is_remote
from ...checkpoints.load import open_checkpoint
from ...checkpoints.native import Checkpoint
from ...checkpoints.published import LAYOUTS, Published
from ...checkpoints.published.build import full_name, sites_of
from ...checkpoints.published.layout import Choice
from ...preparation import Preparation

__all__ = ["run"]

OPTIONS = ("num_segments", "place", "shift_div", "direction", "non_local")
NAMED = 4


def run(args: argparse.Namespace) -> int:
    options = {key: value for key in OPTIONS if (value := getattr(args, key)) is not None}
    source = args.file if is_remote(args.file) else Path(args.file)
    checkpoint, published = open_checkpoint(source, args.checksum, options, asks=False)
    if published is not None:
        rows = _of_published(published, args.file, options)
    elif checkpoint.ours:
        rows = _of_ours(checkpoint, args.file)
    else:
        rows = _of_others(checkpoint, args.file)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}".rstrip())
    return 0


def _of_published(published: Published, file: str, options: dict[str, Any]) -> list[tuple[str, str]]:
    where = next(layout.where for layout in LAYOUTS if layout.name == published.layout)
    networks = [full_name(library, name) for library, (name, _) in published.networks.items()]
    rows = [
        ("layout", f"{published.layout} ({where})"),
        ("network", f"{' or '.join(networks)}, {published.classes} classes, {_weights(published.state)}"),
    ]
    if not published.sites:
        rows.append(("shift", "none"))
    else:
        rows += [(name, _choice(choice)) for name, choice in published.shifts.items()]
        rows.append(("sites", _few(sites_of(published, next(iter(published.networks))))))
    if published.pooled:
        rows.append(("temporal pool", "before layer2: the model gives a row for every second frame"))
    if published.mode is not None:
        rows.append(("non_local", f"{_choice(published.mode)}, behind {_few(published.non_local)}"))
    if published.recurrent is not None:
        rows.append(
            ("head", f"a GRU of {published.recurrent.layers} layers, {published.recurrent.hidden} wide")
        )
    rows += [("frames", _frames(published.preparation)), ("labels", _few(published.labels or ()) or "none")]
    rows += [("note", note) for note in published.notes]
    asked = {**published.shifts, "non_local": published.mode or Choice("", "")}
    missing = [key for key, choice in asked.items() if choice.value is None and key != "shift_div"]
    said = "".join(f", {key}={value!r}" for key, value in options.items())
    said += "".join(f", {key}=..." for key in missing)
    return [*rows, ("load", f"tsm_triton.load_checkpoint({file!r}{said})")]


def _choice(choice: Choice) -> str:
    return choice.why if choice.value is None else f"{choice.value!r}, {choice.why}"


def _of_ours(checkpoint: Checkpoint, file: str) -> list[tuple[str, str]]:
    origin, patch = checkpoint.origin, checkpoint.patch
    name = f"unknown: {checkpoint.why_not}" if origin is None else origin.full_name
    options = "" if origin is None else "".join(f", {key}={value!r}" for key, value in origin.options.items())
    rows = [("layout", "tsm_triton"), ("network", f"{name}{options}, {_weights(checkpoint.state)}")]
    if patch is None:
        rows.append(("shift", "none"))
    else:
        rows += [
            (key, repr(patch[key]))
            for key in ("num_segments", "shift_div", "direction", "fold_order", "place")
        ]
        rows.append(("sites", _few([site["name"] for site in patch["sites"]])))
    if checkpoint.preparation is not None:
        rows.append(("frames", _frames(checkpoint.preparation)))
    rows.append(("labels", _few(checkpoint.labels or ()) or "none"))
    load = f"tsm_triton.load_checkpoint({file!r})"
    return [*rows, ("load", load if origin is not None else load.replace("(", "(model, ", 1))]


def _of_others(checkpoint: Checkpoint, file: str) -> list[tuple[str, str]]:
    known = ", ".join(layout.name for layout in LAYOUTS)
    return [
        ("layout", f"none that is known: tsm_triton, {known}"),
        ("network", f"unknown, {_weights(checkpoint.state)}"),
        ("keys", _few(checkpoint.state)),
        ("shift", "unknown: a state dict does not say it"),
        (
            "load",
            f"tsm_triton.load_checkpoint(model, {file!r}), into a model that is made and patched as this one was",
        ),
    ]


def _weights(state: dict[str, Tensor]) -> str:
    return f"{sum(value.numel() for value in state.values()) / 1e6:.2f} million weights"


def _frames(preparation: Preparation) -> str:
    mean, std = (", ".join(map(str, value)) for value in (preparation.mean, preparation.std))
    return f"{preparation.size} pixels of a short side of {preparation.short_side}, mean {mean}, std {std}"


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
