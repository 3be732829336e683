"""The hook that counts a model's frames, for the shifts of maps that have several rows a frame."""

from typing import Any

import torch
from torch import nn

from ..threads import OfThread
from ..torch_private import backward_number
from .hook_calls import PatchHook, keyword_of

__all__ = ["FrameCounter"]


class FrameCounter(PatchHook):
    """The forward pre-hook that notes how many frames a module receives, for the shifts behind it.

    Threads may run one model side by side, each with a batch of its own size. A backward runs again what gradient
    checkpointing wraps, on a GPU on a thread of its own, and the counter may stand outside of that: there the rows of
    a map tell how many frames they were.
    """

    removed = False
    # as `ShiftHook.argument`
    argument: str | None = None

    def __init__(self) -> None:
        self._eager = OfThread()
        self._counted_in = OfThread()
        self._latest = 1
        # rows of a map -> frames, 0 where they were several numbers of frames, and how many backwards were before
        self._frames_of_rows: dict[int, tuple[int, int]] = {}
        self._backwards, self._last_backward = 0, -1
        # a graph knows its own number, and cannot hold what belongs to a thread; None where an eager call counted
        self._traced: int | None = None
        self._rows = OfThread()  # of the maps since the last count, by whose they are

    @property
    def frames(self) -> int:
        if torch.compiler.is_compiling():
            if self._traced is None:
                raise RuntimeError(
                    "expected to compile a shift of windows together with what counts the model's frames, got the "
                    "shift alone. Call torch.compile on the whole model, or on its blocks."
                )
            return self._traced
        if self._eager.value is not None:
            return self._eager.value
        return self._latest if self._traced is None else self._traced

    def frames_of(self, rows: int, site: object) -> int:
        """The frames in a map of so many rows, at a site.

        Raises:
            RuntimeError: a part of the model was called by itself, with windows of other frames than the model was
                last called with; or a backward runs a forward again, and maps of as many rows had several numbers of
                frames.
        """
        if torch.compiler.is_compiling():
            return self.frames
        backward = backward_number()
        if backward == -1 or self._counted_in.value == backward:
            frames = self.frames
            first = rows if self._rows.value is None else self._rows.value.setdefault(site, rows)
            if first != rows:
                raise RuntimeError(
                    f"expected windows of the {frames} frames that the model was last called with, {first} rows, got "
                    f"{rows} rows. Call the model, or unpatch it before a part is called by itself."
                )
            noted, since = self._frames_of_rows.get(rows, (frames, -1))
            is_clear = noted == frames or since != self._backwards
            self._frames_of_rows[rows] = (frames if is_clear else 0, self._backwards)
            return frames
        if backward != self._last_backward:
            self._backwards, self._last_backward = self._backwards + 1, backward
        frames, _ = self._frames_of_rows.get(rows, (self.frames, 0))
        if frames == 0:
            del self._frames_of_rows[rows]
            raise RuntimeError(
                f"expected to know the frames of {rows} rows in a backward that runs a forward again, got several "
                "numbers: frames of two sizes came before it. Call backward() behind each size, or checkpoint the part "
                "that splits frames into windows too."
            )
        return frames

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        x = args[0] if args else (kwargs or {})[keyword_of(self.argument, kwargs or {})]
        if torch.compiler.is_compiling():
            self._traced = x.shape[0]
        else:
            self._eager.value = self._latest = x.shape[0]
            self._counted_in.value = backward_number()
            self._traced, self._rows.value = None, {}
