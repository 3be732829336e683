"""What several commands share: devices, labels, and files that appear whole or not at all."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..files import printable, read_text, replacing
from ..progress import say
from ..video.datasets.sides import normal

__all__ = [
    "few_threads",
    "labels_for",
    "make_folder",
    "pick_device",
    "printable",
    "read_labels",
    "replacing",
    "say",
]


def pick_device(name: str | None) -> torch.device:
    """The named device, or CUDA where there is one, else the CPU.

    Raises:
        ValueError: no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"expected a device that torch can use here, got {name!r} ({reason}). Try --device cpu."
        ) from error
    return device


def make_folder(path: Path) -> None:
    """A folder for results, with those around it; it may be there already.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"expected a folder for results, got {str(path)!r} ({error.strerror}): pass another --out"
        ) from error


def few_threads() -> None:
    """Half a thread for each core, unless the user says otherwise.

    With one for each, OpenMP's busy waiting makes a training ten times slower as soon as anything else runs.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))


def read_labels(path: Path) -> list[str]:
    """Class names, one on each line that is not empty: UTF-8 or UTF-16, of any system.

    Raises:
        ValueError: there is no such file, or it holds another encoding; the message names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "labels.txt")
        ...     _ = path.write_text("swipe left\\r\\nswipe right\\r\\n", "utf-16")
        ...     read_labels(path)
        ['swipe left', 'swipe right']
    """
    lines = (line.strip("\ufeff \t\f\v\xa0") for line in read_text(path, "labels").split("\n"))
    return [printable(line) for line in lines if line]


def labels_for(path: Path | None, own: Sequence[str] | None) -> list[str] | None:
    """The names of a model's classes: of a file, which may rename those that the weights say, or their own.

    Raises:
        ValueError: as `read_labels`; a name of the weights' at another class, by which labels would be exchanged.
    """
    if path is None:
        return None if own is None else list(own)
    labels = read_labels(path)
    if own is None or len(labels) != len(own):  # the number is compared with the model's classes
        return labels
    number_of = {normal(name): number for number, name in enumerate(own)}
    renamed = []
    for number, label in enumerate(labels):
        elsewhere = number_of.get(normal(label), number)
        if normal(label) == normal(own[number]):
            continue
        if elsewhere != number:
            raise ValueError(
                f"expected --labels in the order of the weights' own, in which class {number} is {own[number]!r}, got "
                f"{label!r}, which is class {elsewhere} there, in {str(path)!r}: drop --labels, or order it so"
            )
        renamed.append((own[number], label))
    if renamed:
        old, new = renamed[0]
        print(
            f"--labels renames {len(renamed)} of the {len(own)} classes of the weights: {old!r} to {new!r}"
            f"{', ...' if len(renamed) > 1 else ''}",
            file=sys.stderr,
        )
    return labels
