"""Sections for the tests of `python -m benchmarks`: what its processes can do, in no time."""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.run import Build, Measure, Row, Run, Section


def section(*cases: tuple[str, str, Any]) -> Section:
    """A section of cases: a name, when it does something, "building" or "timing", and what."""
    return Section("tiny", partial(_cases, cases), lines)


def _cases(cases: tuple[tuple[str, str, Any], ...], _: Run) -> dict[str, Build]:
    return {name: partial(_build, name, when, what) for name, when, what in cases}


def _build(name: str, when: str, what: Callable[[], Any]) -> Measure:
    if when == "building":
        what()

    def rows() -> list[Row]:
        started = time.monotonic()
        if when == "timing":
            what()
        return [{"case": name, "started": started, "ended": time.monotonic()}]

    return rows


def lines(rows: list[Row]) -> list[str]:
    return [row["case"] for row in rows]


def nothing() -> None:
    pass


def fail() -> None:
    raise RuntimeError("it is wrong: no time is reported") from ValueError("for this reason")


def die() -> None:
    os._exit(3)


def last(seconds: float) -> None:
    time.sleep(seconds)


def note(path: str) -> None:
    """Write a line every tenth of a second, for ever."""
    while True:
        with open(path, "a") as file:
            print(time.monotonic(), file=file)
        time.sleep(0.1)
