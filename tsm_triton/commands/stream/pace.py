"""How fast a stream goes: which frames are worth taking, and how many come out."""

import time

from ..interrupt import Interrupt

__all__ = ["Meter", "Pace"]


class Pace:
    """Which frames of a source to take so as not to fall behind it."""

    def __init__(self, realtime: bool, fps: float, interrupt: Interrupt) -> None:
        self.realtime = realtime
        self.period = 1 / fps
        self.interrupt = interrupt
        self.dropped = 0
        self.start: float | None = None
        self.taken = 0.0

    def keeps(self, at: float) -> bool:
        """Wait for a frame's time, and say whether it is still worth taking."""
        if not self.realtime:
            return True
        if self.start is None:
            self.start = time.monotonic() - at
        while (early := self.start + at - time.monotonic()) > 0 and not self.interrupt.asked:
            time.sleep(min(early, 0.05))  # a signal does not end a sleep
        # one a second is taken all the same, where decoding alone is slower than the source
        if early < -self.period and at - self.taken < 1:
            self.dropped += 1
            return False
        self.taken = at
        return True


class Meter:
    """Results a second, all work included, averaged over about the last ten."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.fps = 0.0

    def tick(self) -> float:
        now = time.perf_counter()
        rate = 1 / max(now - self.last, 1e-6)
        self.fps = 0.9 * self.fps + 0.1 * rate if self.fps else rate
        self.last = now
        return self.fps
