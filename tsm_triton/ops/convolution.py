"""A convolution with bias, residual and activation as one op, for inference: what cuDNN does in one kernel.

out = act(conv(x, weight) + bias + identity), in channels_last
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..activations import activate_, check_activation
from .library import (
    CHANNELS_LAST_OPS,
    CHANNELS_LAST_TAGS,
    implement,
    let_inductor_decompose,
    library,
    refuse_gradients,
)

__all__ = ["check_convolution", "convolution", "convolved", "empty_out"]

library.define(
    "convolution(Tensor x, Tensor weight, Tensor? bias, Tensor? identity, int[2] stride, int[2] padding, "
    "int[2] dilation, int groups, str activation) -> Tensor",
    tags=CHANNELS_LAST_TAGS,
)
convolution = torch.ops.tsm_triton.convolution.default
CHANNELS_LAST_OPS.append(convolution)

aten = torch.ops.aten
# Convolutions that cuDNN has no kernel for with bias and ReLU inside; learnt from its own word, once each.
_refused_by_cudnn: set[Any] = set()


def check_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, activation: str) -> None:
    """What a kernel needs to stay inside its memory."""
    check_activation(activation)
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            f"x must be floats of shape [N, C, H, W], got {tuple(x.shape)} {x.dtype}: reshape it"
        )
    if groups < 1 or weight.dim() != 4 or weight.shape[1] * groups != x.shape[1] or weight.shape[0] % groups:
        raise ValueError(
            f"weight must have shape [C_out, {x.shape[1]} / groups={groups}, KH, KW], C_out a multiple of groups, "
            f"got {tuple(weight.shape)}: reshape it"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape [{weight.shape[0]}], got {tuple(bias.shape)}: reshape it")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and (value.dtype, value.device) != (x.dtype, x.device):
            raise ValueError(
                f"{name} must be {x.dtype} on {x.device} as x is, got {value.dtype} on {value.device}: convert it"
            )


def out_shape(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> tuple[int, ...]:
    height, width = (
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )
    return x.shape[0], weight.shape[0], height, width


def empty_out(x: Tensor, weight: Tensor, *form: list[int]) -> Tensor:
    """The result's memory; `form` is stride, padding and dilation."""
    shape = out_shape(x, weight, *form)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *form: Any, activation: str
) -> Tensor:
    """The op in torch's own operators; `form` is stride, padding, dilation and groups."""
    out = F.conv2d(x, weight, bias, *form)
    if identity is not None:
        out += identity
    return activate_(out, activation).contiguous(memory_format=torch.channels_last)


@torch.library.register_fake("tsm_triton::convolution", lib=library)
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    identity: Tensor | None,
    *form: Any,
) -> Tensor:
    let_inductor_decompose()
    return empty_out(x, weight, *form[:3])


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *form: Any, activation: str
) -> None:
    *sizes, groups = form
    check_convolution(x, weight, bias, groups, activation)
    if identity is None:
        return
    expected = out_shape(x, weight, *sizes)
    if (identity.shape, identity.dtype, identity.device) != (expected, x.dtype, x.device):
        raise ValueError(
            f"identity must be {x.dtype} {list(expected)} on {x.device}, got {identity.dtype} "
            f"{list(identity.shape)} on {identity.device}: convert it"
        )


def _on_cpu(
    x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *form_and_activation: Any
) -> Tensor:
    *form, activation = form_and_activation
    _check(x, weight, bias, identity, *form, activation=activation)
    return convolved(x, weight, bias, identity, *form, activation=activation)


def _on_cuda(
    x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *form_and_activation: Any
) -> Tensor:
    *form, activation = form_and_activation
    _check(x, weight, bias, identity, *form, activation=activation)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = weight.contiguous(memory_format=torch.channels_last)
    what = (x.dtype, x.shape[1:], weight.shape, identity is None, bias is None, *map(str, form))
    half = x.dtype in (torch.float16, torch.bfloat16)
    if (
        half
        and activation == "relu"
        and torch.version.hip is None
        and what not in _refused_by_cudnn
        and len(x)
    ):
        try:
            if identity is None:
                out = aten.cudnn_convolution_relu(x, weight, bias, *form)
            else:
                identity = identity.contiguous(memory_format=torch.channels_last)
                out = aten.cudnn_convolution_add_relu(x, weight, identity, 1.0, bias, *form)
            return out.contiguous(memory_format=torch.channels_last)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            # cuDNN finds no plan, or sees another shape than ours; the separate calls say what is wrong, if anything
            _refused_by_cudnn.add(what)
    return convolved(x, weight, bias, identity, *form, activation=activation)


implement("convolution", _on_cpu, _on_cuda)
refuse_gradients("convolution")
