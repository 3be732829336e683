"""A network's first convolution, of few channels, with bias and activation as one op, for inference.

out = act(conv(x, weight) + bias), in channels_last
"""

from typing import Any

from torch import Tensor

from .convolution import check_convolution, convolution, convolution_in_aten, convolved, empty_out
from .declare import declare
from .derivatives import of_inference

__all__ = ["stem_convolution"]

UNDILATED = [1, 1]


def _check(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> None:
    check_convolution(x, weight, bias, 1, rest[-1])


def _fake(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    return empty_out(x, weight, *rest[:2], UNDILATED)


def _on_cpu(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    stride, padding, activation = rest
    return convolved(x, weight, bias, None, stride, padding, UNDILATED, 1, activation=activation)


def _aten(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    stride, padding, activation = rest
    return convolution_in_aten(x, weight, bias, None, stride, padding, UNDILATED, 1, activation=activation)


def _on_cuda(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    stride, padding, activation = rest
    from ..kernels import stem as kernel

    if stride[0] == stride[1] and padding[0] == padding[1] and kernel.takes(x, weight, stride[0], padding[0]):
        return kernel.stem_convolution(x, weight, bias, stride[0], padding[0], activation)
    return convolution(x, weight, bias, None, stride, padding, UNDILATED, 1, activation)


stem_convolution = declare(
    "stem_convolution(Tensor x, Tensor weight, Tensor bias, int[2] stride, int[2] padding, str activation) -> Tensor",
    check=_check,
    fake=_fake,
    on_cpu=_on_cpu,
    on_cuda=_on_cuda,
    aten=_aten,
    formula=of_inference("stem_convolution"),
    layout="channels_last",
)
