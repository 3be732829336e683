"""The ways to run one call on a GPU: eager, compiled, max-autotuned, each with and without a CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Call = Callable[[Tensor], Any]
MODES = {"compiled": "default", "max-autotune": "max-autotune-no-cudagraphs"}


def compiled_forms(name: str, call: Call) -> dict[str, Call]:
    """`call` as it stands, under Inductor, and tuned by it; each is built by its first call."""
    built = {
        f"{name}, {label}": torch.compile(call, mode=mode, dynamic=False) for label, mode in MODES.items()
    }
    return {name: call, **built}


def captured_forms(calls: dict[str, Call], x: Tensor) -> dict[str, Call]:
    """Every call, and again as a CUDA graph for inputs like `x`.

    A graph's input is copied in, so this suits networks, whose input is small, and not single kernels.
    """
    return {**calls, **{f"{name}, CUDA graph": Captured(call, x) for name, call in calls.items()}}


class Captured:
    """A call as a CUDA graph; it copies the input in, replays, and gives the output's own memory."""

    def __init__(self, call: Call, x: Tensor) -> None:
        self.call, self.x = call, x.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call(self.x)
        side.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = call(self.x)

    def __call__(self, x: Tensor) -> Any:
        self.x.copy_(x)
        self.graph.replay()
        return self.output
