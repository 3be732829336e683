"""torchmetrics' loss, top-1, top-5 and confusion matrix, over all processes."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection, SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

__all__ = ["Scores"]


class Scores:
    """What a model made of the clips that it was shown.

    Args:
        num_classes: C.
        device: where logits are.
        confusion: count which class was taken for which, too.

    Example:
        >>> scores = Scores(3, "cpu")
        >>> scores.update(torch.eye(3), torch.tensor([0, 1, 1]))
        >>> {key: round(value, 1) for key, value in scores.compute().items()}
        {'loss': 0.9, 'top1': 66.7, 'top5': 100.0}
    """

    def __init__(self, num_classes: int, device: Any, confusion: bool = False) -> None:
        options: dict[str, Any] = dict(num_classes=num_classes, average="micro", validate_args=False)
        self.means = MetricCollection(
            {
                "top1": MulticlassAccuracy(**options),
                "top5": MulticlassAccuracy(top_k=min(5, num_classes), **options),
            },
            compute_groups=False,
        ).to(device)
        # not MeanMetric: with nan_strategy="disable" it forgets the weights (1.9), with any other it hides a NaN
        self.loss, self.count = (SumMetric(nan_strategy="disable").to(device) for _ in range(2))
        self.matrix = (
            MulticlassConfusionMatrix(num_classes, validate_args=False).to(device) if confusion else None
        )
        self.kept = {"means": self.means, "loss": self.loss, "count": self.count}
        for metric in self.kept.values():
            metric.persistent(True)

    def update(self, logits: Tensor, labels: Tensor, loss: Tensor | None = None) -> None:
        """Add a batch: logits or probabilities `[N, C]`, labels `[N]`, and the loss if it is another one."""
        logits = logits.detach().float()
        if loss is None:
            loss = torch.nn.functional.cross_entropy(logits, labels)
        self.loss.update(len(labels) * loss.detach())
        self.count.update(len(labels))
        self.means.update(logits, labels)
        if self.matrix is not None:
            self.matrix.update(logits, labels)

    def compute(self) -> dict[str, float]:
        """The mean loss, and accuracies in percent; every process must call it.

        Raises:
            ValueError: of no clip.
        """
        if not self.seen():
            raise ValueError("expected videos that can be read, got none: check the files")
        with warnings.catch_warnings():  # of one that was restored and saw nothing since
            warnings.filterwarnings("ignore", message="The ``compute`` method")
            accuracies = self.means.compute()
            loss = self.loss.compute() / self.count.compute()
        return {
            "loss": loss.item(),
            **{key: 100 * accuracies[key].item() for key in ("top1", "top5")},
        }

    def seen(self) -> int:
        """How many clips; every process must call it."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The ``compute`` method")
            return int(self.count.compute())

    def confusion(self) -> list[list[int]]:
        """How many clips of each class (row) were taken for each class (column); every process must call it."""
        assert self.matrix is not None
        return self.matrix.compute().tolist()

    def reset(self) -> None:
        for metric in self.kept.values():
            metric.reset()

    def state_dict(self) -> dict[str, Tensor]:
        """What this process has seen."""
        return {
            f"{name}.{key}": value
            for name, metric in self.kept.items()
            for key, value in metric.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, metric in self.kept.items():
            own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
            metric.load_state_dict(own)
