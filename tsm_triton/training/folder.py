"""The folder of a training: whether one may be kept there, and which of its files are a training's."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from .state import PATTERN, latest_state

__all__ = ["FILES", "check_apart", "check_folder", "left_files"]

FILES = ("best.pt", "last.pt", "metrics.csv", "curves.png", "confusion.png")
LEFT = re.compile(rf"\.(?:{'|'.join(map(re.escape, FILES))})\.\d+\.tmp")


def check_folder(out: Path, resume: bool) -> Path | None:
    """The state to go on from, or None for a training that begins.

    Raises:
        ValueError: the folder holds what no training wrote, or a training that shall not be gone on with.
    """
    state = latest_state(out / "state")
    if state is not None and not resume:
        raise ValueError(
            f"expected a folder without a training, got {str(out)!r}: pass resume=True to go on with "
            "it, or another out"
        )
    if state is None and out.is_dir() and not _begun(out / "state"):
        other = next((path.name for path in sorted(out.iterdir())), None)
        if other is not None:
            raise ValueError(
                f"expected a new or empty folder, or a training's, got {str(out)!r} with {other!r} in it: pass another "
                "out"
            )
    return state


def check_apart(out: Path, data: Iterable[Path], videos: Iterable[str]) -> None:
    """Whether results lie apart from what is read.

    Args:
        out: the folder for results.
        data: folders of data sets, and lists, which do not matter.
        videos: files, and folders of frames.

    Raises:
        ValueError: one lies in the other.
    """
    whole = out.resolve()
    for folder in data:
        if folder.is_dir() and (
            whole.is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(whole)
        ):
            raise ValueError(
                f"expected results apart from the data, got --out {str(out)!r} and {str(folder)!r}: pass "
                "another --out, outside of the data"
            )
    read = {os.path.abspath(video) for video in videos}
    around = {Path(parent).resolve(): parent for parent in {os.path.dirname(video) for video in read}}
    inside = next((parent for folder, parent in around.items() if folder.is_relative_to(whole)), None)
    within = next((str(each) for each in (whole, *whole.parents) if str(each) in read), None)
    if inside is not None or within is not None:
        raise ValueError(
            f"expected results apart from the data, got --out {str(out)!r} and videos in "
            f"{inside or within!r}: pass another --out, outside of the data"
        )


def left_files(out: Path) -> list[Path]:
    """Of a process that was killed while it wrote."""
    return [path for path in out.glob(".*.tmp") if LEFT.fullmatch(path.name)]


def _begun(states: Path) -> bool:
    """Whether a training made this folder, the first thing that it writes."""
    return states.is_dir() and all(
        path.is_dir() and (path.name == "partial" or PATTERN.fullmatch(path.name))
        for path in states.iterdir()
    )
