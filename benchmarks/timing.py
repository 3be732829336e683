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

from tsm_triton.torch_private import keep_gpu_busy


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, and how far the middle half of the calls spreads, relative to it."""

    median: float
    spread: float


def measure(
    calls: dict[str, Callable[[Tensor], Any]], inputs: Sequence[Tensor], repeats: int
) -> dict[str, Timing]:
    """Time each call `repeats` times, in turns of a new order and each call on the next input.

    Taking turns puts a drift of the clocks, or of a busy machine, on all calls alike; in an order that stays, the
    same call would always meet the memory that the same other one just freed (on a CPU 0.05 of a clone).
    """
    order, turns = random.Random(0), itertools.cycle(inputs)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for x in inputs:
            call(x)
    for _ in range(repeats):
        for name, call in order.sample(list(calls.items()), len(calls)):
            x = next(turns)
            seconds[name].append(_cuda_seconds(call, x) if x.is_cuda else _cpu_seconds(call, x))
    return {name: summary(values) for name, values in seconds.items()}


def summary(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median, (high - low) / median)


def _cpu_seconds(call: Callable[[Tensor], Any], x: Tensor) -> float:
    started = time.perf_counter()
    call(x)
    return time.perf_counter() - started


def _cuda_seconds(call: Callable[[Tensor], Any], x: Tensor) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    # The queue is kept busy while the host launches, so that launch gaps do not count.
    keep_gpu_busy(200_000)
    start.record()
    call(x)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
