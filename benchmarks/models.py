"""Whole models in inference: the patched one, its fused copy, and the network without a shift."""

import copy
from typing import Any

import timm
import torch
from torch import Tensor, channels_last
from tqdm import tqdm

import tsm_triton

from .baselines import NUM_SEGMENTS, SHIFT_DIV, SHIFTS, shifted_network, with_open_branches
from .forms import captured_forms, compiled_forms
from .gate import require_close
from .timing import measure

MODELS = ("resnet50", "mobilenetv2_100")
# of the largest logit; the weights are random
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def run(device: str, quick: bool) -> list[dict[str, Any]]:
    """A row for each model; seconds, and ratios to the eager network without a shift; on a GPU compiled too."""
    size, num_clips, dtype = (96, 1, torch.float32) if device == "cpu" else (224, 32, torch.bfloat16)
    rows = []
    for name in tqdm(MODELS[:1] if quick and device == "cpu" else MODELS, desc="models", disable=None):
        model = timm.create_model(name).eval().to(device, dtype)
        model = with_open_branches(model.to(memory_format=channels_last))
        shape = (num_clips * NUM_SEGMENTS, 3, size, size)
        inputs = [
            torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=channels_last)
            for _ in range(2)
        ]
        patched = tsm_triton.patch(copy.deepcopy(model), NUM_SEGMENTS)
        fused = tsm_triton.fuse(patched, example_input=inputs[0])
        authors = shifted_network(model, SHIFTS["slicing"], NUM_SEGMENTS, SHIFT_DIV)
        calls = {"unshifted": model, "slicing": authors, "patched": patched, "fused": fused}
        with torch.no_grad():
            if device != "cpu":
                calls = gpu_calls(calls, inputs[0])
            _check(name, calls, patched(inputs[0]), inputs[0])
            timings = measure(calls, inputs, repeats=7 if quick else 31)
        rows.append(
            {
                "model": name,
                "shape": shape,
                "dtype": str(dtype).removeprefix("torch."),
                "fused_places": len(fused.report.fused),
                "seconds": {call: timing.median for call, timing in timings.items()},
                "spread": {call: timing.spread for call, timing in timings.items()},
                "over_unshifted": {
                    call: timing.median / timings["unshifted"].median for call, timing in timings.items()
                },
            }
        )
    return rows


def gpu_calls(calls: dict[str, Any], x: Tensor) -> dict[str, Any]:
    """Each network eager, compiled and max-autotuned, the patched one also by our backend; then all as graphs."""
    torch.compiler.reset()
    built = {}
    for name, call in calls.items():
        built.update(compiled_forms(name, call))
    built["patched, tsm_triton backend"] = torch.compile(calls["patched"], backend="tsm_triton")
    return captured_forms(built, x)


def _check(name: str, calls: dict[str, Any], expected: Tensor, x: Tensor) -> None:
    for form, call in calls.items():
        if not form.startswith("unshifted"):
            require_close(f"{form} {name}", call(x), expected, TOLERANCE[x.dtype])
