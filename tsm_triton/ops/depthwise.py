"""A depthwise convolution with bias and activation as one op, for inference.

out = act(conv(x, weight) + bias), each channel on its own, in channels_last
"""

from typing import Any

from torch import Tensor

from .convolution import check_convolution, convolution_in_aten, convolved, empty_out
from .declare import declare
from .derivatives import of_inference
from .tensors import MAX_FRAME

__all__ = ["depthwise_convolution"]


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> None:
    check_convolution(x, weight, bias, x.shape[1], rest[-1])
    if weight.shape[0] != x.shape[1]:
        raise ValueError(
            f"weight must have shape [{x.shape[1]}, 1, KH, KW], a filter a channel, got {tuple(weight.shape)}: "
            "call conv2d with groups"
        )


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    return empty_out(x, weight, *rest[:3])


def _on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    *form, activation = rest
    return convolved(x, weight, bias, None, *form, x.shape[1], activation=activation)


def _aten(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    *form, activation = rest
    return convolution_in_aten(x, weight, bias, None, *form, x.shape[1], activation=activation)


def _on_cuda(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    stride, padding, dilation, activation = rest
    square = stride[0] == stride[1] and dilation[0] == dilation[1]
    if not square or x[:1].numel() > MAX_FRAME:
        return _on_cpu(x, weight, bias, *rest)
    from ..kernels import depthwise as kernel

    return kernel.depthwise_convolution(
        x, weight, bias, stride[0], (padding[0], padding[1]), dilation[0], activation
    )


depthwise_convolution = declare(
    "depthwise_convolution(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, "
    "str activation) -> Tensor",
    check=_check,
    fake=_fake,
    on_cpu=_on_cpu,
    on_cuda=_on_cuda,
    aten=_aten,
    formula=of_inference("depthwise_convolution"),
    layout="channels_last",
)
