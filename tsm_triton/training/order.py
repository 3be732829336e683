"""Which clips come when: a function of the seed and the epoch alone, whatever the processes and where it begins."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

__all__ = ["EpochBatches", "EvalBatches"]


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
