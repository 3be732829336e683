"""The plain shift against a copy of the same tensor, and against the ways others write it."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from unittest import mock

import torch
from tqdm import tqdm

from tsm_triton import reference, temporal_shift
from tsm_triton.functional import fold_counts
from tsm_triton.ops.host_memory import empty_like

from .baselines import SHIFT_DIV, SHIFTS
from .forms import compiled_forms
from .timing import measure

Case = tuple[int, int, int, int, str, str]  # clips, their frames, channels, height and width, dtype, layout

# [C, H = W] of the inputs of every shifted convolution
RESNET50 = ((64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7))
MOBILENETV2 = ((24, 56), (32, 28), (64, 14), (96, 14), (160, 7))
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
# of performance.md: time of the eager CPU shift over clone(), tensors of 25 MB and more
CPU_GOALS = {("float32", "nchw"): 1.15, ("float32", "channels_last"): 1.3, ("bfloat16", "channels_last"): 1.8}
CPU_BYTES = 25e6
# glibc's bound between blocks that each call gets fresh from the system, their pages still to be touched, and blocks
# that it recycles. Left alone it moves it, up to 32 MB, and with it the time of a copy, tenfold.
CPU_MEMORY = {"fresh": "1048576", "recycled": "33554432"}


def run(device: str, quick: bool) -> list[dict[str, Any]]:
    """A row for each shape, layout and dtype, on a CPU in fresh and in recycled memory."""
    cases = list(_cases(device, quick))
    if device != "cpu":
        return measured(cases, device, quick)
    rows = []
    for memory, bound in CPU_MEMORY.items():
        environment = {"MALLOC_MMAP_THRESHOLD_": bound, "MALLOC_TRIM_THRESHOLD_": str(2**30)}
        # glibc reads them when a process starts
        with (
            mock.patch.dict(os.environ, environment),
            ProcessPoolExecutor(1, get_context("spawn")) as process,
        ):
            for row in process.submit(measured, cases, device, quick).result():
                goal = CPU_GOALS[row["dtype"], row["layout"]] if memory == "fresh" else None
                rows.append({**row, "memory": memory, "goal": goal})
    return rows


def measured(cases: list[Case], device: str, quick: bool) -> list[dict[str, Any]]:
    """A row a case; times in seconds, ratios to the copy."""
    rows = []
    for case in tqdm(cases, desc="shift", disable=None):
        num_clips, num_segments, channels, size, dtype, layout = case
        shape = (num_clips * num_segments, channels, size, size)
        inputs = [
            torch.randn(shape, device=device).to(getattr(torch, dtype)).to(memory_format=LAYOUTS[layout])
            for _ in range(_rotation(shape, device))
        ]
        calls = {"copy": torch.clone, "ours": lambda x, t=num_segments: temporal_shift(x, t)}
        if device == "cpu":
            calls["copy, our pages"] = lambda x: empty_like(x).copy_(x)
        else:
            calls["copy"] = torch.empty_like(inputs[0]).copy_
        for name, baseline in SHIFTS.items():
            calls[name] = lambda x, f=baseline, t=num_segments: f(x, t, SHIFT_DIV)
        expected = reference.temporal_shift(
            inputs[0], num_segments, *fold_counts(channels, SHIFT_DIV, "bidirectional")
        )
        if device != "cpu":
            torch.compiler.reset()  # a graph a shape, not one for all
            for name in SHIFTS:
                calls.update(compiled_forms(name, calls[name]))
        for name, call in calls.items():
            if "copy" not in name and not torch.equal(call(inputs[0]), expected):
                raise RuntimeError(f"{name} of {shape} {dtype} {layout} is wrong: no time is reported")
        timings = measure(calls, inputs, repeats=21 if quick else 51)
        row = {
            "shape": shape,
            "num_segments": num_segments,
            "dtype": dtype,
            "layout": layout,
            "megabytes": inputs[0].nbytes / 1e6,
            "seconds": {name: timing.median for name, timing in timings.items()},
            "spread": {name: timing.spread for name, timing in timings.items()},
            "over_copy": {name: timing.median / timings["copy"].median for name, timing in timings.items()},
        }
        rows.append(row)
    return rows


def _cases(device: str, quick: bool) -> Iterator[Case]:
    if device == "cpu":
        for dtype, layout in CPU_GOALS:
            for channels, size in RESNET50 if quick else (*RESNET50, *MOBILENETV2):
                clip_bytes = 8 * channels * size * size * (4 if dtype == "float32" else 2)
                yield int(CPU_BYTES // clip_bytes) + 1, 8, channels, size, dtype, layout
        return
    for num_clips in (32,) if quick else (1, 8, 32):
        for num_segments in (8,) if quick else (8, 16):
            for channels, size in (*RESNET50, *MOBILENETV2):
                for dtype, layout in (("bfloat16", "channels_last"), ("float16", "nchw")):
                    yield num_clips, num_segments, channels, size, dtype, layout
    for channels, size in ((24, 56), (96, 14), (160, 7)):  # folds of 3, 12 and 20 channels, 49 pixels
        yield 8, 8, channels, size, "float32", "nchw"
    yield 64, 8, 256, 56, "bfloat16", "channels_last"  # 822 MB


def _rotation(shape: tuple[int, ...], device: str) -> int:
    """How many inputs go round: 200 MB on a GPU, four times an H200's L2; two on a CPU."""
    elements = torch.Size(shape).numel()
    return 2 if device == "cpu" else max(2, min(64, int(200e6 // (2 * elements)) + 1))
