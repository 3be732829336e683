"""Dropout and the head behind it, under the head's own keys."""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DropoutLinear"]


class DropoutLinear(nn.Linear):
    """An `nn.Linear` whose input drops out while it trains: its keys are `weight` and `bias`, in no Sequential.

    Args:
        in_features, out_features, bias: as `nn.Linear`.
        p: the part of the input that drops out.

    Shapes:
        `[..., in_features]` -> `[..., out_features]`.

    Example:
        >>> import torch
        >>> DropoutLinear(2, 2, p=0.5).eval()(torch.zeros(1, 2)).shape
        torch.Size([1, 2])
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, p: float = 0.5) -> None:
        super().__init__(in_features, out_features, bias)
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.dropout(input, self.p, self.training))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"
