"""A 1x1 convolution of one streaming frame, whose first channels come out of the cache, as one op.

out, kept = act(conv1x1(y, weight) + bias + identity), kept      where y, kept = shift_step(x, cache)
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .declare import ATEN_FORMS, declare
from .shift_conv1x1 import UNSHIFTED, shift_conv1x1
from .shift_conv1x1 import check as check_convolution
from .shift_step import check_cache, shift_step
from .tensors import new_channels_last

__all__ = ["shift_step_conv1x1"]


def _check(
    x: Tensor, cache: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, activation: str
) -> None:
    check_convolution(x, weight, bias, identity, *UNSHIFTED, activation)
    check_cache(x, cache, "cache", 1)


def _fake(x: Tensor, cache: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return new_channels_last(x, x.shape[0], weight.shape[0], *x.shape[2:]), torch.empty_like(cache)


def _in_two_steps(
    step: Callable[..., tuple[Tensor, Tensor]],
    conv1x1: Callable[..., Tensor],
    x: Tensor,
    cache: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    identity: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    y, kept = step(x, cache, 1)
    return conv1x1(y, weight, bias, identity, *UNSHIFTED, activation), kept


_by_ops = functools.partial(_in_two_steps, shift_step, shift_conv1x1)


def _by_kernel(
    x: Tensor, cache: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    if weight.shape[0] == 0:  # no program of the kernel would keep anything
        return _by_ops(x, cache, weight, bias, identity, activation)
    from ..kernels import shift_conv1x1 as kernel

    return kernel.shift_step_conv1x1(x, cache, weight, bias, identity, activation)


shift_step_conv1x1 = declare(
    "shift_step_conv1x1(Tensor x, Tensor cache, Tensor weight, Tensor? bias, Tensor? identity, str activation) "
    "-> (Tensor, Tensor)",
    check=_check,
    fake=_fake,
    on_cpu=_by_ops,
    on_cuda=_by_kernel,
    aten=_by_ops,
    exported=functools.partial(_in_two_steps, ATEN_FORMS[shift_step], ATEN_FORMS[shift_conv1x1]),
    formula=_by_ops,
    layout="exact",
)
