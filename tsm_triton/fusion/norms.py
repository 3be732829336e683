"""Batch-norm taken apart, as what a fused op or a convolution takes in its place.

Plain functions that a rewritten graph calls; sums and quotients are float32, for float64 float64.
"""

import torch
from torch import Tensor

__all__ = ["batch_affine", "folded_bias", "folded_weight", "joined_bias", "running_affine"]


def running_affine(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The scale and bias of each channel that a batch-norm of running statistics comes to.

    Args:
        weight, bias: `[C]`, or None where the batch-norm has none.
        mean, var: `[C]`, the running statistics.
        eps: added to the variance.

    Returns:
        Two tensors `[C]` of at least float32.

    Example:
        >>> running_affine(None, torch.ones(1), torch.tensor([2.0]), torch.tensor([4.0]), 0.0)
        (tensor([0.5000]), tensor([0.]))
    """
    return _affine(weight, bias, _wide(mean), _wide(var), eps)


def batch_affine(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The scale and bias that a batch-norm in training comes to; the running statistics are updated.

    Args:
        x: `[F, C, ...]`, what the batch-norm reads. Gradients go back to it through its mean and variance.
        weight, bias: `[C]`, or None where the batch-norm has none.
        running_mean, running_var: `[C]`, written in place, or None where none are kept.
        momentum: the new statistics' part in the running ones.
        eps: added to the variance.

    Returns:
        Two tensors `[C]` of at least float32.

    Example:
        >>> scale, bias = batch_affine(torch.tensor([[1.0], [5.0]]), None, None, None, None, 0.1, 0.0)
        >>> scale, bias  # mean 3, variance 4
        (tensor([0.5000]), tensor([-1.5000]))
    """
    axes = [axis for axis in range(x.dim()) if axis != 1]
    var, mean = torch.var_mean(_wide(x), axes, correction=0)
    if running_mean is not None and running_var is not None:
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = var * count / (count - 1)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return _affine(weight, bias, mean, var, eps)


def folded_weight(
    weight: Tensor, gamma: Tensor | None, var: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """The weight of a convolution that does the work of the batch-norm behind it too.

    Args:
        weight: `[C_out, ...]`.
        gamma, var, eps: weight, running variance and eps of the batch-norm.
        dtype: of the result.
    """
    scale, _ = running_affine(gamma, None, var, var, eps)
    return (_wide(weight) * scale.view(-1, *[1] * (weight.dim() - 1))).to(dtype)


def folded_bias(
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """The bias `[C_out]` that goes with `folded_weight`; `bias` is the convolution's own."""
    scale, shift = running_affine(gamma, beta, mean, var, eps)
    return (shift if bias is None else shift + _wide(bias) * scale).to(dtype)


def joined_bias(first: Tensor, second: Tensor) -> Tensor:
    """The bias of two maps that are added."""
    return (_wide(first) + _wide(second)).to(first.dtype)


def _affine(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    scale = torch.rsqrt(var + eps)
    scale = scale if weight is None else scale * _wide(weight)
    shift = -mean * scale
    return scale, shift if bias is None else shift + _wide(bias)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
