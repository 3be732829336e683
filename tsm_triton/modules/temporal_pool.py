"""Half as many frames from a layer on."""

from torch import Tensor
from torch.nn import functional as F

from .clip_layer import ClipLayer

__all__ = ["TemporalPool"]


class TemporalPool(ClipLayer):
    """The maximum over three frames, every second one: T becomes T/2.

    The authors put it before a ResNet's second stage (`create_model(..., temporal_pool=True)`). What stands behind it
    has clips of T/2 frames, and the model a row for each of these; `set_num_segments` counts them.

    Args:
        num_segments: T, even.

    Shapes:
        `[N*T, C, *spatial]` -> `[N*T/2, C, *spatial]`. At a clip's ends the maximum is over two frames.

    Raises:
        TypeError, ValueError: an odd T, or frames that are no whole clips.

    Example:
        >>> import torch
        >>> TemporalPool(4)(torch.arange(4.0).reshape(4, 1, 1, 1)).flatten()
        tensor([1., 3.])

    Source: the authors' release, `ops/temporal_shift.py`: max_pool3d of kernel (3, 1, 1), stride (2, 1, 1), padding
    (1, 0, 0).
    """

    pools = 2

    def __init__(self, num_segments: int) -> None:
        super().__init__(num_segments)
        if num_segments % 2:
            raise ValueError(f"num_segments must be even, got {num_segments}: pass an even number of frames")

    def forward(self, x: Tensor) -> Tensor:
        clips = self.clips(x)
        # [N, T, C*H*W] as one image: the pool's window is three rows
        rows = clips.flatten(2).unsqueeze(1)
        pooled = F.max_pool2d(rows, (3, 1), stride=(2, 1), padding=(1, 0))
        return pooled.squeeze(1).flatten(0, 1).unflatten(1, x.shape[1:])
