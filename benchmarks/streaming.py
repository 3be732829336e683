"""Latency of one frame of one stream beside the same network without the shift, host overhead included.

Forms: `Streaming` and the plain model, eager; `StreamStep` and the plain model compiled by Inductor; each of the two
captured in a CUDA graph, where there is CUDA. A compiled step copies its new state over the old one, as a captured
one must.
"""

import copy
import time
from typing import Any

import timm
import torch
from torch import Tensor, nn
from tqdm import tqdm

from tsm_triton import Streaming, patch
from tsm_triton.streaming.step import StreamStep
from tsm_triton.torch_private import foreach_copy_, foreach_zero_

from .baselines import with_open_branches
from .forms import Call, Captured
from .gate import require_close
from .timing import summary

MODELS = ("mobilenetv2_100", "resnet50")
SIZE = 224
NUM_FRAMES = 4
# streamed against offline, relative to the largest logit
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


def run(device: str, quick: bool) -> list[dict[str, Any]]:
    """A row for each model and form; seconds from the call to the finished result."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    rows = []
    for name in tqdm(MODELS[:1] if quick else MODELS, desc="streaming", disable=None):
        model = timm.create_model(name).eval().to(device, dtype).to(memory_format=torch.channels_last)
        with_open_branches(model)
        about = {"model": name, "dtype": str(dtype).removeprefix("torch.")}
        with torch.inference_mode():
            rows.extend({**about, **row} for row in _rows(model, 21 if quick else 101))
    return rows


def _rows(model: nn.Module, repeats: int) -> list[dict[str, Any]]:
    parameter = next(model.parameters())
    shape = (NUM_FRAMES, 1, 3, SIZE, SIZE)
    frames = torch.randn(shape, device=parameter.device, dtype=parameter.dtype).unbind()
    frames = [frame.contiguous(memory_format=torch.channels_last) for frame in frames]
    shifted = patch(copy.deepcopy(model), NUM_FRAMES, direction="causal")
    expected = shifted(torch.cat(frames))

    rows = []
    for form, (unshifted, stream) in _forms(model, shifted, frames[0]).items():
        _check(form, stream, frames, expected)
        seconds: dict[str, list[float]] = {"unshifted": [], "stream": []}
        for repeat in range(repeats + 5):
            for key, call in (("unshifted", unshifted), ("stream", stream)):
                taken = _latency(call, frames[repeat % NUM_FRAMES])
                if repeat >= 5:
                    seconds[key].append(taken)
        stream_timing, unshifted_timing = summary(seconds["stream"]), summary(seconds["unshifted"])
        rows.append(
            {
                "form": form,
                "stream_seconds": stream_timing.median,
                "spread": stream_timing.spread,
                "unshifted_seconds": unshifted_timing.median,
                "over_unshifted": stream_timing.median / unshifted_timing.median,
            }
        )
    return rows


def _forms(model: nn.Module, shifted: nn.Module, frame: Tensor) -> dict[str, tuple[Call, Any]]:
    """Each way to run a frame: the unshifted network, and the stream."""
    forms: dict[str, tuple[Call, Any]] = {
        "eager": (model, Streaming(shifted)),
        "compiled": (torch.compile(model), _CompiledStream(shifted, frame)),
    }
    if frame.is_cuda:
        for name, (unshifted, stream) in list(forms.items()):
            forms[f"{name}, CUDA graph"] = Captured(unshifted, frame), _CapturedStream(stream, frame)
    return forms


class _CompiledStream:
    """The functional step, compiled, over a state at fixed addresses."""

    def __init__(self, model: nn.Module, frame: Tensor) -> None:
        step = StreamStep(model)
        self.state = step.init_state(frame)
        self.step = torch.compile(step, fullgraph=True)

    def __call__(self, frame: Tensor) -> Tensor:
        logits, state = self.step(frame, self.state)
        foreach_copy_(self.state, state)
        return logits

    def reset(self) -> None:
        foreach_zero_(self.state)


class _CapturedStream(Captured):
    """A stream as a CUDA graph: one state for all frames."""

    def reset(self) -> None:
        self.call.reset()  # pyright: ignore[reportFunctionMemberAccess]


def _check(form: str, stream: Any, frames: list[Tensor], expected: Tensor) -> None:
    stream.reset()
    logits = torch.cat([stream(frame).clone() for frame in frames])
    require_close(f"a stream ({form})", logits, expected, TOLERANCE[expected.dtype])


def _latency(call: Call, frame: Tensor) -> float:
    if frame.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    call(frame)
    if frame.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started
