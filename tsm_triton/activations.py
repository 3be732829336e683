"""The activations of the fused ops: everything that is known of one is its entry in `ACTIVATIONS`.

The last two are Triton, of which `kernels/activations.py` makes the functions that the kernels call; this file imports
none, since the package runs without. NaN stays NaN there, as in torch: `tl.maximum` would drop it, a comparison that it
fails keeps it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "Activation", "activate", "activate_", "activation_backward", "check_activation"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """One activation `y = act(z)`.

    Attributes:
        function: torch's own, which takes `inplace` too.
        reads: what the derivative is computed from, `"output"` (y, so nothing else need be kept for the backward),
            `"input"` (z) or None.
        backward: `(gradient of y, what it reads) -> gradient of z`, of operators that have a derivative themselves.
        calls: how a graph of ATen calls shows it: an operator, and the arguments that it must have.
        formula: y in Triton, of `z`.
        derivative: the gradient of z in Triton, of `grad` and `value`, which is what it reads.
        selects: whether y is z or a constant, so that it may be taken of a value already rounded.
    """

    function: Callable[..., Tensor]
    reads: Literal["output", "input"] | None
    backward: Callable[[Tensor, Tensor], Tensor]
    formula: str
    derivative: str
    calls: tuple[tuple[Any, dict[str, Any]], ...] = ()
    selects: bool = False


def _silu_backward(grad: Tensor, z: Tensor) -> Tensor:
    # aten.silu_backward has no derivative of its own
    sigmoid = torch.sigmoid(z)
    return grad * sigmoid * (1 + z * (1 - sigmoid))


ACTIVATIONS: dict[str, Activation] = {
    "none": Activation(
        function=lambda z, inplace=False: z,
        reads=None,
        backward=lambda grad, _: grad,
        formula="z",
        derivative="grad",
        selects=True,
    ),
    "relu": Activation(
        function=F.relu,
        reads="output",
        backward=lambda grad, y: aten.threshold_backward(grad, y, 0),
        calls=((aten.relu.default, {}),),
        formula="tl.where(z < 0, 0.0, z)",
        derivative="tl.where(value <= 0, 0.0, grad)",
        selects=True,
    ),
    "relu6": Activation(
        function=F.relu6,
        reads="output",
        backward=lambda grad, y: aten.hardtanh_backward(grad, y, 0, 6),
        calls=((aten.relu6.default, {}), (aten.hardtanh.default, {"min_val": 0, "max_val": 6})),
        formula="tl.where(z < 0, 0.0, tl.where(z > 6, 6.0, z))",
        derivative="tl.where((value <= 0) | (value >= 6), 0.0, grad)",
        selects=True,
    ),
    "hardswish": Activation(
        function=F.hardswish,
        reads="input",
        backward=aten.hardswish_backward,
        calls=((aten.hardswish.default, {}),),
        formula="z * tl.where(z < -3, 0.0, tl.where(z > 3, 6.0, z + 3)) / 6",
        derivative="tl.where(value <= -3, 0.0, tl.where(value < 3, grad * (value / 3 + 0.5), grad))",
    ),
    "silu": Activation(
        function=F.silu,
        reads="input",
        backward=_silu_backward,
        calls=((aten.silu.default, {}),),
        formula="z / (1 + tl.exp(-z))",
        derivative="grad / (1 + tl.exp(-value)) * (1 + value * (1 - 1 / (1 + tl.exp(-value))))",
    ),
}


def check_activation(activation: str) -> None:
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}")


def activate(z: Tensor, activation: str) -> Tensor:
    """One of the activations, by name.

    Example:
        >>> activate(torch.tensor([-1.0, 3.0, 9.0]), "relu6")
        tensor([0., 3., 6.])
    """
    return ACTIVATIONS[activation].function(z)


def activate_(z: Tensor, activation: str) -> Tensor:
    """The same in `z`'s own memory."""
    return ACTIVATIONS[activation].function(z, inplace=True)


def activation_backward(grad: Tensor, value: Tensor, activation: str) -> Tensor:
    """The gradient of the pre-activation z; `value` is what the activation's derivative reads."""
    return ACTIVATIONS[activation].backward(grad, value)
