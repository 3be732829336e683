"""The end of a residual block and the shift that opens the next one, as one op.

    y = act(branch * scale + bias + identity)
    shifted = temporal_shift(y)

The op takes the batch-norm's scale and bias because an op of (branch, identity) alone would cut the
batch-norm off from the addition under `torch.compile`, at the price of another pass over the branch.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ..activations import ACTIVATIONS, activate, activate_, activation_backward, check_activation
from .checks import check_clips, check_floats, check_frames, check_like
from .copies import shift_by_copies
from .declare import ATEN_FORMS, declare
from .derivatives import batch_first, one_by_one
from .recomputing import made_again
from .temporal_shift import temporal_shift
from .tensors import MAX_FRAME, laid_out_like, wide

__all__ = ["residual_shift", "residual_shift_backward"]

_SHIFT = "SymInt num_segments, SymInt n_first, SymInt n_second, bool reverse, str activation"


def _check(branch: Tensor, scale: Tensor | None, bias: Tensor | None, identity: Tensor, *shift: Any) -> None:
    check_floats(branch, "branch", "[N*T, C, *spatial] of 2 to 5 axes", range(2, 6))
    num_segments, n_first, n_second, _, activation = shift
    check_clips(branch, num_segments, n_first, n_second, 1, "branch")
    check_activation(activation)
    check_like(identity, "identity", branch.shape, branch)
    check_like(scale, "scale", branch.shape[1:2], branch, torch.float32)
    check_like(bias, "bias", branch.shape[1:2], branch, torch.float32)


def _fake(branch: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(branch), torch.empty_like(branch)


def _fake_backward(
    grad_y: Tensor | None,
    grad_shifted: Tensor | None,
    y: Tensor | None,
    branch: Tensor | None,
    scale: Tensor | None,
    *_: Any,
) -> list[Tensor]:
    template = _template(y, branch, grad_y, grad_shifted)
    return [torch.empty_like(template) for _ in range(1 if scale is None else 2)]


def _template(*candidates: Tensor | None) -> Tensor:
    """The tensor whose memory format the gradients take: the first there is."""
    return next(x for x in candidates if x is not None)


def _on_cuda(
    branch: Tensor, scale: Tensor | None, bias: Tensor | None, identity: Tensor, *shift: Any
) -> tuple[Tensor, Tensor]:
    if branch[:1].numel() > MAX_FRAME:
        return _on_cpu(branch, scale, bias, identity, *shift)
    from ..kernels import residual_shift as kernel

    return kernel.residual_shift(branch, scale, bias, identity, *shift)


def _backward_on_cuda(
    grad_y: Tensor | None, grad_shifted: Tensor | None, y: Tensor | None, branch: Tensor | None, *rest: Any
) -> list[Tensor]:
    template = _template(y, branch, grad_y, grad_shifted)
    if template[:1].numel() > MAX_FRAME:
        return _backward_on_cpu(grad_y, grad_shifted, y, branch, *rest)
    from ..kernels import residual_shift as kernel

    return kernel.residual_shift_backward(template, grad_y, grad_shifted, y, branch, *rest)


def _on_cpu(
    branch: Tensor, scale: Tensor | None, bias: Tensor | None, identity: Tensor, *shift: Any
) -> tuple[Tensor, Tensor]:
    *counts, activation = shift
    if scale is None and bias is None and ACTIVATIONS[activation].selects:
        # it commutes with the one rounding: no need of a wider copy
        y = activate_(branch + identity, activation)
    else:
        y = activate_(_normalised_sum(branch, scale, bias, identity), activation).to(branch.dtype)
    y = laid_out_like(y, branch)
    return y, shift_by_copies(y, *counts, channel_dim=1)


def _backward_on_cpu(
    grad_y: Tensor | None, grad_shifted: Tensor | None, y: Tensor | None, branch: Tensor | None, *rest: Any
) -> list[Tensor]:
    template = _template(y, branch, grad_y, grad_shifted)
    grads = _differentiable_backward(grad_y, grad_shifted, y, branch, *rest)
    # an op must not return one of its inputs, which a gradient that nothing changed would be
    return [laid_out_like(grad.clone() if grad is grad_y else grad, template) for grad in grads]


def _in_aten(
    shift: Callable[..., Tensor],
    branch: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    identity: Tensor,
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    *counts, activation = arguments
    y = activate(_normalised_sum(branch, scale, bias, identity), activation).to(branch.dtype)
    y = laid_out_like(y, branch)
    return y, shift(y, *counts, 1)


# below autograd, where the shift does not say so by itself
_shift_again = made_again(temporal_shift)


def _normalised_sum(branch: Tensor, scale: Tensor | None, bias: Tensor | None, identity: Tensor) -> Tensor:
    z = branch.to(wide(branch.dtype))
    if scale is not None:
        z = z * _per_channel(scale, z)
    if bias is not None:
        z = z + _per_channel(bias, z)
    return z + identity


def _per_channel(values: Tensor, z: Tensor) -> Tensor:
    return values.to(wide(z.dtype)).view(-1, *[1] * (z.dim() - 2))


def _differentiable_backward(
    grad_y: Tensor | None,
    grad_shifted: Tensor | None,
    y: Tensor | None,
    branch: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    identity: Tensor | None,
    *shift: Any,
) -> list[Tensor]:
    """The backward of torch's own operators: what the CPU runs, and what a second derivative goes through."""
    *counts, reverse, activation = shift
    dtype = _template(grad_y, grad_shifted).dtype
    grad = None if grad_y is None else grad_y.to(wide(dtype))
    if grad_shifted is not None:
        moved = temporal_shift(grad_shifted, *counts, not reverse, 1)
        grad = moved.to(wide(dtype)) if grad is None else grad + moved
    assert grad is not None
    if ACTIVATIONS[activation].reads == "input":
        assert branch is not None
        assert identity is not None
        grad = activation_backward(grad, _normalised_sum(branch, scale, bias, identity), activation)
    elif y is not None:
        grad = activation_backward(grad, y.to(grad.dtype), activation)
    grads = [grad] if scale is None else [grad, grad * _per_channel(scale, grad)]
    return [grad.to(dtype) for grad in grads]


