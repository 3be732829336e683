"""A model on all clips of a data set, each once, by all processes together."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from .devices import any_process
from .machine import placed
from .metrics import Scores
from .parts import completed, next_part

__all__ = ["test"]


@torch.no_grad()
def test(
    model: nn.Module,
    loader: Any,
    real: Sequence[int],
    accelerator: Accelerator,
    num_classes: int,
    stop: Callable[[], bool],
) -> Scores | None:
    """What a model makes of clips; every process must call it.

    Args:
        model: is left in evaluation mode.
        loader: of this process's batches.
        real: how many clips of each batch are not another's too, see `EvalBatches`.
        accelerator: of the processes.
        num_classes: C.
        stop: asked after each batch whether to end there, which no accuracy comes of: None.
    """
    model.eval()
    scores, batches = Scores(num_classes, accelerator.device, confusion=True), iter(loader)
    for own in real:
        for held, share in completed(accelerator, [next_part(batches)]):
            assert held is not None  # a batch alone is filled, or left out by all
            logits = model(placed(held[0], accelerator.device))
            if own and share:
                scores.update(logits, held[1].to(logits.device))
        if any_process(accelerator, stop()):
            return None
    return scores
