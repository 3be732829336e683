"""The 1x1 convolution that ends a bottleneck and the shifted one that opens the next, as one op.

y = act(conv1x1(x, weight) + bias + identity)
z = act(conv1x1(temporal_shift(y), next_weight) + next_bias)
"""

from typing import Any

import torch
from torch import Tensor

from .library import MAX_FRAME, TAGS, differentiate, implement, library
from .shift_conv1x1 import check, shift_conv1x1

__all__ = ["conv1x1_shift_conv1x1"]

library.define(
    "conv1x1_shift_conv1x1(Tensor x, Tensor weight, Tensor? bias, Tensor identity, Tensor next_weight, "
    "Tensor? next_bias, SymInt num_segments, SymInt n_future, SymInt n_past, bool future_first, "
    "str activation, str next_activation) -> (Tensor y, Tensor z)",
    tags=TAGS,
)
conv1x1_shift_conv1x1 = torch.ops.tsm_triton.conv1x1_shift_conv1x1.default


def _one_by_one(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    identity: Tensor,
    next_weight: Tensor,
    next_bias: Tensor | None,
    *shift: Any,
) -> tuple[Tensor, Tensor]:
    """Two calls of `shift_conv1x1`: on a CPU, for a gradient, and where the kernel is not made for the sizes."""
    *counts, activation, next_activation = shift
    y = shift_conv1x1(x, weight, bias, identity, counts[0], 0, 0, True, activation)
    return y, shift_conv1x1(y, next_weight, next_bias, None, *counts, next_activation)


def _on_cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    identity: Tensor,
    next_weight: Tensor,
    next_bias: Tensor | None,
    *shift: Any,
) -> tuple[Tensor, Tensor]:
    from ..kernels import conv1x1_shift_conv1x1 as kernel

    *counts, activation, next_activation = shift
    check(x, weight, bias, identity, counts[0], 0, 0, True, activation)
    # y's shape is identity's
    check(identity, next_weight, next_bias, None, *counts, next_activation)
    small = max(x.shape[1], identity.shape[1]) * x.shape[2] * x.shape[3] <= MAX_FRAME
    if not small or not kernel.takes(x, next_weight, counts[0]):
        return _one_by_one(x, weight, bias, identity, next_weight, next_bias, *shift)
    return kernel.conv1x1_shift_conv1x1(x, weight, bias, identity, next_weight, next_bias, *shift)


@torch.library.register_fake("tsm_triton::conv1x1_shift_conv1x1", lib=library)
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor, next_weight: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    y, z = (
        torch.empty(
            (x.shape[0], channels, *x.shape[2:]),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        for channels in (weight.shape[0], next_weight.shape[0])
    )
    return y, z


implement("conv1x1_shift_conv1x1", _one_by_one, _on_cuda)
differentiate("conv1x1_shift_conv1x1", _one_by_one)
