"""A 1x1 convolution that reads its input shifted, with bias, residual and activation, as one op.

    out = act(conv1x1(temporal_shift(x), weight) + bias + identity)

In channels_last the convolution is a matrix product over rows of one pixel of one frame, and the shift only
an offset of the row that a channel is read from: it costs no memory traffic of its own.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..activations import ACTIVATIONS, activation_backward, check_activation
from .checks import check_clips, check_floats, check_frames, check_like
from .convolution import convolution_in_aten, convolved
from .copies import shift_by_copies
from .declare import ATEN_FORMS, declare
from .derivatives import batch_first, one_by_one
from .temporal_shift import temporal_shift
from .tensors import MAX_FRAME, new_channels_last, wide

__all__ = ["UNSHIFTED", "check", "shift_conv1x1"]

# num_segments, n_first, n_second, reverse: the convolution alone
UNSHIFTED = (1, 0, 0, False)

POINTWISE = (1, 0, 1, 1)  # stride, padding, dilation, groups


def check(x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *shift: Any) -> None:
    check_floats(x, "x", "[N*T, C_in, H, W]", range(4, 5))
    num_segments, n_first, n_second, _, activation = shift
    check_clips(x, num_segments, n_first, n_second, 1)
    check_activation(activation)
    if weight.shape[1:2] != x.shape[1:2] or weight.shape[2:] not in ((), (1, 1)):
        raise ValueError(
            f"weight must have shape [C_out, {x.shape[1]}] or [C_out, {x.shape[1]}, 1, 1], got {tuple(weight.shape)}"
        )
    check_like(weight, "weight", weight.shape, x)
    check_like(bias, "bias", weight.shape[:1], x)
    check_like(identity, "identity", (x.shape[0], weight.shape[0], *x.shape[2:]), x)


def _fake(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return new_channels_last(x, x.shape[0], weight.shape[0], *x.shape[2:])


def _on_cuda(x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *shift: Any) -> Tensor:
    if max(x.shape[1], weight.shape[0]) * x.shape[2] * x.shape[3] > MAX_FRAME:
        return _on_cpu(x, weight, bias, identity, *shift)
    from ..kernels import shift_conv1x1 as kernel

    return kernel.shift_conv1x1(x, weight, bias, identity, *shift)


def _on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *shift: Any) -> Tensor:
    *counts, activation = shift
    shifted = shift_by_copies(x, *counts, channel_dim=1) if _moves(*counts) else x
    return convolved(shifted, _as_convolution(weight), bias, identity, *POINTWISE, activation=activation)


def _in_aten(
    shift: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    identity: Tensor | None,
    *arguments: Any,
) -> Tensor:
    *counts, activation = arguments
    shifted = shift(x, *counts, 1) if _moves(*counts) else x
    return convolution_in_aten(
        shifted, _as_convolution(weight), bias, identity, *POINTWISE, activation=activation
    )


def _moves(num_segments: int, n_first: int, n_second: int, reverse: bool) -> bool:
    return bool(n_first or n_second)


def _as_convolution(weight: Tensor) -> Tensor:
    return weight[:, :, None, None] if weight.dim() == 2 else weight


class _ShiftConv1x1(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, bias, identity, *shift = inputs
        reads = ACTIVATIONS[shift[-1]].reads
        recomputed = reads == "input"
        ctx.shift = shift
        kept = (
            x,
            weight,
            output if reads == "output" else None,
            bias if recomputed else None,
            identity if recomputed else None,
        )
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        # Made of operators that have a backward each, so it can be differentiated again.
        x, weight, value, bias, identity = ctx.saved_tensors
        *counts, activation = ctx.shift
        if ACTIVATIONS[activation].reads == "input":
            value = shift_conv1x1(x, weight, bias, identity, *counts, "none")
        grad = activation_backward(grads[0], value, activation)
        need_x, need_weight, need_bias, need_identity = ctx.needs_input_grad[:4]
        grad_x = grad_weight = grad_bias = None
        if need_x or need_weight:
            shifted = temporal_shift(x, *counts, 1) if need_weight and _moves(*counts) else x
            grad_shifted, grad_weight, _ = torch.ops.aten.convolution_backward(
                grad, shifted, _as_convolution(weight), None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1,
                (need_x, need_weight, False),
            )  # fmt: skip
            if need_weight:
                grad_weight = grad_weight.reshape(weight.shape)
            if need_x:
                adjoint = (*counts[:3], not counts[3], 1)
                grad_x = temporal_shift(grad_shifted, *adjoint) if _moves(*counts) else grad_shifted
        if need_bias:
            grad_bias = grad.sum((0, 2, 3), dtype=wide(grad.dtype)).to(grad.dtype)
        return grad_x, grad_weight, grad_bias, grad if need_identity else None, *(None,) * len(ctx.shift)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        x, weight, value, bias, identity = ctx.saved_tensors
        *counts, activation = ctx.shift
        if ACTIVATIONS[activation].reads == "input":
            value = shift_conv1x1(x, weight, bias, identity, *counts, "none")
        along_x, along_weight, along_bias, along_identity = tangents[:4]
        parts = [
            shift_conv1x1(maps, by, None, None, *counts, "none")
            for maps, by in ((along_x, weight), (x, along_weight))
            if maps is not None and by is not None
        ]
        if along_bias is not None:
            parts.append(along_bias.view(-1, 1, 1))
        if along_identity is not None:
            parts.append(along_identity)
        along_sum = functools.reduce(torch.add, parts).expand(x.shape[0], weight.shape[0], *x.shape[2:])
        return activation_backward(along_sum, value, activation)

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any,
        in_dims: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        identity: Tensor | None,
        *shift: Any,
    ) -> tuple[Tensor, int]:
        if in_dims[1] is not None or in_dims[2] is not None:  # weights of an ensemble
            return one_by_one(shift_conv1x1, info, in_dims, x, weight, bias, identity, *shift)
        # More clips: the batched axis folds into the frames.
        x = batch_first(info, x, in_dims[0])
        check_frames(x.shape[1], shift[0])
        if identity is not None:
            identity = batch_first(info, identity, in_dims[3]).flatten(0, 1)
        out = shift_conv1x1(x.flatten(0, 1), weight, bias, identity, *shift)
        return out.unflatten(0, x.shape[:2]), 0


shift_conv1x1 = declare(
    "shift_conv1x1(Tensor x, Tensor weight, Tensor? bias, Tensor? identity, SymInt num_segments, "
    "SymInt n_first, SymInt n_second, bool reverse, str activation) -> Tensor",
    check=check,
    fake=_fake,
    on_cpu=_on_cpu,
    on_cuda=_on_cuda,
    aten=functools.partial(_in_aten, temporal_shift),
    exported=functools.partial(_in_aten, ATEN_FORMS[temporal_shift]),
    formula=_ShiftConv1x1,
    layout="channels_last",
)
