"""Host time of one eager call on a tiny tensor: what a launch-bound model pays at each site."""

import statistics
import time
from typing import Any

import torch

from tsm_triton import ops, temporal_shift

from .baselines import slicing

SHAPE = (8, 8, 2, 2)
CALLS = 200


def run(device: str, quick: bool) -> list[dict[str, Any]]:
    """A row for each way to call the shift; microseconds, the median of many runs of 200 calls."""
    x = torch.randn(SHAPE, device=device)
    tracked = x.clone().requires_grad_()
    calls = {
        "functional, no grad": lambda: temporal_shift(x, 4),
        "functional, grad": lambda: temporal_shift(tracked, 4),
        "op, no grad": lambda: ops.temporal_shift(x, 4, 1, 1, False, 1),
        "implementation alone": lambda: ops.shift_by_copies(x, 4, 1, 1, False, 1),
        "the authors' slicing, no grad": lambda: slicing(x, 4, 8),
        "the authors' slicing, grad": lambda: slicing(tracked, 4, 8),
    }
    rows = []
    for name, call in calls.items():
        for _ in range(CALLS):
            call()
        runs = []
        for _ in range(11 if quick else 31):
            started = time.perf_counter()
            for _ in range(CALLS):
                call()
            runs.append((time.perf_counter() - started) / CALLS)
        rows.append({"call": name, "microseconds": 1e6 * statistics.median(runs)})
    return rows
