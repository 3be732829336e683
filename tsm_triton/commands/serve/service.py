"""What is served: a model with its labels, and how much of it a client may have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...streaming.batching import Batcher

__all__ = ["Limits", "Service"]

LONGEST = 16  # times the short side of a picture


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        max_bytes: of a video.
        max_message: bytes of a message, which is a picture or a part of a video.
        chunk: bytes of such a part.
        patience: seconds without a message, or in which one cannot be sent, after which a client has gone.
    """

    max_bytes: int = 200 * 10**6
    max_message: int = 4 * 2**20
    chunk: int = 2**20
    patience: float = 60.0


@dataclass(frozen=True)
class Service:
    """A causal model for many clients.

    Attributes:
        name: of the model.
        labels: of the classes.
        num_segments: T of the clips that it was trained on, None where it does not say.
        preprocess: uint8 `[1, 3, H, W]`, of any size -> what the model takes, `[1, *batcher.frame_shape]`.
        batcher: computes, a stream a client.
        folder: where videos lie while they are read.
        limits: for each client.
    """

    name: str
    labels: Sequence[str]
    num_segments: int | None
    preprocess: Callable[[Tensor], Tensor]
    batcher: Batcher
    folder: Path
    limits: Limits = field(default_factory=Limits)

    def prepared(self, picture: Tensor) -> Tensor:
        """A picture, uint8 `[3, H, W]`, as the model takes it, `batcher.frame_shape`.

        Raises:
            ValueError: it is a strip, which would grow without bounds where its short side is scaled up.
        """
        short, long = sorted(picture.shape[1:])
        if long > LONGEST * short:
            raise ValueError(
                f"expected a picture at most {LONGEST} times as long as wide, got {short} x {long}: pass a part of it"
            )
        return self.preprocess(picture[None])[0]

    def description(self) -> dict[str, Any]:
        """For the page."""
        return {
            "model": self.name,
            "classes": len(self.labels),
            "num_segments": self.num_segments,
            "size": list(self.batcher.frame_shape[1:]),
            "max_bytes": self.limits.max_bytes,
        }
