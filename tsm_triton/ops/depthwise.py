"""A depthwise convolution with bias and activation as one op, for inference.

out = act(conv(x, weight) + bias), each channel on its own, in channels_last
"""

from typing import Any

import torch
from torch import Tensor

from .convolution import check_convolution, convolved, empty_out
from .library import (
    CHANNELS_LAST_OPS,
    CHANNELS_LAST_TAGS,
    MAX_FRAME,
    implement,
    let_inductor_decompose,
    library,
    refuse_gradients,
)

__all__ = ["depthwise_convolution"]

library.define(
    "depthwise_convolution(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, "
    "str activation) -> Tensor",
    tags=CHANNELS_LAST_TAGS,
)
depthwise_convolution = torch.ops.tsm_triton.depthwise_convolution.default
CHANNELS_LAST_OPS.append(depthwise_convolution)


@torch.library.register_fake("tsm_triton::depthwise_convolution", lib=library)
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    _: str,
) -> Tensor:
    let_inductor_decompose()
    return empty_out(x, weight, stride, padding, dilation)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> None:
    check_convolution(x, weight, bias, x.shape[1], activation)
    if weight.shape[0] != x.shape[1]:
        raise ValueError(
            f"weight must have shape [{x.shape[1]}, 1, KH, KW], a filter a channel, got {tuple(weight.shape)}: "
            "call conv2d with groups"
        )


def _on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    stride, padding, dilation, activation = rest
    _check(x, weight, bias, activation)
    return convolved(x, weight, bias, None, stride, padding, dilation, x.shape[1], activation=activation)


def _on_cuda(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    stride, padding, dilation, activation = rest
    _check(x, weight, bias, activation)
    square = stride[0] == stride[1] and dilation[0] == dilation[1]
    if not square or x[:1].numel() > MAX_FRAME:
        return _on_cpu(x, weight, bias, *rest)
    from ..kernels import depthwise as kernel

    return kernel.depthwise_convolution(
        x, weight, bias, stride[0], (padding[0], padding[1]), dilation[0], activation
    )


implement("depthwise_convolution", _on_cpu, _on_cuda)
refuse_gradients("depthwise_convolution")
