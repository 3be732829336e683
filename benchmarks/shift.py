"""The plain shift against a copy of the same tensor and the ways others write it; on a GPU `residual_shift` too."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from tsm_triton import reference, temporal_shift
from tsm_triton.functional import fold_counts, residual_shift
from tsm_triton.ops.host_memory import empty_like

from .baselines import SHIFT_DIV, SHIFTS
from .gate import require_close
from .page import percent, table
from .run import Build, Measure, Row, Run
from .timing import Call, measure


class Case(NamedTuple):
    clips: int
    num_segments: int
    channels: int
    size: int
    dtype: str
    layout: str
    # whether the others' ways are compiled as well, and the residual sum is joined
    whole: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.clips * self.num_segments, self.channels, self.size, self.size


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
# residual_shift computes; the shift moves, and is compared bit for bit
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}


def cases(run: Run) -> dict[str, Build]:
    """A case a shape, on a CPU a process of its own for fresh and for recycled memory."""
    if not run.on_gpu:
        return {f"{memory} memory": partial(_on_cpu, run, memory) for memory in CPU_MEMORY}
    return {
        f"{'x'.join(map(str, case.shape))} {case.dtype} {case.layout}, T={case.num_segments}": partial(
            build, run, case
        )
        for case in _gpu_cases(run.quick)
    }


def build(run: Run, case: Case) -> Measure:
    calls, inputs = prepared(run, case)
    for call in calls.values():
        call(inputs[0])
    del inputs  # held by each case, they would not all fit
    return lambda: [row(run, case)]


def row(run: Run, case: Case) -> Row:
    calls, inputs = prepared(run, case)
    timings = measure(calls, inputs, repeats=7 if run.quick else 15)
    copy = timings["copy"].median
    return {
        "shape": case.shape,
        "num_segments": case.num_segments,
        "dtype": case.dtype,
        "layout": case.layout,
        "megabytes": inputs[0].nbytes / 1e6,
        "seconds": {name: timing.median for name, timing in timings.items()},
        "spread": timings["ours"].spread,
        # `residual_shift` has two reads and two writes, where a copy has one of each
        "over_copy": {
            name: timing.median / copy / (1 + (name == "residual_shift")) for name, timing in timings.items()
        },
    }


def prepared(run: Run, case: Case) -> tuple[dict[str, Call], list[Tensor]]:
    """The calls, all right, and inputs that go round."""
    segments = case.num_segments
    inputs = [
        torch.randn(case.shape, device=run.device)
        .to(getattr(torch, case.dtype))
        .contiguous(memory_format=LAYOUTS[case.layout])
        for _ in range(_rotation(case.shape, run))
    ]
    x = inputs[0]
    calls: dict[str, Call] = {
        "copy": torch.empty_like(x).copy_ if run.on_gpu else torch.clone,
        "ours": lambda x: temporal_shift(x, segments),
    }
    if not run.on_gpu:
        calls["copy, our pages"] = lambda x: empty_like(x).copy_(x)
    for name, other in SHIFTS.items():
        calls[name] = lambda x, f=other: f(x, segments, SHIFT_DIV)
        if case.whole:
            calls[f"{name}, compiled"] = run.compiled(calls[name])
    counts = fold_counts(case.channels, SHIFT_DIV, "bidirectional")
    expected = reference.temporal_shift(x, segments, *counts)
    for name, call in calls.items():
        if "copy" not in name and not torch.equal(call(x), expected):
            raise RuntimeError(f"{name} of {tuple(case)} is wrong: no time is reported")
    if case.whole:
        calls["residual_shift"] = _residual(case, inputs)
    return calls, inputs


def _residual(case: Case, inputs: list[Tensor]) -> Call:
    """`residual_shift` with a batch-norm's scale and bias, right."""
    identity, x = inputs[-1], inputs[0]
    scale, bias = torch.randn(2, case.channels, device=x.device)

    def residual(x: Tensor) -> tuple[Tensor, Tensor]:
        return residual_shift(x, identity, case.num_segments, scale=scale, bias=bias, shift_div=SHIFT_DIV)

    y = torch.relu(x.float() * scale.view(-1, 1, 1) + bias.view(-1, 1, 1) + identity.float())
    counts = fold_counts(case.channels, SHIFT_DIV, "bidirectional")
    shifted = reference.temporal_shift(y, case.num_segments, *counts)
    for what, got, expected in zip(("y", "shift"), residual(x), (y, shifted), strict=True):
        require_close(f"residual_shift's {what} of {case.shape}", got, expected, TOLERANCE[case.dtype])
    return residual


