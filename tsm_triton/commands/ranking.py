"""Which classes a model takes a video or a frame for."""

from collections.abc import Sequence

from torch import Tensor

__all__ = ["likeliest"]


def likeliest(log_probabilities: Tensor, labels: Sequence[str], top: int) -> list[tuple[str, float]]:
    """The likeliest labels with their probabilities, the likeliest first.

    Ranked by logarithms `[num_classes]`: where a model is sure, the probabilities of all others are 0.

    Example:
        >>> import torch
        >>> likeliest(torch.tensor([-300.0, 0.0, -200.0]).log_softmax(-1), ["a", "b", "c"], 2)
        [('b', 1.0), ('c', 0.0)]
    """
    best = log_probabilities.topk(min(top, len(log_probabilities)))
    shares: list[float] = best.values.exp().tolist()
    places: list[int] = best.indices.tolist()
    return [(labels[place], round(share, 6)) for place, share in zip(places, shares, strict=True)]
