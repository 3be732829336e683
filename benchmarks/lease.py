"""A run on a machine lent for minutes: sections are built side by side, a process each, then timed alone in turn.

A process builds and checks its cases, compiling and tuning as it goes, says that it is built, and waits for its turn.
Every row reaches the driver as it is measured, which saves it: what fails or is ended later costs no row. When the
time for building is over, what is not built stands still until its own turn.
"""

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from tsm_triton.progress import say

from .run import Build, Measure, Run, Section

STARTING = 15.0  # seconds of Python's start, and of the page


def drive(
    sections: dict[str, Section],
    planned: dict[str, float],
    run: Run,
    seconds: float,
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """The rows of the sections by their names, their `failures`, and what was `left_out` when the time was over.

    Args:
        sections: in the order in which they are timed.
        planned: seconds of timing that each is to have, whatever the others do.
        run: what each is given.
        seconds: for everything, Python's start and the page too; no section is begun or goes on beyond.
        save: gets the results after each message of a section.
    """
    results: dict[str, Any] = {"failures": [], "left_out": [], **{name: [] for name in sections}}
    deadline = time.monotonic() + seconds - STARTING
    cores = os.cpu_count() or 1
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, 4 * cores // max(4, len(sections)))))
    workers = [_Worker(name, section, run, results) for name, section in sections.items()]
    to_come = dict(planned)
    try:
        _build(workers, cores, deadline - sum(to_come.values()), lambda: save(results))
        # what is built need not wait for what is not
        for worker in sorted(workers, key=lambda worker: not worker.built):
            # one that hangs leaves the others the time that they were planned to take
            del to_come[worker.name]
            worker.take_turn(deadline - sum(to_come.values()), lambda: save(results))
    finally:
        for worker in workers:
            worker.end()
        save(results)
    return results


def _build(workers: "list[_Worker]", cores: int, until: float, save: Callable[[], None]) -> None:
    """Start the workers, one a core, until all are built or the time is over."""
    waiting, building = deque(workers), []
    while (waiting or building) and time.monotonic() < until:
        while waiting and len(building) < cores:
            building.append(waiting.popleft())
            building[-1].start()
        wait([worker.connection for worker in building], max(0.0, until - time.monotonic()))
        for worker in building:
            worker.listen()
        building = [worker for worker in building if not (worker.built or worker.ended)]
        save()
    for worker in building:
        say(f"{worker.name} is not built yet: it goes on when the others are done")
        worker.stop()


class _Worker:
    """A section's process, as the driver sees it."""

    connection: Connection

    def __init__(self, name: str, section: Section, run: Run, results: dict[str, Any]) -> None:
        self.name, self.results = name, results
        self.arguments = (name, section, run)
        self.process: Any = None
        self.built = self.ended = False
        self.cases: list[str] = []

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(*self.arguments, theirs))
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def listen(self) -> None:
        """Take what the process said so far."""
        while not self.ended and self.connection.poll():
            try:
                kind, value = self.connection.recv()
            except EOFError:
                self.process.join()
                self.ended = True
                self.fail(self.name, f"the process ended with exit code {self.process.exitcode}")
                return
            if kind == "built":
                self.built, self.cases = True, value
                say(f"{self.name} is built")
            elif kind == "row":
                self.results[self.name].append(value)
            elif kind == "measured":
                self.cases.remove(value)
            elif kind == "failures":
                for case, error in value:
                    self.fail(case, error)
            else:
                self.ended = True

    def fail(self, case: str, error: str) -> None:
        say(f"{self.name}, {case}: {error.splitlines()[0]}")
        self.results["failures"].append({"section": self.name, "case": case, "error": error})
        self.cases = [other for other in self.cases if other != case]

    def take_turn(self, until: float, save: Callable[[], None]) -> None:
        """Let the process time its cases, all others standing still."""
        if self.ended:
            return
        if time.monotonic() < until:
            say(f"Timing {self.name}")
            if self.process is None:
                self.start()
            self.go_on()
            with suppress(OSError):  # it died, which `listen` tells
                self.connection.send("go")
        while not self.ended and time.monotonic() < until:
            wait([self.connection], max(0.0, until - time.monotonic()))
            self.listen()
            save()
        if not self.ended:
            self.leave_out()

    def leave_out(self) -> None:
        """Note what it did not come to, and end it."""
        cases = self.cases if self.built else ["all of it: not built in time"]
        self.results["left_out"] += [{"section": self.name, "case": case} for case in cases]
        self.end()

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        self.ended = True
        if self.process is not None:
            self._signal(signal.SIGKILL)
            self.process.join()

    def _signal(self, number: int) -> None:
        """To the process and those that it started."""
        if self.process.is_alive():
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:  # so young that it leads no group
                os.kill(self.process.pid, number)


def work(name: str, section: Section, run: Run, driver: Connection) -> None:
    """A section's process: build, say so, wait for the turn, time."""
    os.setsid()  # with those that it starts, it is stopped and ended as a group
    measures: dict[str, Measure] = {}
    with suppress(EOFError, BrokenPipeError):  # the driver is gone, and nobody waits for rows
        run.settle()
        with run.attempt(name):
            cases: dict[str, Build] = section.cases(run)
            for case, build in cases.items():
                with run.attempt(case):
                    measures[case] = build()
        _tell(driver, run)
        run.settle()
        driver.send(("built", list(measures)))
        driver.recv()
        for case, measure in measures.items():
            with run.attempt(case):
                for row in measure():
                    driver.send(("row", row))
                driver.send(("measured", case))
            _tell(driver, run)
        driver.send(("done", None))


def _tell(driver: Connection, run: Run) -> None:
    driver.send(("failures", run.failures))
    run.failures = []
