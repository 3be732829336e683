"""Items of a data set: what they draw follows from seed, epoch and number, in whatever process they are read."""

import atexit
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler, StackDataset, Subset

from ..video.datasets.randomness import drawing_from, seed_of

__all__ = ["loader", "set_epoch"]


def set_epoch(dataset: Any, epoch: int) -> None:
    """Tell a data set, and those that it is made of (torch's `Subset`, `ConcatDataset`), which epoch it is.

    Example:
        >>> class Data(Dataset):
        ...     def set_epoch(self, epoch): print(epoch)
        >>> set_epoch(torch.utils.data.Subset(Data(), [0]), 3)
        3
    """
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)
    elif isinstance(dataset, Subset):
        set_epoch(dataset.dataset, epoch)
    elif isinstance(dataset, (ConcatDataset, StackDataset)):
        parts: Any = dataset.datasets
        for part in parts.values() if isinstance(parts, dict) else parts:
            set_epoch(part, epoch)


class _Seeded(Dataset[Any]):
    """A data set whose items draw from torch's generator what their numbers say, in whatever process.

    What reads a batch at once draws for it what the numbers of all of its items say.
    """

    def __init__(self, dataset: Any, *seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, index: int) -> Any:
        with drawing_from(seed_of(*self.seed, index)):
            return self.dataset[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        if _reads_one_by_one(self.dataset):
            return [self[index] for index in indices]
        with drawing_from(seed_of(*self.seed, *indices)):
            return self.dataset.__getitems__(indices)


def _reads_one_by_one(dataset: Any) -> bool:
    """Whether a data set reads a batch item by item: torch's `Subset` has a method for batches all the same."""
    if getattr(type(dataset), "__getitems__", None) is Subset.__getitems__:
        return _reads_one_by_one(dataset.dataset)
    return not hasattr(dataset, "__getitems__")


def loader(
    dataset: Dataset[Any],
    batches: Sampler[list[int]],
    workers: int,
    collate: Callable[[list[Any]], Any] | None = None,
    *,
    seed: tuple[int, int] = (0, 0),
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Batches of a data set, read by this process or by others; what items draw follows from a seed and an epoch."""
    return DataLoader(
        _Seeded(dataset, *seed),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=functools.partial(_leave_signals_to_the_parent, _ending()),
        # its own, which seeds the workers' Python and NumPy: the default one would be moved, from which dropout draws
        generator=torch.Generator().manual_seed(seed_of(*seed, "workers")),
    )


@functools.cache
def _ending() -> Any:
    """Whether this process ends, for its workers to see.

    Where an error keeps a loader alive, they do too, until `multiprocessing` terminates them at the exit and waits:
    this is told just before, as what is registered later runs first.
    """
    ending = multiprocessing.RawValue("b", 0)
    atexit.register(setattr, ending, "value", 1)
    return ending


def _leave_signals_to_the_parent(ending: Any, _: int) -> None:
    """Ctrl-C and service managers signal all processes of a group; the parent finishes its step, and ends these."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.value else None)
