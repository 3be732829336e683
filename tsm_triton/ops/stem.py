"""A network's first convolution, of few channels, with bias and activation as one op, for inference.

out = act(conv(x, weight) + bias), in channels_last
"""

from typing import Any

import torch
from torch import Tensor

from .convolution import check_convolution, convolution, convolved, empty_out
from .library import (
    CHANNELS_LAST_OPS,
    CHANNELS_LAST_TAGS,
    implement,
    let_inductor_decompose,
    library,
    refuse_gradients,
)

__all__ = ["stem_convolution"]

library.define(
    "stem_convolution(Tensor x, Tensor weight, Tensor bias, int[2] stride, int[2] padding, str activation) -> Tensor",
    tags=CHANNELS_LAST_TAGS,
)
stem_convolution = torch.ops.tsm_triton.stem_convolution.default
CHANNELS_LAST_OPS.append(stem_convolution)

UNDILATED = [1, 1]


@torch.library.register_fake("tsm_triton::stem_convolution", lib=library)
def _(
    x: Tensor, weight: Tensor, bias: Tensor, stride: list[int], padding: list[int], activation: str
) -> Tensor:
    let_inductor_decompose()
    return empty_out(x, weight, stride, padding, UNDILATED)


def _on_cpu(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    stride, padding, activation = rest
    check_convolution(x, weight, bias, 1, activation)
    return convolved(x, weight, bias, None, stride, padding, UNDILATED, 1, activation=activation)


def _on_cuda(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    stride, padding, activation = rest
    check_convolution(x, weight, bias, 1, activation)
    from ..kernels import stem as kernel

    if stride[0] == stride[1] and padding[0] == padding[1] and kernel.takes(x, weight, stride[0], padding[0]):
        return kernel.stem_convolution(x, weight, bias, stride[0], padding[0], activation)
    return convolution(x, weight, bias, None, stride, padding, UNDILATED, 1, activation)


implement("stem_convolution", _on_cpu, _on_cuda)
refuse_gradients("stem_convolution")
