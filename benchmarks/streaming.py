"""One frame of one stream beside the same network without the shift, each form its row.

Forms: `Streaming` and the plain model, eager; a `StreamStep` and the plain model compiled by Inductor; a `FusedStep`,
eager and compiled. A step copies its new state over the old one, as a captured one must.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tsm_triton import Streaming, patch
from tsm_triton.streaming.fused_step import FusedStep
from tsm_triton.streaming.step import StreamStep
from tsm_triton.torch_private import foreach_copy_, foreach_zero_

from .baselines import with_open_branches
from .gate import require_close
from .page import percent, table
from .run import Build, Measure, Row, Run
from .timing import Call, in_turns, measure

MODELS = ("resnet50", "mobilenetv2_100")
NUM_FRAMES = 4
COMPILED = "unshifted, compiled"
# streamed against offline, relative to the largest logit
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


def cases(run: Run) -> dict[str, Build]:
    names = MODELS[:1] if run.quick else MODELS
    dtype = torch.bfloat16 if run.on_gpu else torch.float32
    return {name: partial(build, run, name, 224, dtype) for name in names}


@torch.inference_mode()
def build(run: Run, name: str, size: int, dtype: torch.dtype) -> Measure:
    """Every form, what streams compared with the offline model."""
    model = timm.create_model(name).eval().to(run.device, dtype).to(memory_format=torch.channels_last)
    shape = (NUM_FRAMES, 1, 3, size, size)
    frames = [
        frame.contiguous(memory_format=torch.channels_last)
        for frame in torch.randn(shape, device=run.device, dtype=dtype).unbind()
    ]
    shifted = patch(copy.deepcopy(with_open_branches(model)), NUM_FRAMES, direction="causal")
    expected = shifted(torch.cat(frames))
    calls: dict[str, Call] = {}
    for form, make in forms(model, shifted, frames[0]).items():
        if run.quick and not run.on_gpu and "compiled" in form:
            continue
        with run.attempt(f"{name}, {form}"):
            call = make()
            check(form, call, frames, expected)
            calls[form] = call
    about = {"model": name, "dtype": str(dtype).removeprefix("torch.")}
    return lambda: [{**about, **row} for row in rows(calls, frames, 21 if run.quick else 51)]


def forms(model: nn.Module, shifted: nn.Module, frame: Tensor) -> dict[str, Callable[[], Any]]:
    """What makes each form."""
    return {
        "unshifted": lambda: model,
        COMPILED: lambda: torch.compile(model, dynamic=False),
        "stream": lambda: Streaming(shifted),
        "step, compiled": lambda: Stepping(StreamStep(shifted), frame, compiled=True),
        "fused step": lambda: Stepping(FusedStep(shifted), frame),
        "fused step, compiled": lambda: Stepping(FusedStep(shifted), frame, compiled=True),
    }


class Stepping:
    """A functional step over a state at fixed addresses."""

    def __init__(self, step: StreamStep, frame: Tensor, compiled: bool = False) -> None:
        self.state = list(step.init_state(frame))
        self.step: Any = torch.compile(step, dynamic=False) if compiled else step

    def __call__(self, frame: Tensor) -> Tensor:
        logits, state = self.step(frame, self.state)
        foreach_copy_(self.state, list(state))
        return logits

    def reset(self) -> None:
        foreach_zero_(self.state)


def check(form: str, call: Any, frames: list[Tensor], expected: Tensor) -> None:
    """What streams gives the offline model's logits."""
    if form.startswith("unshifted"):
        call(frames[0])
        return
    call.reset()
    logits = torch.cat([call(frame).clone() for frame in frames])
    require_close(f"a stream ({form})", logits, expected, TOLERANCE[expected.dtype])


@torch.inference_mode()
def rows(calls: dict[str, Call], frames: list[Tensor], repeats: int) -> list[Row]:
    """Seconds from the call to the finished result; on a GPU also out of a CUDA graph."""
    walls = in_turns(calls, frames, repeats)
    graphs = measure(calls, frames, repeats) if frames[0].is_cuda else walls
    return [
        {
            "form": form,
            "seconds": graphs[form].median,
            "spread": graphs[form].spread,
            "over_unshifted": graphs[form].median / graphs["unshifted"].median,
            "wall_seconds": walls[form].median,
        }
        for form in calls
    ]


def lines(rows: list[Row]) -> list[str]:
    head = ["model", "dtype", "form", "ms", "spread", "/ unshifted, eager", "from Python ms"]
    return [
        "From the call to the finished result; on a GPU `ms` is out of a CUDA graph.",
        "",
        *table(
            head,
            [
                [
                    row["model"],
                    row["dtype"],
                    row["form"],
                    f"{1e3 * row['seconds']:.3f}",
                    percent(row["spread"]),
                    f"{row['over_unshifted']:.3f}",
                    f"{1e3 * row['wall_seconds']:.3f}",
                ]
                for row in rows
            ],
        ),
    ]
