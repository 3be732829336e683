"""A training step on a GPU: the authors' shift, ours and no shift at all; time and memory."""

import copy
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, channels_last, nn
from torch.profiler import ProfilerActivity, profile

import tsm_triton

from .baselines import NUM_SEGMENTS, SHIFT_DIV, SHIFTS, shifted_network, with_open_branches
from .gate import require_close
from .timing import measure

MODEL = "resnet50"
# gradients of the first convolution, of their largest, against the authors' shift
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}


def run(device: str, quick: bool) -> list[dict[str, Any]]:
    """Rows of ResNet-50; none on a CPU."""
    if device == "cpu":
        return []
    return rows(MODEL, 4 if quick else 16, 224, device, torch.bfloat16, 7 if quick else 21)


def rows(
    name: str, num_clips: int, size: int, device: str, dtype: torch.dtype, repeats: int
) -> list[dict[str, Any]]:
    """A row for each form: seconds of forward and backward; bytes kept in between, and on a GPU at most at once."""
    model = timm.create_model(name, num_classes=10).train().to(device, dtype)
    model = with_open_branches(model.to(memory_format=channels_last))
    networks = {
        "unshifted": model,
        "slicing": shifted_network(model, SHIFTS["slicing"], NUM_SEGMENTS, SHIFT_DIV),
        "patched": tsm_triton.patch(copy.deepcopy(model), NUM_SEGMENTS),
    }
    inputs = [
        torch.randn(num_clips * NUM_SEGMENTS, 3, size, size, device=device, dtype=dtype).contiguous(
            memory_format=channels_last
        )
        for _ in range(2)
    ]
    expected, got = (_first_gradient(networks[form], inputs[0]) for form in ("slicing", "patched"))
    require_close(f"the gradient of patched {name}", got, expected, TOLERANCE[dtype])
    calls: dict[str, Any] = dict(networks)
    torch.compiler.reset()
    if device != "cpu":
        calls["unshifted, compiled"] = torch.compile(model)
        calls["patched, tsm_triton backend"] = torch.compile(networks["patched"], backend="tsm_triton")
    steps = {form: lambda x, network=network: _step(network, x) for form, network in calls.items()}
    timings = measure(steps, inputs, repeats)
    return [
        {
            "model": name,
            "form": form,
            "shape": tuple(inputs[0].shape),
            "seconds": timing.median,
            "spread": timing.spread,
            "over_unshifted": timing.median / timings["unshifted"].median,
            "kept_bytes": kept_bytes(calls[form], inputs[0]),
            "peak_bytes": _peak(steps[form], inputs[0]),
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
