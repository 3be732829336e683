"""Signals that ask for an end, so that what a command writes is whole when it ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Interrupt", "exit_on_signal", "stop_on_signal"]

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupt:
    """Whether a signal asked for an end. A plain flag: a signal may come while a `threading.Event` is locked."""

    asked = False
    number = 0  # of the signal


@contextmanager
def stop_on_signal() -> Iterator[Interrupt]:
    """Ctrl-C, a `kill` and a terminal that closes ask for an end, so that no file is left half written.

    A second one ends at once, with the files of before and no temporary one.

    Example:
        >>> with stop_on_signal() as interrupt:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     interrupt.asked
        True
    """
    interrupt, before = Interrupt(), dict[int, Any]()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def stop(number: int, _: object) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        interrupt.asked, interrupt.number = True, number

    for called in SIGNALS:
        number = getattr(signal, called, None)
        # ignored, as a shell's background jobs ignore Ctrl-C; None: not Python's to handle
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, stop)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """Let a signal end what runs here at once, as Ctrl-C does without handlers: what stands in `finally` is done."""
    before = dict[int, Any]()

    def end(number: int, _: object) -> None:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for called in SIGNALS:
            number = getattr(signal, called, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
