"""A convolution with bias, residual and activation as one op, for inference: what cuDNN does in one kernel.

out = act(conv(x, weight) + bias + identity), in channels_last
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..activations import activate, activate_, check_activation
from .checks import check_floats, check_like
from .declare import declare
from .derivatives import of_inference
from .tensors import new_channels_last

__all__ = ["check_convolution", "convolution", "convolution_in_aten", "convolved", "empty_out"]

aten = torch.ops.aten
# Convolutions that cuDNN has no kernel for with bias and ReLU inside; learnt from its own word, once each.
_refused_by_cudnn: set[Any] = set()


def check_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, activation: str) -> None:
    """What a kernel needs to stay inside its memory."""
    check_activation(activation)
    check_floats(x, "x", "[N, C, H, W]", range(4, 5))
    if groups < 1 or weight.dim() != 4 or weight.shape[1] * groups != x.shape[1] or weight.shape[0] % groups:
        raise ValueError(
            f"weight must have shape [C_out, {x.shape[1]} / groups={groups}, KH, KW], C_out a multiple of groups, "
            f"got {tuple(weight.shape)}"
        )
    check_like(weight, "weight", weight.shape, x)
    check_like(bias, "bias", weight.shape[:1], x)


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
    return new_channels_last(x, *out_shape(x, weight, *form))


def convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *form: Any, activation: str
) -> Tensor:
    """The op by torch's own convolution, in its memory; `form` is stride, padding, dilation and groups."""
    out = F.conv2d(x, weight, bias, *form)
    if identity is not None:
        out += identity
    return activate_(out, activation).contiguous(memory_format=torch.channels_last)


def convolution_in_aten(
    x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *form: Any, activation: str
) -> Tensor:
    """`convolved` without a write, as graphs have it."""
    out = F.conv2d(x, weight, bias, *form)
    out = out if identity is None else out + identity
    return activate(out, activation).contiguous(memory_format=torch.channels_last)


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *form_and_activation: Any
) -> None:
    *sizes, groups, activation = form_and_activation
    check_convolution(x, weight, bias, groups, activation)
    check_like(identity, "identity", out_shape(x, weight, *sizes), x)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *form: Any) -> Tensor:
    return empty_out(x, weight, *form[:3])


def _on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *form: Any) -> Tensor:
    return convolved(x, weight, bias, identity, *form[:-1], activation=form[-1])


def _aten(x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *form: Any) -> Tensor:
    return convolution_in_aten(x, weight, bias, identity, *form[:-1], activation=form[-1])


def _on_cuda(
    x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *form_and_activation: Any
) -> Tensor:
    *form, activation = form_and_activation
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


convolution = declare(
    "convolution(Tensor x, Tensor weight, Tensor? bias, Tensor? identity, int[2] stride, int[2] padding, "
    "int[2] dilation, int groups, str activation) -> Tensor",
    check=_check,
    fake=_fake,
    on_cpu=_on_cpu,
    on_cuda=_on_cuda,
    aten=_aten,
    formula=of_inference("convolution"),
    layout="channels_last",
)
