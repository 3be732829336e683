"""A training step on a GPU: the authors' shift, ours and no shift at all; time and memory, each form its row."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, channels_last, nn
from torch.profiler import ProfilerActivity, profile

import tsm_triton

from .baselines import NUM_SEGMENTS, SHIFT_DIV, SHIFTS, shifted_network, with_open_branches
from .gate import require_close
from .page import percent, table
from .run import Build, Measure, Row, Run
from .timing import Call, in_turns

MODEL = "resnet50"
COMPILED = "unshifted, compiled"
BACKEND = "patched, tsm_triton backend"
# gradients of the first convolution, of their largest, against the authors' shift
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}


def cases(run: Run) -> dict[str, Build]:
    """ResNet-50; none on a CPU."""
    return (
        {MODEL: partial(build, run, MODEL, 4 if run.quick else 16, 224, torch.bfloat16)} if run.on_gpu else {}
    )


def build(run: Run, name: str, num_clips: int, size: int, dtype: torch.dtype) -> Measure:
    """Every form built by a step, the patched model's gradient compared with the authors'."""
    model = timm.create_model(name, num_classes=10).train().to(run.device, dtype)
    model = with_open_branches(model.to(memory_format=channels_last))
    networks = {
        "unshifted": model,
        "slicing": shifted_network(model, SHIFTS["slicing"], NUM_SEGMENTS, SHIFT_DIV),
        "patched": tsm_triton.patch(copy.deepcopy(model), NUM_SEGMENTS),
    }
    x = torch.randn(num_clips * NUM_SEGMENTS, 3, size, size, device=run.device, dtype=dtype)
    x = x.contiguous(memory_format=channels_last)
    expected = _first_gradient(networks["slicing"], x)
    made: dict[str, Callable[[], Any]] = {form: lambda form=form: networks[form] for form in networks}
    if run.on_gpu:
        made[COMPILED] = lambda: torch.compile(model, dynamic=False)
        made[BACKEND] = lambda: torch.compile(networks["patched"], backend="tsm_triton", dynamic=False)
    calls: dict[str, Any] = {}
    for form, make in made.items():
        with run.attempt(f"{name}, {form}"):
            calls[form] = make()
            gradient = _first_gradient(calls[form], x)
            if form.startswith("patched"):
                try:
                    require_close(f"the gradient of {form} {name}", gradient, expected, TOLERANCE[dtype])
                except RuntimeError:
                    del calls[form]
                    raise
    about = {"model": name, "shape": tuple(x.shape), "dtype": str(dtype).removeprefix("torch.")}
    return lambda: [{**about, **row} for row in rows(calls, x, 5 if run.quick else 11)]


def rows(calls: dict[str, Any], x: Tensor, repeats: int) -> list[Row]:
    """Seconds of forward and backward from Python; bytes kept in between; on a GPU its kernels and most bytes."""
    steps = {form: lambda x, network=network: _step(network, x) for form, network in calls.items()}
    timings = in_turns(steps, [x], repeats)
    return [
        {
            "form": form,
            "seconds": timing.median,
            "spread": timing.spread,
            "over_unshifted": timing.median / timings["unshifted"].median,
            "kernel_seconds": kernel_seconds(steps[form], x) if x.is_cuda else None,
            "kept_bytes": kept_bytes(calls[form], x),
            "peak_bytes": _peak(steps[form], x),
        }
        for form, timing in timings.items()
    ]


def kept_bytes(network: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """What a forward allocates and does not free while its output lives: what it keeps for the backward."""
    # recorded, and not asked for before and behind: a CPU's allocator keeps no count
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        out = network(x)
    events = profiler.key_averages()
    kept = sum(e.self_device_memory_usage if x.is_cuda else e.self_cpu_memory_usage for e in events)
    del out
    return kept


def _step(network: Any, x: Tensor) -> None:
    network.zero_grad(set_to_none=True)
    network(x).float().square().mean().backward()


def _first_gradient(network: nn.Module, x: Tensor) -> Tensor:
    _step(network, x)
    gradient = next(network.parameters()).grad
    assert gradient is not None
    gradient = gradient.clone()
    network.zero_grad(set_to_none=True)
    return gradient


def _peak(step: Any, x: Tensor) -> int | None:
    if not x.is_cuda:
        return None
    torch.cuda.reset_peak_memory_stats()
    step(x)
    return torch.cuda.max_memory_allocated()


def kernel_seconds(call: Call, x: Tensor) -> float:
    """The sum of what the kernels of a call take, as the profiler sees them: a step is no CUDA graph."""
    call(x)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        call(x)
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6


def lines(rows: list[Row]) -> list[str]:
    head = ["model", "frames", "form", "ms", "spread", "/ unshifted", "kernels ms", "kept MB", "peak MB"]
    return [
        "From Python, host time included; `kernels`: the sum of the kernels alone. Ratios in one run.",
        "",
        *table(
            head,
            [
                [
                    row["model"],
                    "x".join(map(str, row["shape"])),
                    row["form"],
                    f"{1e3 * row['seconds']:.2f}",
                    percent(row["spread"]),
                    f"{row['over_unshifted']:.2f}",
                    f"{1e3 * (row['kernel_seconds'] or 0):.2f}",
                    f"{row['kept_bytes'] / 1e6:.0f}",
                    f"{(row['peak_bytes'] or 0) / 1e6:.0f}",
                ]
                for row in rows
            ],
        ),
    ]
