"""What the ops mean, in torch and einops: slow, allocating, and easy to check against the paper by eye."""

import torch
from einops import rearrange
from torch import Tensor

__all__ = ["temporal_shift"]


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
