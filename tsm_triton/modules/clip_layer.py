"""A layer that mixes the frames of a clip in other ways than the shift, and so must know how many there are."""

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import as_count
from ..backwards import CALLS, Recorded, Told, told_again
from ..threads import OfThread
from .captured import captured_length

__all__ = ["ClipLayer", "CutsClips", "FixedClips", "fixed_length_in"]


class CutsClips:
    """A module that cuts folded frames into clips by a `num_segments` of its own: `set_num_segments` sets it, too."""

    num_segments: int


class FixedClips:
    """A module that was made for clips of `num_segments` frames and takes no others."""

    num_segments: int


def fixed_length_in(model: nn.Module) -> int | None:
    """T of the clips that enter a model which holds one that was made, or captured, for its own; None where none is
    inside."""
    found, pooled = None, 1
    for module in model.modules():
        if isinstance(module, FixedClips):
            return module.num_segments * pooled
        if isinstance(module, ClipLayer):
            pooled *= module.pools
        if (length := captured_length(module)) is not None:
            found = pooled * length if found is None else math.lcm(found, pooled * length)
    return found


class ClipLayer(nn.Module):
    """The base of layers of folded clips, `[N*T, ...]`: they hold T, which `set_num_segments` and the wrappers over
    clips set with that of the shifts.

    A layer of one's own calls `self.clips(x)` or `self.clip_length()` in its `forward`, and gives rows of frames back.

    Args:
        num_segments: T, the frames of a clip where this layer stands.

    Attributes:
        num_segments: T, as it was set last.
        pools: how many frames become one in it, 1 of most.
        length: T in a call that is being traced, a symbol; None else.

    Shapes:
        `[N*T, ...]` -> `[N*T / pools, ...]`.

    Raises:
        TypeError, ValueError: a T that is no positive integer; when called, frames that are no whole clips.

    Example:
        >>> class Mean(ClipLayer):
        ...     def forward(self, x):
        ...         clips = self.clips(x)
        ...         return clips.mean(1, keepdim=True).expand_as(clips).flatten(0, 1)
        >>> Mean(num_segments=2)(torch.tensor([[0.0], [2.0], [4.0], [6.0]])).flatten()
        tensor([1., 1., 5., 5.])
    """

    pools = 1
    length: int | None = None
    # T in the calls that run, for compiled parts, which all threads share
    length_of_graphs: int | None = None
    # what runs and tells compiled parts of its clips, the last one last
    tellings: tuple[tuple[object, Told], ...] = ()

    def __init__(self, num_segments: int) -> None:
        super().__init__()
        self.num_segments = as_count(num_segments, "num_segments")
        self._begin()

    def set_own_length(self, length: int | None) -> None:
        """T in the calls of this thread alone, None for the model's."""
        self._own_length.value = length

    @property
    def told(self) -> Told:
        return Told(self.num_segments)

    def tell_graphs(self) -> None:
        self.length_of_graphs = self.tellings[-1][1].length if self.tellings else None

    def __getstate__(self) -> dict[str, Any]:
        of_calls = "length", "length_of_graphs", "calls", "tellings", "_own_length"
        return {key: value for key, value in vars(self).items() if key not in of_calls}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()

    def _begin(self) -> None:
        self._own_length = OfThread()
        self.calls: deque[Recorded] = deque(maxlen=CALLS)

    def clip_length(self) -> int:
        """T in the call that runs."""
        frames = self.num_segments if self.length is None else self.length
        if torch.compiler.is_dynamo_compiling():
            if self.length is None and self.length_of_graphs is not None:
                frames = self.length_of_graphs
        elif self._own_length.value is not None:
            frames = self._own_length.value
        elif (again := told_again(self)) is not None:
            frames = again.length
        return frames

    def clips(self, x: Tensor) -> Tensor:
        """`[N*T, ...]` as `[N, T, ...]`.

        Raises:
            ValueError: no whole number of clips.
        """
        frames = self.clip_length()
        if x.shape[0] % frames:
            raise ValueError(
                f"x must hold whole clips: expected a first axis divisible by num_segments={frames}, got "
                f"{x.shape[0]} frames. Pass whole clips, or call tsm_triton.set_num_segments(model, T)."
            )
        return x.unflatten(0, (x.shape[0] // frames, frames))

    def extra_repr(self) -> str:
        return f"num_segments={self.num_segments}"
