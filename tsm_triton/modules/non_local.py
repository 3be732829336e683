"""Attention over all places of all frames of a clip."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .clip_layer import ClipLayer

__all__ = ["MODES", "NonLocal"]

MODES = ("embedded_gaussian", "dot_product", "gaussian")


class NonLocal(ClipLayer):
    """A non-local block, `x + norm(out(attention(x)))`, which begins as the identity.

    The authors put it behind blocks 0 and 2 of a ResNet-50's second stage and 0, 2, 4 of its third
    (`create_model(..., non_local="embedded_gaussian")`). Keys and values are pooled 2 x 2 in space.

    Args:
        channels: C; half of them inside.
        num_segments: T, the frames of a clip.
        mode: how two places are compared: `"embedded_gaussian"`, the softmax of `theta(x) . phi(x)`, not scaled (the
            authors); `"gaussian"`, the softmax of `x . x`; `"dot_product"`, `theta(x) . phi(x)` divided by the number
            of places (mmaction2 has all three).

    Shapes:
        `[N*T, C, H, W]` -> the same.

    Raises:
        TypeError, ValueError: an unknown mode; frames that are no whole clips.

    Example:
        >>> import torch
        >>> x = torch.randn(2 * 4, 8, 6, 6)
        >>> torch.equal(NonLocal(8, num_segments=4).eval()(x), x)
        True

    Source: arXiv 1711.07971; the authors' release of TSM, `ops/non_local.py`, for where and with which pooling.
    """

    def __init__(self, channels: int, num_segments: int, mode: str = "embedded_gaussian") -> None:
        super().__init__(num_segments)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}: choose one")
        inside = max(1, channels // 2)
        self.mode = mode
        self.g = nn.Conv2d(channels, inside, 1)
        if mode != "gaussian":
            self.theta = nn.Conv2d(channels, inside, 1)
            self.phi = nn.Conv2d(channels, inside, 1)
        self.out = nn.Conv2d(inside, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        gaussian = self.mode == "gaussian"
        queries = self._places(x if gaussian else self.theta(x))
        keys = self._places(F.max_pool2d(x if gaussian else self.phi(x), 2))
        values = self._places(F.max_pool2d(self.g(x), 2))
        if self.mode == "dot_product":
            # the sum over places first: no matrix of all pairs
            mixed = queries @ (keys.transpose(1, 2) @ values) / keys.shape[1]
        else:
            if torch.compiler.is_exporting():  # torch's form for ONNX wants heads
                queries, keys, values = (one.unsqueeze(1) for one in (queries, keys, values))
            mixed = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
            mixed = mixed.squeeze(1) if mixed.dim() == 4 else mixed
        height, width = x.shape[-2:]
        frames = mixed.unflatten(1, (-1, height, width)).flatten(0, 1).movedim(-1, 1)
        return x + self.norm(self.out(frames))

    def _places(self, x: Tensor) -> Tensor:
        """`[N*T, C, H, W]` as `[N, T*H*W, C]`."""
        return self.clips(x.movedim(1, -1)).flatten(1, 3)

    def extra_repr(self) -> str:
        return f"num_segments={self.num_segments}, mode={self.mode!r}"
