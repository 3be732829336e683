"""Who is inside of `shift_disabled` and `packed_clips`: threads and tasks leave in any order."""

import asyncio
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .shift_hook import ShiftHook

__all__ = ["Visit"]

# the packings of this thread or task, and of those that began inside of one
_packing: ContextVar[tuple["Visit", ...]] = ContextVar("packing", default=())
_lock = threading.RLock()  # a generator that is inside of one may be collected anywhere, also in here


class Visit:
    """One stay inside: with the boundaries of packed clips, or, without, of a model whose shift is off."""

    def __init__(self, boundaries: Tensor | None = None) -> None:
        self.boundaries = boundaries
        self.hooks: list[ShiftHook] = []
        self.runs = True
        self.thread, self.task = threading.get_ident(), _task()

    def begin(self, hooks: list["ShiftHook"]) -> None:
        if self.boundaries is not None:
            _packing.set((*(visit for visit in _packing.get() if visit.runs), self))
        for hook in hooks:
            self.take_in(hook)

    def take_in(self, hook: "ShiftHook") -> None:
        with _lock:
            if self.runs and hook not in self.hooks:
                self.hooks.append(hook)
                hook.enter(self)

    def end(self) -> None:
        with _lock:
            self.runs = False
            while self.hooks:
                self.hooks.pop().leave(self)
        _packing.set(tuple(visit for visit in _packing.get() if visit.runs))

    @property
    def is_here(self) -> bool:
        """Whether this thread or task is inside: it began in one, or one that is over left it to the thread."""
        if self in _packing.get():
            return True
        return self.thread == threading.get_ident() and (self.task is None or self.task.done())


def _task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs here
        return None
