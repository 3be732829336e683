"""What a stream made of each frame that it took."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .annotation import Prediction

__all__ = ["Seen"]


@dataclass
class Seen:
    """The frames so far.

    Attributes:
        labels: of the classes, None where nobody said them.
        labels_from: the file that they are from, for messages.
        weights: the file of the model, for messages.
        numbers: each frame's in its source, frames that were dropped counted.
        times: each frame's, in seconds from the first.
        logs: each frame's probabilities `[num_classes]`, as logarithms.
    """

    labels: Sequence[str] | None
    labels_from: str
    weights: str
    numbers: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    logs: list[Tensor] = field(default_factory=list)

    @property
    def names(self) -> Sequence[str]:
        if self.labels is None and self.logs:
            self.labels = [f"class {i}" for i in range(len(self.logs[0]))]
        return self.labels or []

    @property
    def probabilities(self) -> list[Tensor]:
        """Each frame's, `[num_classes]`."""
        return [logs.exp() for logs in self.logs]

    def add(self, number: int, time: float, logs: Tensor) -> tuple[str, float]:
        """Note a frame, by log-probabilities `[num_classes]`; its likeliest label and that one's probability.

        Raises:
            ValueError: labels of another number, or scores that are not finite.
        """
        if self.labels is not None and len(self.labels) != len(logs):
            raise ValueError(
                f"expected {len(logs)} labels, one a class, got {len(self.labels)} in {self.labels_from!r}: "
                "pass --labels with one on each line"
            )
        best = logs.max(-1)
        confidence = best.values.exp()
        if not confidence.isfinite():
            raise ValueError(
                f"expected finite scores, got {confidence} for the frame at {time:.2f} s: train the model of "
                f"{self.weights!r} again, its weights or this frame's activations are no numbers"
            )
        self.numbers.append(number)
        self.times.append(time)
        self.logs.append(logs)
        return self.names[int(best.indices)], confidence.item()

    def predictions(self, top: int) -> list[Prediction]:
        """Each frame's `top` likeliest labels."""
        rows = zip(self.numbers, self.times, self.logs, strict=True)
        return [Prediction.of(*row, self.names, top) for row in rows]