def _on_cpu(run: Run, memory: str) -> Measure:
    cases = list(_cpu_cases(run.quick))
    environment = {"MALLOC_MMAP_THRESHOLD_": CPU_MEMORY[memory], "MALLOC_TRIM_THRESHOLD_": str(2**30)}

    def rows() -> Iterator[Row]:
        # glibc reads them when a process starts
        with (
            mock.patch.dict(os.environ, environment),
            ProcessPoolExecutor(1, get_context("spawn")) as process,
        ):
            for case in cases:
                with run.attempt(f"{memory} memory, {tuple(case)}"):
                    goal = CPU_GOALS[case.dtype, case.layout] if memory == "fresh" else None
                    one = process.submit(row, Run(run.device, run.quick), case).result()
                    yield {**one, "memory": memory, "goal": goal}

    return rows


def _cpu_cases(quick: bool) -> Iterator[Case]:
    for dtype, layout in CPU_GOALS:
        for channels, size in RESNET50 if quick else (*RESNET50, *MOBILENETV2):
            clip_bytes = 8 * channels * size * size * (4 if dtype == "float32" else 2)
            yield Case(int(CPU_BYTES // clip_bytes) + 1, 8, channels, size, dtype, layout)


def _gpu_cases(quick: bool) -> Iterator[Case]:
    for channels, size in RESNET50:
        yield Case(32, 8, channels, size, "bfloat16", "channels_last", whole=True)
    yield Case(64, 8, 256, 56, "bfloat16", "channels_last")  # 822 MB
    if quick:
        return
    for channels, size in MOBILENETV2:
        yield Case(32, 8, channels, size, "bfloat16", "channels_last")
    for channels, size in RESNET50:
        yield Case(16, 16, channels, size, "float16", "nchw")
    for channels, size in ((24, 56), (96, 14), (160, 7)):  # folds of 3, 12 and 20 channels, 49 pixels
        yield Case(8, 8, channels, size, "float32", "nchw")


def _rotation(shape: tuple[int, ...], run: Run) -> int:
    """How many inputs go round: 200 MB on a GPU, four times an H200's L2; two on a CPU."""
    return max(2, min(64, int(200e6 // (2 * torch.Size(shape).numel())) + 1)) if run.on_gpu else 2


def lines(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row["over_copy"] if name != "copy"))
    text = "Time over that of a copy of the same tensor (`spread`: width of the middle half of ours)."
    if "memory" in rows[0]:
        text += (
            " Ours is asked for in huge pages, as in `copy, our pages`. `fresh`: each call gets memory that it must "
            "touch first, as glibc gives above 32 MB; `recycled`: what the call before freed. Goals are for `fresh`."
        )
    else:
        text += " `residual_shift` over two copies."
    head = ["shape", "T", "dtype", "layout", "MB", "memory", *names, "spread"]
    return [
        text,
        "",
        *table(
            head,
            [
                [
                    "x".join(map(str, row["shape"])),
                    str(row["num_segments"]),
                    row["dtype"],
                    row["layout"],
                    f"{row['megabytes']:.0f}",
                    row.get("memory", ""),
                    *(f"{row['over_copy'][name]:.2f}" if name in row["over_copy"] else "" for name in names),
                    percent(row["spread"]),
                ]
                for row in rows
            ],
        ),
    ]
