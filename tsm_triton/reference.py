"""What the ops mean, in torch and einops: slow, allocating, and easy to check against the paper by eye."""

import torch
from einops import einsum, rearrange
from torch import Tensor

from .activations import ACTIVATIONS

__all__ = ["activate", "residual_shift", "shift_conv1x1", "temporal_shift"]


def temporal_shift(
    x: Tensor, num_segments: int, n_first: int, n_second: int, reverse: bool = False, channel_dim: int = 1
) -> Tensor:
    """Take the first `n_first` channels from frame t+1, the next `n_second` from t-1; outside the clip is zero.

    Args:
        x: `[N*T, ...]`, channels on axis `channel_dim` (any but 0), any dtype.
        num_segments: T, the number of frames of a clip.
        n_first: how many channels the first group has, which reads frame t+1.
        n_second: how many the second has, which stands behind it and reads frame t-1.
        reverse: exchange the two offsets: the first group reads t-1, the second t+1. The adjoint of a shift is the
            same with this flag flipped.
        channel_dim: the channel axis.

    Returns:
        A contiguous tensor of the same shape and dtype.

    Example:
        >>> clip = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])  # two frames of three channels
        >>> temporal_shift(clip, num_segments=2, n_first=1, n_second=1)
        tensor([[  2.,   0., 100.],
                [  0.,  10., 200.]])

    Source: section 3 of the paper (arXiv 1811.08383), there called the bi-directional TSM.
    """
    clips = rearrange(x.movedim(channel_dim, -1), "(n t) ... c -> n t ... c", t=num_segments)
    zero = torch.zeros_like(clips[:, :1])
    next_frame = torch.cat([clips[:, 1:], zero], dim=1)
    previous = torch.cat([zero, clips[:, :-1]], dim=1)

    first, second = (previous, next_frame) if reverse else (next_frame, previous)
    moved = n_first + n_second
    shifted = torch.cat([first[..., :n_first], second[..., n_first:moved], clips[..., moved:]], dim=-1)
    return rearrange(shifted, "n t ... c -> (n t) ... c").movedim(-1, channel_dim).contiguous()


def activate(z: Tensor, activation: str) -> Tensor:
    """One of the activations of the fused ops, by name.

    Example:
        >>> activate(torch.tensor([-1.0, 3.0, 9.0]), "relu6")
        tensor([0., 3., 6.])
    """
    return ACTIVATIONS[activation].function(z)


def residual_shift(
    branch: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    identity: Tensor,
    num_segments: int,
    n_first: int,
    n_second: int,
    reverse: bool = False,
    activation: str = "relu",
) -> tuple[Tensor, Tensor]:
    """`y = act(branch * scale + bias + identity)`, computed in float64 and rounded once, and y shifted.

    Args:
        branch: `[N*T, C, *spatial]`, any float dtype.
        scale: `[C]`, or None for ones.
        bias: `[C]`, or None for zeros.
        identity: as `branch`.
        num_segments: T; with `n_first`, `n_second` and `reverse` as in `temporal_shift`.
        activation: a name in `activations.ACTIVATIONS`.

    Returns:
        y and its shift.

    Example:
        >>> branch, identity = torch.tensor([[1.0, -5.0], [2.0, 3.0]]), torch.ones(2, 2)
        >>> residual_shift(branch, None, None, identity, 2, 1, 0)
        (tensor([[2., 0.],
                [3., 4.]]), tensor([[3., 0.],
                [0., 4.]]))
    """
    z = rearrange(branch.double(), "f c ... -> f ... c")
    z = z if scale is None else z * scale.double()
    z = z if bias is None else z + bias.double()
    z = rearrange(z, "f ... c -> f c ...") + identity.double()
    y = activate(z, activation).to(branch.dtype)
    return y, temporal_shift(y, num_segments, n_first, n_second, reverse)


def shift_conv1x1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    identity: Tensor | None,
    num_segments: int,
    n_first: int,
    n_second: int,
    reverse: bool = False,
    activation: str = "none",
) -> Tensor:
    """`act(conv1x1(temporal_shift(x), weight) + bias + identity)`, in float64 and rounded once.

    Args:
        x: `[N*T, C_in, H, W]`, any float dtype.
        weight: `[C_out, C_in]` or `[C_out, C_in, 1, 1]`.
        bias: `[C_out]`, or None for zeros.
        identity: `[N*T, C_out, H, W]`, or None for zeros.
        num_segments: T; with `n_first`, `n_second` and `reverse` as in `temporal_shift`.
        activation: a name in `activations.ACTIVATIONS`.

    Example:
        >>> x = torch.tensor([[1.0, 10.0], [2.0, 20.0]]).view(2, 2, 1, 1)  # two frames of two channels
        >>> shift_conv1x1(x, torch.ones(1, 2), None, None, 2, 1, 0).flatten()  # 2 + 10, 0 + 20
        tensor([12., 20.])
    """
    shifted = temporal_shift(x, num_segments, n_first, n_second, reverse)
    weight = weight.flatten(1).double()
    z = einsum(shifted.double(), weight, "f c_in h w, c_out c_in -> f c_out h w")
    z = z if bias is None else z + rearrange(bias.double(), "c -> c 1 1")
    z = z if identity is None else z + identity.double()
    return activate(z, activation).to(x.dtype)
