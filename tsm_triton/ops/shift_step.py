"""The shift of one frame of a causal stream, whose past is in a cache, as registered ops."""

from typing import Any

import torch
from torch import Tensor

from .checks import check_channel_dim
from .declare import declare
from .derivatives import batch_first

__all__ = ["check_cache", "shift_step", "shift_step_into"]


def check_cache(x: Tensor, cache: Tensor, name: str, channel_dim: int) -> None:
    """What a kernel needs to stay inside its memory."""
    check_channel_dim(x.shape, channel_dim)
    dim = channel_dim % x.dim()
    shape, expected = list(cache.shape), list(x.shape)
    if len(shape) == len(expected):
        expected[dim] = min(shape[dim], expected[dim])
    if shape != expected or cache.dtype != x.dtype or cache.device != x.device:
        raise ValueError(
            f"{name} must be {x.dtype} {expected} on {x.device}, at most {x.shape[dim]} channels on axis "
            f"{dim}, got {cache.dtype} {shape} on {cache.device}. A stream keeps its batch, frame size, "
            "dtype and device: reset it to change them."
        )


def _check(x: Tensor, cache: Tensor, channel_dim: int) -> None:
    check_cache(x, cache, "cache", channel_dim)


def _check_into(x: Tensor, cache: Tensor, kept: Tensor, channel_dim: int) -> None:
    check_cache(x, cache, "cache", channel_dim)
    check_cache(x, kept, "kept", channel_dim)
    if kept.shape != cache.shape:
        raise ValueError(
            f"kept must have the shape of cache, {list(cache.shape)}, got {list(kept.shape)}: "
            "make it with torch.empty_like"
        )


def _fake(x: Tensor, cache: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(cache)


def _fake_into(x: Tensor, cache: Tensor, kept: Tensor, channel_dim: int) -> Tensor:
    return torch.empty_like(x)


def _by_copies(x: Tensor, cache: Tensor, kept: Tensor, channel_dim: int) -> Tensor:
    """The step as slice copies, any strides and dtype."""
    fold = cache.shape[channel_dim]
    out = torch.empty_like(x)
    rest = x.shape[channel_dim] - fold
    out.narrow(channel_dim, fold, rest).copy_(x.narrow(channel_dim, fold, rest))
    out.narrow(channel_dim, 0, fold).copy_(cache)
    kept.copy_(x.narrow(channel_dim, 0, fold))
    return out


def _by_kernel(x: Tensor, cache: Tensor, kept: Tensor, channel_dim: int) -> Tensor:
    from ..kernels import shift_step as kernel

    out = kernel.shift_step(x, cache, kept, channel_dim)
    return _by_copies(x, cache, kept, channel_dim) if out is None else out


def _functional(form: Any) -> Any:
    """The step into a new cache."""

    def shift_step(x: Tensor, cache: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
        kept = torch.empty_like(cache)
        return form(x, cache, kept, channel_dim), kept

    return shift_step


def _aten(x: Tensor, cache: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    fold = cache.shape[channel_dim]
    rest = x.narrow(channel_dim, fold, x.shape[channel_dim] - fold)
    return torch.cat([cache, rest], channel_dim), x.narrow(channel_dim, 0, fold).clone()


class _ShiftStep(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.channel_dim = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        # A step exchanges values, so it is its own adjoint.
        grad_x, grad_cache = shift_step(grads[0], grads[1], ctx.channel_dim)
        return grad_x, grad_cache, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return shift_step(tangents[0], tangents[1], ctx.channel_dim)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, cache: Tensor, channel_dim: int) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        # More streams: the batched axis folds into theirs.
        both = [batch_first(info, part, dim) for part, dim in zip((x, cache), in_dims, strict=False)]
        rows = [part.flatten(0, 1) for part in both]
        outputs = shift_step(*rows, channel_dim % rows[0].dim())
        return tuple(out.unflatten(0, part.shape[:2]) for out, part in zip(outputs, both, strict=True)), (
            0,
            0,
        )


shift_step = declare(
    "shift_step(Tensor x, Tensor cache, int channel_dim) -> (Tensor, Tensor)",
    check=_check,
    fake=_fake,
    on_cpu=_functional(_by_copies),
    on_cuda=_functional(_by_kernel),
    aten=_aten,
    formula=_ShiftStep,
    layout="exact",
)
# Fixed memory for the cache: nothing is allocated but the output. `kept` may be `cache`. No form in torch's own
# operators: a graph without writes has `shift_step`.
shift_step_into = declare(
    "shift_step_into(Tensor x, Tensor cache, Tensor(a!) kept, int channel_dim) -> Tensor",
    check=_check_into,
    fake=_fake_into,
    on_cpu=_by_copies,
    on_cuda=_by_kernel,
    layout="exact",
)
