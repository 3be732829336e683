"""What the ops mean, in torch and einops: slow, allocating, and easy to check against the paper by eye."""

import torch
from einops import einsum, rearrange
from torch import Tensor

from .activations import ACTIVATIONS

__all__ = ["activate", "conv1x1_shift_conv1x1", "residual_shift", "shift_conv1x1", "temporal_shift"]


def temporal_shift(
    x: Tensor, num_segments: int, n_future: int, n_past: int, future_first: bool = True, channel_dim: int = 1
) -> Tensor:
    """Take `n_future` channels from frame t+1 and `n_past` from frame t-1; frames outside the clip are zero.

    Args:
        x: `[N*T, ...]`, channels on axis `channel_dim` (any but 0), any dtype.
        num_segments: T, the number of frames of a clip.
        n_future: how many channels read frame t+1.
        n_past: how many channels read frame t-1.
        future_first: whether the channels that read t+1 come before those that read t-1; both groups
            stand at the start of the channel axis.
        channel_dim: the channel axis.

    Returns:
        A contiguous tensor of the same shape and dtype.

    Example:
        >>> clip = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])  # two frames of three channels
        >>> temporal_shift(clip, num_segments=2, n_future=1, n_past=1)
        tensor([[  2.,   0., 100.],
                [  0.,  10., 200.]])

    Source: section 3 of the paper (arXiv 1811.08383), there called the bi-directional TSM.
    """
    clips = rearrange(x.movedim(channel_dim, -1), "(n t) ... c -> n t ... c", t=num_segments)
    zero = torch.zeros_like(clips[:, :1])
    future = torch.cat([clips[:, 1:], zero], dim=1)
    past = torch.cat([zero, clips[:, :-1]], dim=1)

    first, second = (future, past) if future_first else (past, future)
    n_first, n_second = (n_future, n_past) if future_first else (n_past, n_future)
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
    n_future: int,
    n_past: int,
    future_first: bool = True,
    activation: str = "relu",
) -> tuple[Tensor, Tensor]:
    """`y = act(branch * scale + bias + identity)`, computed in float64 and rounded once, and y shifted.

    Args:
        branch: `[N*T, C, *spatial]`, any float dtype.
        scale: `[C]`, or None for ones.
        bias: `[C]`, or None for zeros.
        identity: as `branch`.
        num_segments: T; with `n_future`, `n_past` and `future_first` as in `temporal_shift`.
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
    return y, temporal_shift(y, num_segments, n_future, n_past, future_first)


def shift_conv1x1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    identity: Tensor | None,
    num_segments: int,
    n_future: int,
    n_past: int,
    future_first: bool = True,
    activation: str = "none",
) -> Tensor:
    """`act(conv1x1(temporal_shift(x), weight) + bias + identity)`, in float64 and rounded once.

    Args:
        x: `[N*T, C_in, H, W]`, any float dtype.
        weight: `[C_out, C_in]` or `[C_out, C_in, 1, 1]`.
        bias: `[C_out]`, or None for zeros.
        identity: `[N*T, C_out, H, W]`, or None for zeros.
        num_segments: T; with `n_future`, `n_past` and `future_first` as in `temporal_shift`.
        activation: a name in `activations.ACTIVATIONS`.

    Example:
        >>> x = torch.tensor([[1.0, 10.0], [2.0, 20.0]]).view(2, 2, 1, 1)  # two frames of two channels
        >>> shift_conv1x1(x, torch.ones(1, 2), None, None, 2, 1, 0).flatten()  # 2 + 10, 0 + 20
        tensor([12., 20.])
    """
    shifted = temporal_shift(x, num_segments, n_future, n_past, future_first)
    weight = weight.flatten(1).double()
    z = einsum(shifted.double(), weight, "f c_in h w, c_out c_in -> f c_out h w")
    z = z if bias is None else z + rearrange(bias.double(), "c -> c 1 1")
    z = z if identity is None else z + identity.double()
    return activate(z, activation).to(x.dtype)


def conv1x1_shift_conv1x1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    identity: Tensor,
    next_weight: Tensor,
    next_bias: Tensor | None,
    num_segments: int,
    n_future: int,
    n_past: int,
    future_first: bool = True,
    activation: str = "relu",
    next_activation: str = "relu",
) -> tuple[Tensor, Tensor]:
    """`y = act(conv1x1(x) + identity)` and `z = act(conv1x1(temporal_shift(y)))`, each rounded once.

    Args:
        x: `[N*T, C_in, H, W]`, any float dtype.
        weight, bias: of y's convolution, `[C_mid, C_in]` and `[C_mid]` or None.
        identity: `[N*T, C_mid, H, W]`.
        next_weight, next_bias: of z's convolution, `[C_out, C_mid]` and `[C_out]` or None.
        num_segments: T; with `n_future`, `n_past` and `future_first` as in `temporal_shift`.
        activation, next_activation: as in `shift_conv1x1`.

    Returns:
        y and z.

    Example:
        >>> x = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)  # two frames of one channel
        >>> ones = torch.ones(1, 1)
        >>> y, z = conv1x1_shift_conv1x1(x, ones, None, 10 * x, ones, None, 2, 1, 0)
        >>> y.flatten(), z.flatten()
        (tensor([11., 22.]), tensor([22.,  0.]))
    """
    y = shift_conv1x1(x, weight, bias, identity, 1, 0, 0, True, activation)
    shift = (num_segments, n_future, n_past, future_first)
    return y, shift_conv1x1(y, next_weight, next_bias, None, *shift, next_activation)
