"""What a training goes on from: whole folders, each of which appears at once and replaces the one before."""

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import load

__all__ = ["PATTERN", "Progress", "Stopped", "latest_state", "load_state", "save_state"]

PATTERN = re.compile(r"state-(\d{6})")


class Stopped(Exception):
    """A training that was asked to end, and can go on from its state."""


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        step: steps of the optimiser that are done.
        seconds: that the steps of this epoch took so far.
        rows: a row of metrics.csv for each epoch that is done.
        best: the row of the weights that are kept as the best ones, or None.
        confusion: their confusion matrix, or None.
        about: what the training was begun with.
    """

    step: int = 0
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    confusion: list[list[int]] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def latest_state(folder: Path) -> Path | None:
    """The state to go on from, or None: of several the last one, each of which is whole."""
    found = [path for path in folder.glob("state-*") if PATTERN.fullmatch(path.name)]
    return max(found, key=lambda path: path.name, default=None)


def save_state(accelerator: Accelerator, folder: Path, of_this_process: dict[str, Any]) -> None:
    """Write all that a training goes on from; every process must call it, and see the same folder.

    Weights, optimiser, scaler, random states and what was registered are accelerate's; a state that is killed half-way
    is left under another name and removed by the next one.
    """
    before = latest_state(folder)
    number = 1 if before is None else 1 + int(before.name.removeprefix("state-"))
    partial, whole = folder / "partial", folder / f"state-{number:06d}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    torch.save(of_this_process, partial / f"process_{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for path in partial.rglob("*"):
            _to_disk(path)
        os.replace(partial, whole)
        _to_disk(folder)
        for path in folder.glob("state-*"):
            if path != whole and PATTERN.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
    accelerator.wait_for_everyone()


def load_state(accelerator: Accelerator, path: Path) -> dict[str, Any]:
    """Go on from a state; what this process alone had saved.

    Raises:
        ValueError: a state of another number of processes, or one that is not whole.
    """
    own = path / f"process_{accelerator.process_index}.pt"
    random_states = path / f"random_states_{accelerator.process_index}.pkl"
    try:
        held = torch.load(own, map_location="cpu", weights_only=True)
        # accelerate passes over random states that it cannot read
        wanted = load(random_states, map_location="cpu")["torch_manual_seed"]
        accelerator.load_state(str(path))
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"expected a whole state of {accelerator.num_processes} processes, got {str(path)!r} "
            f"({type(error).__name__}: {error}): start with as many processes as before, or pass another --out"
        ) from error
    if not torch.equal(torch.get_rng_state(), wanted):
        raise ValueError(
            f"expected random states that can be restored, got {str(random_states)!r}, which accelerate does not "
            "take: use the versions that wrote it, or pass another --out"
        )
    return held


def _to_disk(path: Path) -> None:
    """Ask for what was written to outlive a power cut."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # a folder, where the system has no handle of one
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
