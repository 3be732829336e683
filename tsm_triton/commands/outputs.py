"""Files that a command writes in the end: refused at its begin where they could not be, or would replace another."""

import json
from collections.abc import Iterable
from pathlib import Path

__all__ = ["RESULTS", "check_writable", "claim", "others_of"]

RESULTS = "results.json"  # of a folder that a command writes: says by its keys which


def check_writable(option: str, path: Path, *, folder: bool = False) -> None:
    """Raise for what cannot become a file; with `folder`, a folder of that name may be there."""
    if not path.absolute().parent.is_dir() or (path.is_dir() and not folder):
        raise ValueError(
            f"expected {option} to be a file in a folder that exists, got {str(path)!r}: pass another one"
        )


def others_of(out: Path, names: Iterable[str], keys: set[str]) -> list[str]:
    """The files of these names in a folder whose results do not have the keys of those that a command writes."""
    try:
        said = json.loads((out / RESULTS).read_text("utf-8"))
    except (OSError, ValueError):
        said = None
    if isinstance(said, dict) and keys <= said.keys():
        return []
    return [name for name in (RESULTS, *names) if (out / name).exists()]


def claim(option: str, path: Path, taken: set[Path]) -> None:
    """Raise for a file that is among those, resolved, which the command reads or writes already; else add it."""
    if path.resolve() in taken:
        raise ValueError(
            f"expected {option} to be a file of its own, got {str(path)!r}, which is given for something else: pass "
            "another one"
        )
    taken.add(path.resolve())
