"""A head that reads a clip's frames in both directions and scores each."""

from torch import Tensor, nn

from .clip_layer import ClipLayer

__all__ = ["RecurrentHead"]


class RecurrentHead(ClipLayer):
    """A GRU over the frames' features and a linear layer, in the place of a model's classifier: action spotting.

    Args:
        features: channels of a frame.
        num_classes: scores of a frame.
        hidden: of the GRU, each way.
        num_layers: of the GRU.
        num_segments: T, the frames of a clip.
        dropout: before the linear layer.

    Shapes:
        `[N*T, features]` -> `[N*T, num_classes]`.

    Raises:
        TypeError, ValueError: frames that are no whole clips.

    Example:
        >>> import torch
        >>> RecurrentHead(16, 3, num_segments=4)(torch.randn(2 * 4, 16)).shape
        torch.Size([8, 3])

    Source: E2E-Spot (arXiv 2207.10213).
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        hidden: int | None = None,
        num_layers: int = 1,
        *,
        num_segments: int,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_segments)
        hidden = features if hidden is None else hidden
        self.gru = nn.GRU(features, hidden, num_layers, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.gru(self.clips(x))
        return self.fc(self.dropout(hidden)).flatten(0, 1)
