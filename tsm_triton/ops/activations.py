"""The activations of the fused ops, as torch's own operators."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "FROM_OUTPUT", "activate", "activate_", "activation_backward", "check_activation"]

aten = torch.ops.aten

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
}

# Those whose derivative can be read off their own output: nothing else need be kept for the backward.
FROM_OUTPUT = ("none", "relu", "relu6")


def _silu_backward(grad: Tensor, z: Tensor) -> Tensor:
    # aten.silu_backward has no derivative of its own
    sigmoid = torch.sigmoid(z)
    return grad * sigmoid * (1 + z * (1 - sigmoid))


# (gradient, output or pre-activation) -> gradient of the pre-activation
_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda grad, _: grad,
    "relu": lambda grad, y: aten.threshold_backward(grad, y, 0),
    "relu6": lambda grad, y: aten.hardtanh_backward(grad, y, 0, 6),
    "hardswish": aten.hardswish_backward,
    "silu": _silu_backward,
}


def check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}: choose one"
        )


def activate(z: Tensor, activation: str) -> Tensor:
    return ACTIVATIONS[activation](z)


def activate_(z: Tensor, activation: str) -> Tensor:
    """The same in `z`'s own memory."""
    if activation == "none":
        return z
    in_place: Callable[..., Tensor] = ACTIVATIONS[activation]
    return in_place(z, inplace=True)


def activation_backward(grad: Tensor, value: Tensor, activation: str) -> Tensor:
    """The gradient of the pre-activation z; `value` is the output for those in `FROM_OUTPUT`, else z."""
    return _BACKWARD[activation](grad, value)
