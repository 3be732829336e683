"""Medians of rotating inputs, so that no run finds its data in a cache the next layer would not."""

import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Call = Callable[[Tensor], Any]
# what a CUDA graph holds of one call at least: its launch, a few microseconds, is not the call's
CALLS_IN_A_GRAPH = 4


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, and how far the middle half of the calls spreads, relative to it."""

    median: float
    spread: float


def measure(calls: dict[str, Call], inputs: Sequence[Tensor], repeats: int) -> dict[str, Timing]:
    """Time each call `repeats` times, in turns; on a GPU out of CUDA graphs, without the host's time."""
    if not inputs[0].is_cuda:
        return in_turns(calls, inputs, repeats)
    for call in calls.values():
        for x in inputs:
            call(x)
    return _shuffled({name: _Replayed(call, inputs).seconds for name, call in calls.items()}, repeats)


def in_turns(calls: dict[str, Call], inputs: Sequence[Tensor], repeats: int) -> dict[str, Timing]:
    """Time each call `repeats` times from Python until it is done, in turns and each call on the next input."""
    turns = itertools.cycle(inputs)
    for call in calls.values():
        for x in inputs:
            call(x)
    return _shuffled(
        {name: lambda call=call: _latency(call, next(turns)) for name, call in calls.items()}, repeats
    )


def _shuffled(timed: dict[str, Callable[[], float]], repeats: int) -> dict[str, Timing]:
    """Each of what takes a time and tells it, `repeats` times, in turns of a new order.

    Taking turns puts a drift of the clocks, or of a busy machine, on all alike; in an order that stays, the same call
    would always meet the memory that the same other one just freed (on a CPU 0.05 of a clone).
    """
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, take in order.sample(list(timed.items()), len(timed)):
            seconds[name].append(take())
    return {name: summary(values) for name, values in seconds.items()}


def wall(call: Call, inputs: Sequence[Tensor], repeats: int, calls: int = 10) -> Timing:
    """Seconds of a call from Python, one after another: what a user waits for, launches and all."""
    turns = itertools.cycle(inputs)
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        for x in itertools.islice(turns, calls):
            call(x)
        _finish(inputs[0])
        seconds.append((time.perf_counter() - started) / calls)
    return summary(seconds[1:])


def summary(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median, (high - low) / median)


class _Replayed:
    """Calls on every input in turn as one CUDA graph."""

    def __init__(self, call: Call, inputs: Sequence[Tensor]) -> None:
        self.calls = len(inputs) * -(-CALLS_IN_A_GRAPH // len(inputs))
        self.graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call(inputs[0])
        side.synchronize()
        with torch.cuda.graph(self.graph):
            for x in itertools.islice(itertools.cycle(inputs), self.calls):
                call(x)
        self.graph.replay()

    def seconds(self) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / self.calls


def _latency(call: Call, x: Tensor) -> float:
    started = time.perf_counter()
    call(x)
    _finish(x)
    return time.perf_counter() - started


def _finish(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()
