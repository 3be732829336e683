"""How far a long command has come: a bar on a terminal, and lines where there is none."""

import sys
import time
from types import TracebackType
from typing import Any

__all__ = ["Bar", "say"]

EVERY = 30.0  # seconds between lines without a terminal


def say(line: str) -> None:
    """A line on stderr where it is no terminal: there no bar is drawn, and minutes would pass in silence."""
    if not sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


class Bar:
    """A bar of tqdm's; without a terminal a line every half a minute.

    Args:
        total: of what is counted; None if it is not known.
        title: in front.
        unit: what is counted, `"clip"` for instance.
        done: how many of them are done already.
        quiet: show nothing, as all processes but one do.

    Example:
        >>> with Bar(2, "Reading", "clip", quiet=True) as bar:
        ...     bar.update("the first")
        ...     bar.done
        1
    """

    def __init__(
        self, total: int | None, title: str, unit: str, done: int = 0, *, quiet: bool = False
    ) -> None:
        from tqdm import tqdm

        self.total, self.title, self.unit, self.done, self.quiet = total, title, unit, done, quiet
        self._bar: Any = tqdm(
            total=total, desc=title, unit=unit, initial=done, disable=True if quiet else None
        )
        self._said = time.monotonic()

    def update(self, what: str = "", count: int = 1) -> None:
        """Count some more as done, and say what came of them."""
        self.done += count
        self._bar.update(count)
        if what:
            self._bar.set_postfix_str(what, refresh=False)
        if not self.quiet and time.monotonic() - self._said > EVERY:
            of = "" if self.total is None else f" of {self.total}"
            self.say(f"{self.title}, {self.unit} {self.done}{of}{': ' if what else ''}{what}")

    def say(self, line: str) -> None:
        """A line of its own, where there is no terminal."""
        self._said = time.monotonic()
        if not self.quiet:
            say(line)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
