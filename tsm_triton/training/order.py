"""Which clips come when: a function of the seed and the epoch alone, whatever the processes and where it begins."""

import atexit
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler, StackDataset, Subset

from ..video.datasets.randomness import drawing_from, seed_of

__all__ = ["EpochBatches", "EvalBatches", "loader", "set_epoch"]


class EpochBatches(Sampler[list[int]]):
    """The clips of one process, a list for each part of a step.

    Every epoch is a permutation, its last batch filled up from its beginning: all batches are whole, and the mean of
    the processes' means is the mean of the batch. Two processes see what one sees, each its share.

    Args:
        length: of the data set.
        batch_size: clips a step, of all processes and parts together; lowered to what a small data set can fill.
        seed: of the permutations.
        parts: that a process makes of its share.
        rank, world: this process, and how many there are.

    Raises:
        ValueError: an empty data set; a batch that cannot be shared evenly.

    Example:
        >>> batches = EpochBatches(10, 4, seed=0)
        >>> batches.start(epoch=1)
        >>> whole = list(batches)
        >>> batches.start(epoch=1, step=2)
        >>> [len(batch) for batch in whole], list(batches) == whole[2:]
        ([4, 4, 4], True)
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, parts: int = 1, rank: int = 0, world: int = 1
    ) -> None:
        shares = parts * world
        if length < 1:
            raise ValueError(f"expected clips to train on, got {length}: check the data set")
        if batch_size % shares:
            raise ValueError(
                f"batch_size must be a multiple of {shares}, {parts} parts on each of {world} processes, got "
                f"{batch_size}: pass {max(1, batch_size // shares) * shares}"
            )
        self.length, self.seed = length, seed
        self.batch_size = min(batch_size, -(-length // shares) * shares)
        self.steps = -(-length // self.batch_size)
        self.parts, self.rank, self.world = parts, rank, world
        self.start(0)

    def start(self, epoch: int, step: int = 0) -> None:
        """What the next iteration gives: an epoch, from one of its steps on."""
        self.epoch, self.step = epoch, step

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.length, generator=generator)
        order = order.repeat(-(-self.steps * self.batch_size // self.length))[: self.steps * self.batch_size]
        # [step, part, process, clip]
        shares = order.view(self.steps, self.parts, self.world, -1)[self.step :, :, self.rank]
        yield from shares.flatten(0, 1).tolist()

    def __len__(self) -> int:
        return (self.steps - self.step) * self.parts


class EvalBatches(Sampler[list[int]]):
    """All clips in their order, each process every `world`-th: the same number of batches on all.

    A process without a clip of its own at the end repeats its first one, in a batch of its own; `real` counts the clips
    of each batch, and none in that one.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        if length < 1:
            raise ValueError(f"expected clips to test on, got {length}: check the data set")
        own = list(range(rank, length, world))
        size = max(1, batch_size // world)
        shares = [own[i : i + size] for i in range(0, -(-length // world), size)]
        self.batches = [share or [(own or [0])[0]] for share in shares]
        self.real = [len(share) for share in shares]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


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
        read = getattr(self.dataset, "__getitems__", None)
        if read is None or isinstance(self.dataset, Subset):  # which reads one item after another
            return [self[index] for index in indices]
        with drawing_from(seed_of(*self.seed, *indices)):
            return read(indices)


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
        # its own, which seeds what else its workers draw from (Python's generator, NumPy's): the default one is that of
        # dropout
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
