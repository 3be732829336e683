"""Batch-norms that a training leaves as they are: the authors' partial batch-norm."""

from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from ..torch_private import BatchNorm

__all__ = ["freeze_batch_norm"]

Model = TypeVar("Model", bound=nn.Module)


@dataclass(eq=False)
class _StaysInEval:
    """Takes the place of a batch-norm's `train`; copied and pickled with it."""

    norm: nn.Module

    def __call__(self, mode: bool = True) -> nn.Module:
        self.norm.training = False
        return self.norm


def freeze_batch_norm(model: Model, keep_first: bool = True) -> Model:
    """Freeze statistics and weights of a model's batch-norms, in place and for good: `model.train()` leaves them.

    Small batches spoil statistics that were taken from large ones; the authors freeze them where they fine-tune on
    small data sets. Copies and pickles stay frozen. A checkpoint does not say so, and layers that take their place are
    not: convert to SyncBatchNorm before.

    Args:
        model: with batch-norms, or without, which is then left as it is.
        keep_first: train the first one, whose input is new data.

    Returns:
        The very model.

    Example:
        >>> import timm
        >>> model = freeze_batch_norm(timm.create_model("test_resnet")).train()
        >>> norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        >>> [m.training for m in norms[:3]], norms[1].weight.requires_grad
        ([True, False, False], False)

    Source: `TSN.partialBN` of the authors' release; arXiv 1811.08383, section 5.1.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    for norm in norms[1 if keep_first else 0 :]:
        norm.requires_grad_(False)
        norm.train = _StaysInEval(norm)  # pyright: ignore[reportAttributeAccessIssue]
        norm.train()
    return model
