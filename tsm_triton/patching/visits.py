"""Who is inside of `shift_disabled` and `packed_clips`: threads and tasks leave in any order."""

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .shift_hook import ShiftHook

__all__ = ["Visit", "packing_here"]

# of this thread or task, and of those that began inside: packings, the last one innermost
_packing: ContextVar[tuple["Visit", ...]] = ContextVar("packing", default=())
_lock = threading.Lock()


class Visit:
    """One stay inside: with the boundaries of packed clips, or, without, of a model whose shift is off."""

    def __init__(self, boundaries: Tensor | None = None) -> None:
        self.boundaries = boundaries
        self.hooks: list[ShiftHook] = []

    def begin(self, hooks: list["ShiftHook"]) -> None:
        if self.boundaries is not None:
            _packing.set((*_packing.get(), self))
        with _lock:
            for hook in hooks:
                hook.enter(self)

    def end(self) -> None:
        if self.boundaries is not None:
            _packing.set(tuple(visit for visit in _packing.get() if visit is not self))
        with _lock:
            while self.hooks:
                self.hooks.pop().leave(self)


def packing_here() -> tuple[Visit, ...]:
    """The packings that this thread or task is inside of."""
    return _packing.get()
