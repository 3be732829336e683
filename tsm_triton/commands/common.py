"""What several commands share: devices, threads, folders, and files that appear whole or not at all."""

import os
from pathlib import Path

import torch

from ..files import printable, replacing
from ..progress import say

__all__ = [
    "few_threads",
    "make_folder",
    "pick_device",
    "printable",
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
