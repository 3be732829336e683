"""ResNet-50 without a shift as Inductor tunes it, beside the fused copy: the strongest opponent."""

import copy
from functools import partial

import timm
import torch
from torch import channels_last

import tsm_triton

from . import models
from .baselines import NUM_SEGMENTS, with_open_branches
from .run import Build, Measure, Row, Run

MODEL = "resnet50"
TUNED = "unshifted, max-autotune"


def cases(run: Run) -> dict[str, Build]:
    return {MODEL: partial(build, run, MODEL, 32, 224, torch.bfloat16)} if run.on_gpu else {}


def build(run: Run, name: str, num_clips: int, size: int, dtype: torch.dtype) -> Measure:
    """Tuning is measuring too, so it waits for the turn."""
    shape = (num_clips * NUM_SEGMENTS, 3, size, size)

    @torch.no_grad()
    def rows() -> list[Row]:
        inputs = [
            torch.randn(shape, device=run.device, dtype=dtype).contiguous(memory_format=channels_last)
            for _ in range(2)
        ]
        model = timm.create_model(name).eval().to(run.device, dtype).to(memory_format=channels_last)
        patched = tsm_triton.patch(copy.deepcopy(with_open_branches(model)), NUM_SEGMENTS)
        fused = tsm_triton.fuse(patched, example_input=inputs[0])
        models.check(f"fused {name}", fused(inputs[0]), patched(inputs[0]))
        calls = {
            "unshifted": model,
            TUNED: torch.compile(model, mode="max-autotune-no-cudagraphs", dynamic=False),
            "fused, compiled": torch.compile(fused, dynamic=False),
        }
        about = {"model": name, "shape": shape, "dtype": str(dtype).removeprefix("torch.")}
        return [{**about, "layout": "channels_last", **row} for row in models.rows(calls, inputs, 21)]

    return rows


lines = models.lines
