"""Whole models in inference: the patched one, its fused copy, and the network without a shift, each form its row."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, channels_last, contiguous_format, nn

import tsm_triton

from .baselines import NUM_SEGMENTS, SHIFT_DIV, SHIFTS, shifted_network, with_open_branches
from .gate import require_close
from .page import percent, table
from .run import Build, Measure, Row, Run
from .timing import Call, measure, wall

MODELS = ("resnet50", "mobilenetv2_100")
# of the largest logit; the weights are random
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
COMPILED = "unshifted, compiled"
BACKEND = "patched, tsm_triton backend"
EAGER = ("unshifted", "patched", "fused", "slicing")
# Of a GPU all are timed, else what the goals need: each compiled one takes up to a minute to build.
TIMED = {
    # on a GPU, quick
    (True, True): (*EAGER, COMPILED, "fused, compiled"),
    (False, False): (*EAGER, COMPILED, "patched, compiled", BACKEND),
    (False, True): EAGER,
}


def cases(name: str, run: Run) -> dict[str, Build]:
    """The model in channels_last, and on a CPU in NCHW too."""
    if run.on_gpu:
        return {name: partial(build, run, name, 32, 224, torch.bfloat16, "channels_last")}
    layouts = ("channels_last",) if run.quick else ("channels_last", "nchw")
    return {
        f"{name}, {layout}": partial(build, run, name, 1, 96, torch.float32, layout) for layout in layouts
    }


def build(run: Run, name: str, num_clips: int, size: int, dtype: torch.dtype, layout: str) -> Measure:
    """Every form built, and compared with the patched model's logits."""
    memory_format = channels_last if layout == "channels_last" else contiguous_format
    model = timm.create_model(name).eval().to(run.device, dtype).to(memory_format=memory_format)
    shape = (num_clips * NUM_SEGMENTS, 3, size, size)
    inputs = [
        torch.randn(shape, device=run.device, dtype=dtype).contiguous(memory_format=memory_format)
        for _ in range(2)
    ]
    calls: dict[str, Call] = {}
    with torch.no_grad():
        made = forms(with_open_branches(model), inputs[0])
        expected = made["patched"]()(inputs[0])
        for form, make in made.items():
            if form not in TIMED.get((run.on_gpu, run.quick), made):
                continue
            with run.attempt(f"{name}, {layout}, {form}"):
                call = make()
                check(f"{form} {name}", call(inputs[0]), expected)
                calls[form] = call
    about = {"model": name, "shape": shape, "dtype": str(dtype).removeprefix("torch."), "layout": layout}
    # forms that are compared differ by less than the clocks of a CPU drift
    repeats = 7 if run.quick else 21 if run.on_gpu else 61
    return lambda: [{**about, **row} for row in rows(calls, inputs, repeats)]


def forms(model: nn.Module, x: Tensor) -> dict[str, Callable[[], Any]]:
    """What makes each form of a network: `fused, compiled` the copy that `fused` made."""
    patched = tsm_triton.patch(copy.deepcopy(model), NUM_SEGMENTS)
    fused: list[nn.Module] = []

    def fuse() -> nn.Module:
        fused.append(tsm_triton.fuse(patched, example_input=x))
        return fused[0]

    def compiled(make: Callable[[], nn.Module], **options: Any) -> Callable[[], Any]:
        return lambda: torch.compile(make(), dynamic=False, **options)

    def authors() -> nn.Module:
        return shifted_network(model, SHIFTS["slicing"], NUM_SEGMENTS, SHIFT_DIV)

    return {
        "unshifted": lambda: model,
        COMPILED: compiled(lambda: model),
        "patched": lambda: patched,
        "patched, compiled": compiled(lambda: patched),
        BACKEND: compiled(lambda: patched, backend="tsm_triton"),
        "fused": fuse,
        "fused, compiled": compiled(lambda: fused[0]),
        "slicing": authors,
        "slicing, compiled": compiled(authors),
    }


def check(what: str, got: Tensor, expected: Tensor) -> None:
    """The forms that shift agree with each other."""
    if not what.startswith("unshifted"):
        require_close(what, got, expected, TOLERANCE[expected.dtype])


@torch.no_grad()
def rows(calls: dict[str, Call], inputs: list[Tensor], repeats: int) -> list[Row]:
    """Seconds of each form, on a GPU out of CUDA graphs and as calls from Python; ratios to the unshifted network."""
    timings = measure(calls, inputs, repeats)
    base = timings["unshifted"].median
    return [
        {
            "form": form,
            "seconds": timing.median,
            "spread": timing.spread,
            "over_unshifted": timing.median / base,
            "wall_seconds": wall(calls[form], inputs, 3).median if inputs[0].is_cuda else None,
        }
        for form, timing in timings.items()
    ]


def lines(rows: list[Row]) -> list[str]:
    head = ["model", "frames", "dtype, layout", "form", "ms", "spread", "time / unshifted, eager", "wall ms"]
    return [
        "One run. On a GPU: out of a CUDA graph, and as calls from Python (`wall`).",
        "",
        *table(
            head,
            [
                [
                    row["model"],
                    "x".join(map(str, row["shape"])),
                    f"{row['dtype']}, {row['layout']}",
                    row["form"],
                    f"{1e3 * row['seconds']:.2f}",
                    percent(row["spread"]),
                    f"{row['over_unshifted']:.3f}",
                    "" if row["wall_seconds"] is None else f"{1e3 * row['wall_seconds']:.2f}",
                ]
                for row in rows
            ],
        ),
    ]
