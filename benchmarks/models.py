"""Whole models in inference: the patched one, its fused copy, and the network without a shift."""

import copy
from typing import Any

import timm
import torch
from torch import channels_last
from tqdm import tqdm

import tsm_triton

from .timing import measure

MODELS = ("resnet50", "mobilenetv2_100")
NUM_SEGMENTS = 8
# of the largest logit; the weights are random
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def run(device: str, quick: bool) -> list[dict[str, Any]]:
    """A row for each model; times in seconds, ratios to the network without a shift, all eager."""
    size, num_clips, dtype = (96, 1, "float32") if device == "cpu" else (224, 32, "bfloat16")
    rows = []
    for name in tqdm(MODELS[:1] if quick and device == "cpu" else MODELS, desc="models", disable=None):
        model = timm.create_model(name).eval().to(device, getattr(torch, dtype))
        model = model.to(memory_format=channels_last)
        shape = (num_clips * NUM_SEGMENTS, 3, size, size)
        inputs = [
            torch.randn(shape, device=device)
            .to(getattr(torch, dtype))
            .contiguous(memory_format=channels_last)
            for _ in range(2)
        ]
        patched = tsm_triton.patch(copy.deepcopy(model), NUM_SEGMENTS)
        fused = tsm_triton.fuse(patched, example_input=inputs[0])
        with torch.no_grad():
            expected, got = patched(inputs[0]), fused(inputs[0])
            error = ((got - expected).abs().max() / expected.abs().max()).item()
            if error > TOLERANCE[dtype]:
                raise RuntimeError(f"fused {name} is wrong by {error:.1e}: no time is reported")
            calls = {"unshifted": model, "patched": patched, "fused": fused}
            timings = measure(calls, inputs, repeats=7 if quick else 31)
        rows.append(
            {
                "model": name,
                "shape": shape,
                "dtype": dtype,
                "fused_places": len(fused.report.fused),
                "seconds": {call: timing.median for call, timing in timings.items()},
                "spread": {call: timing.spread for call, timing in timings.items()},
                "over_unshifted": {
                    call: timing.median / timings["unshifted"].median for call, timing in timings.items()
                },
            }
        )
    return rows