class _ResidualShift(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        branch, scale, bias, identity, *shift = inputs
        ctx.set_materialize_grads(False)
        ctx.shift = shift
        reads = ACTIVATIONS[shift[-1]].reads
        recomputed = reads == "input"
        y = output[0] if reads == "output" else None
        ctx.save_for_backward(
            y,
            branch if recomputed or ctx.needs_input_grad[1] else None,
            scale,
            bias if recomputed else None,
            identity if recomputed else None,
        )
        ctx.save_for_forward(y, branch, scale, bias, identity)
        ctx.bias_dtype = bias.dtype if bias is not None else None

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        no_shift = (None,) * len(ctx.shift)
        if grads[0] is None and grads[1] is None:
            return None, None, None, None, *no_shift
        y, branch, scale, bias, identity = ctx.saved_tensors
        # Grad mode is on in a backward only to differentiate it again.
        backward = _differentiable_backward if torch.is_grad_enabled() else residual_shift_backward
        if ctx.needs_input_grad[1] and ACTIVATIONS[ctx.shift[-1]].reads != "input":
            # A scale that is learnt, a batch-norm's: its own gradient takes a pass over the branch, in which
            # Inductor does this product too, and a second output of the kernel would only be read there.
            (grad_identity,) = backward(*grads, y, None, None, None, None, *ctx.shift)
            grad_branch = (grad_identity.to(wide(grad_identity.dtype)) * _per_channel(scale, branch)).to(
                branch.dtype
            )
        else:
            found = backward(*grads, y, branch, scale, bias, identity, *ctx.shift)
            # one and the same without a scale
            grad_identity, grad_branch = found[0], found[-1]
        grad_scale = grad_bias = None
        if ctx.needs_input_grad[1]:
            products = grad_identity.to(wide(grad_identity.dtype)) * branch
            grad_scale = _channel_sums(products).to(scale.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = _channel_sums(grad_identity).to(ctx.bias_dtype)
        return grad_branch, grad_scale, grad_bias, grad_identity, *no_shift

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        value, branch, scale, bias, identity = ctx.saved_tensors
        *counts, activation = ctx.shift
        dtype = wide(branch.dtype)
        along_branch, along_scale, along_bias, along_identity = tangents[:4]
        parts = []
        if along_branch is not None:
            along = along_branch.to(dtype)
            parts.append(along if scale is None else along * _per_channel(scale, along))
        if along_scale is not None:
            parts.append(branch.to(dtype) * _per_channel(along_scale, branch))
        if along_bias is not None:
            parts.append(_per_channel(along_bias, branch))
        if along_identity is not None:
            parts.append(along_identity.to(dtype))
        if ACTIVATIONS[activation].reads == "input":
            value = _normalised_sum(branch, scale, bias, identity)
        elif value is not None:
            value = value.to(dtype)
        along_sum = functools.reduce(torch.add, parts).expand(branch.shape)
        along_y = activation_backward(along_sum, cast(Tensor, value), activation).to(branch.dtype)
        return along_y, temporal_shift(along_y, *counts, 1)

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any,
        in_dims: Any,
        branch: Tensor,
        scale: Tensor | None,
        bias: Tensor | None,
        identity: Tensor,
        *shift: Any,
    ) -> Any:
        if in_dims[1] is not None or in_dims[2] is not None:  # batch-norms of an ensemble
            return one_by_one(residual_shift, info, in_dims, branch, scale, bias, identity, *shift)
        # More clips: the batched axis folds into the frames.
        branch, identity = batch_first(info, branch, in_dims[0]), batch_first(info, identity, in_dims[3])
        check_frames(branch.shape[1], shift[0])
        both = residual_shift(branch.flatten(0, 1), scale, bias, identity.flatten(0, 1), *shift)
        return tuple(out.unflatten(0, branch.shape[:2]) for out in both), (0, 0)


def _channel_sums(values: Tensor) -> Tensor:
    axes = [axis for axis in range(values.dim()) if axis != 1]
    return values.sum(axes, dtype=wide(values.dtype))


residual_shift = declare(
    f"residual_shift(Tensor branch, Tensor? scale, Tensor? bias, Tensor identity, {_SHIFT})"
    " -> (Tensor y, Tensor shifted)",
    check=_check,
    fake=_fake,
    on_cpu=_on_cpu,
    on_cuda=_on_cuda,
    aten=functools.partial(_in_aten, _shift_again),
    exported=functools.partial(_in_aten, ATEN_FORMS[temporal_shift]),
    formula=_ResidualShift,
    layout="exact",
)
# One gradient g of branch * scale + bias + identity, and g * scale where there is a scale.
residual_shift_backward = declare(
    "residual_shift_backward(Tensor? grad_y, Tensor? grad_shifted, Tensor? y, Tensor? branch, "
    f"Tensor? scale, Tensor? bias, Tensor? identity, {_SHIFT}) -> Tensor[]",
    fake=_fake_backward,
    on_cpu=_backward_on_cpu,
    on_cuda=_backward_on_cuda,
    aten=_backward_on_cpu,
    transformed=_differentiable_backward,
    layout="exact",
)
