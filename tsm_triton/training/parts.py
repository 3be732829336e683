"""Parts of a step of which some videos, or all, could not be read: what is left of them, and how much it counts."""

from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..video.datasets.reading import EmptyBatchError

__all__ = ["Part", "completed", "next_part"]

Part = tuple[Tensor, Tensor]  # inputs and labels


def next_part(batches: Iterator[Part]) -> Part | None:
    """The next batch of a loader; None of one of which nothing can be read, which was reported."""
    try:
        return next(batches)
    except EmptyBatchError:
        return None


def completed(accelerator: Accelerator, parts: Sequence[Part | None]) -> list[tuple[Part | None, float]]:
    """A process's parts of a step, each with what its mean loss counts; every process must call it.

    With these shares, 1 where all can be read, the loss of a step is the mean over all clips that can be, whichever
    process and part they came to. A process that has none in a part goes along with a blank clip that counts 0: the
    others wait for its gradients.

    Returns:
        The parts; none of a step in which no process has a clip.
    """
    counts = torch.tensor([0 if part is None else len(part[1]) for part in parts])
    world, total = accelerator.num_processes, int(counts.sum())
    filled = list(parts)
    if world > 1:
        everywhere = accelerator.gather(counts.to(accelerator.device))
        assert isinstance(everywhere, Tensor)
        total = int(everywhere.sum())
        if total and not everywhere.all():
            known = gather_object([part[0][:1].shape for part in parts if part is not None][:1])
            blank = torch.zeros(known[0]), torch.zeros(1, dtype=torch.int64)
            filled = [blank if part is None else part for part in parts]
    if not total:
        return []
    shares = [count * len(parts) * world / total for count in counts.tolist()]
    return list(zip(filled, shares, strict=True))
