"""The mean of the last logits of each stream."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["mean_of_last"]


def mean_of_last(
    logits: Tensor, length: int, window: Sequence[Tensor], streams: Tensor | None, num_streams: int
) -> tuple[Tensor, list[Tensor]]:
    """The mean of each stream's last `length` logits, these included, and the window behind it.

    Args:
        logits: `[len(streams), ...]`, floats.
        window: what a call before gave: the last logits `[num_streams, length, ...]` and how many there were
            `[num_streams]`; empty at first. It is not written.
        streams: the numbers of those that the logits are of; None for all.

    Example:
        >>> mean, window = mean_of_last(torch.tensor([[2.0], [4.0]]), 2, [], None, num_streams=2)
        >>> mean, window = mean_of_last(torch.tensor([[6.0]]), 2, window, torch.tensor([1]), num_streams=2)
        >>> mean, window[1]
        (tensor([[5.]]), tensor([1, 2]))
    """
    with torch.inference_mode(False):  # written in any mode later on
        if window:
            kept, seen = [x.clone() for x in window]
        else:
            kept = logits.new_zeros((num_streams, length, *logits.shape[1:]))
            seen = torch.zeros(num_streams, dtype=torch.long, device=logits.device)
    if streams is None:
        streams = torch.arange(num_streams, device=logits.device)
    kept[streams, seen[streams] % length] = logits
    seen[streams] += 1
    count = seen[streams].clamp(max=length)
    # float16 ends at 65504, which a sum reaches before its mean does
    wide = torch.promote_types(logits.dtype, torch.float32)
    mean = kept[streams].sum(1, dtype=wide) / count.view(-1, *[1] * (logits.dim() - 1))
    return mean.to(logits.dtype), [kept, seen]
