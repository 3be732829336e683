"""A 1x1 convolution that reads its input shifted, with bias, residual and activation, as one op.

    out = act(conv1x1(temporal_shift(x), weight) + bias + identity)

In channels_last the convolution is a matrix product over rows of one pixel of one frame, and the shift only
an offset of the row that a channel is read from: it costs no memory traffic of its own.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..activations import ACTIVATIONS, activate, activate_, activation_backward, check_activation
from .library import (
    CHANNELS_LAST_OPS,
    CHANNELS_LAST_TAGS,
    DECOMPOSITIONS,
    MAX_FRAME,
    batch_first,
    check_clips,
    check_frames,
    differentiate,
    implement,
    let_inductor_decompose,
    library,
    one_by_one,
    wide,
)
from .temporal_shift import shift_by_copies, temporal_shift

__all__ = ["check", "shift_conv1x1"]

library.define(
    "shift_conv1x1(Tensor x, Tensor weight, Tensor? bias, Tensor? identity, SymInt num_segments, "
    "SymInt n_future, SymInt n_past, bool future_first, str activation) -> Tensor",
    tags=CHANNELS_LAST_TAGS,
)
shift_conv1x1 = torch.ops.tsm_triton.shift_conv1x1.default
CHANNELS_LAST_OPS.append(shift_conv1x1)


def check(x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *shift: Any) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            f"x must be floats of shape [N*T, C, H, W], got {tuple(x.shape)} {x.dtype}: reshape it"
        )
    num_segments, n_future, n_past, _, activation = shift
    check_clips(x, num_segments, n_future, n_past, 1)
    check_activation(activation)
    if weight.shape[1:2] != x.shape[1:2] or weight.shape[2:] not in ((), (1, 1)):
        raise ValueError(
            f"weight must have shape [C_out, {x.shape[1]}] or [C_out, {x.shape[1]}, 1, 1], "
            f"got {tuple(weight.shape)}: reshape it"
        )
    out_shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    expected = {"weight": weight.shape, "bias": weight.shape[:1], "identity": out_shape}
    for name, value in (("weight", weight), ("bias", bias), ("identity", identity)):
        if value is None:
            continue
        if tuple(value.shape) != tuple(expected[name]):
            raise ValueError(
                f"{name} must have shape {tuple(expected[name])}, got {tuple(value.shape)}: reshape it"
            )
        if (value.dtype, value.device) != (x.dtype, x.device):
            raise ValueError(
                f"{name} must be {x.dtype} on {x.device} as x is, got {value.dtype} on {value.device}: convert it"
            )


def _empty_out(x: Tensor, weight: Tensor) -> Tensor:
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.register_fake("tsm_triton::shift_conv1x1", lib=library)
def _(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    let_inductor_decompose()
    return _empty_out(x, weight)


def _on_cuda(x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *shift: Any) -> Tensor:
    check(x, weight, bias, identity, *shift)
    if max(x.shape[1], weight.shape[0]) * x.shape[2] * x.shape[3] > MAX_FRAME:
        return _on_cpu(x, weight, bias, identity, *shift)
    from ..kernels import shift_conv1x1 as kernel

    return kernel.shift_conv1x1(x, weight, bias, identity, *shift)


def _on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *shift: Any) -> Tensor:
    check(x, weight, bias, identity, *shift)
    num_segments, n_future, n_past, future_first, activation = shift
    shifted = x
    if n_future or n_past:
        shifted = shift_by_copies(x, num_segments, n_future, n_past, future_first, 1)
    values = F.conv2d(shifted, _as_convolution(weight), bias)
    if identity is not None:
        values += identity
    out = _empty_out(x, weight)
    values = activate_(values, activation)
    return values if values.stride() == out.stride() else out.copy_(values)


def _separate_form(
    x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *shift: Any
) -> Tensor:
    """The op in torch's own operators: on a CPU Inductor joins the sum and the activation by itself."""
    if x.device.type != "cpu":
        return NotImplemented
    *counts, activation = shift
    shifted = temporal_shift(x, *counts, 1) if counts[1] or counts[2] else x
    values = F.conv2d(shifted, _as_convolution(weight), bias)
    values = values if identity is None else values + identity
    return activate(values, activation).contiguous(memory_format=torch.channels_last)


def _as_convolution(weight: Tensor) -> Tensor:
    return weight[:, :, None, None] if weight.dim() == 2 else weight


class _ShiftConv1x1(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, *shift: Any
    ) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return shift_conv1x1(x, weight, bias, identity, *shift)

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
        num_segments, n_future, n_past, future_first = counts
        if ACTIVATIONS[activation].reads == "input":
            value = shift_conv1x1(x, weight, bias, identity, *counts, "none")
        grad = activation_backward(grads[0], value, activation)
        need_x, need_weight, need_bias, need_identity = ctx.needs_input_grad[:4]
        grad_x = grad_weight = grad_bias = None
        if need_x or need_weight:
            shifted = temporal_shift(x, *counts, 1) if need_weight and (n_future or n_past) else x
            grad_shifted, grad_weight, _ = torch.ops.aten.convolution_backward(
                grad, shifted, _as_convolution(weight), None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1,
                (need_x, need_weight, False),
            )  # fmt: skip
            if need_weight:
                grad_weight = grad_weight.reshape(weight.shape)
            if need_x:
                adjoint = (num_segments, n_past, n_future, not future_first, 1)
                grad_x = temporal_shift(grad_shifted, *adjoint) if n_future or n_past else grad_shifted
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


implement("shift_conv1x1", _on_cpu, _on_cuda)
differentiate("shift_conv1x1", _ShiftConv1x1)


DECOMPOSITIONS[shift_conv1x1] = _separate_form
