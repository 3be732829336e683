"""The goals (design: performance.md, gpu.md) beside what this run measured of them; the worst row counts."""

import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from . import models, streaming, training, tuned
from .run import Row
from .shift import CPU_GOALS

NOT_MEASURED = "not measured, no {}"
MISSING = "not measured in this run"
Results = dict[str, Any]


class Goal(NamedTuple):
    """What `value` is to be on a device, "gpu" or "cpu"; it is None where a run has no row of it."""

    device: str
    metric: str
    sign: str
    goal: float
    value: Callable[[Results], float | None]


def table(results: Results) -> list[tuple[str, str, str]]:
    """Metric, goal, and the measured value with `met` or `missed`, or why there is none."""
    here, rows = "gpu" if results["environment"]["gpu"] else "cpu", []
    for device, metric, sign, goal, value in GOALS:
        measured = NOT_MEASURED.format(device.upper())
        if device == here:
            number = value(results)
            measured = MISSING if number is None else f"{number:.4g} {verdict(number, sign, goal)}"
        rows.append((metric, f"{sign} {goal:g}", measured))
    return rows


def verdict(value: float, sign: str, goal: float) -> str:
    met = {"<=": operator.le, ">=": operator.ge}[sign](value, goal)
    return "met" if met else "missed"


def _worst(
    section: str, key: Callable[[Row], float], wanted: Callable[[Row], bool], pick: Any = max
) -> Callable[[Results], float | None]:
    """The worst row's value of those wanted."""

    def value(results: Results) -> float | None:
        return pick((key(row) for row in results.get(section, ()) if wanted(row)), default=None)

    return value


def _forms(
    section: str,
    above: tuple[str, str],
    below: tuple[str, str],
    pick: Any = max,
    **about: str,
) -> Callable[[Results], float | None]:
    """The value of one form over that of another, each named with its key; the worst of a run's models and layouts."""

    def value(results: Results) -> float | None:
        rows = [row for row in results.get(section, ()) if all(row.get(k) == v for k, v in about.items())]
        networks = {(row["model"], row.get("layout")) for row in rows}
        ratios = (
            _ratio([row for row in rows if (row["model"], row.get("layout")) == network], above, below)
            for network in networks
        )
        return pick((ratio for ratio in ratios if ratio is not None), default=None)

    return value


def _ratio(rows: Iterable[Row], above: tuple[str, str], below: tuple[str, str]) -> float | None:
    by_form = {row["form"]: row for row in rows}
    one, other = (by_form.get(form, {}).get(key) for form, key in (above, below))
    return one / other if one and other else None


def _call(name: str, over: str | None = None) -> Callable[[Results], float | None]:
    """Microseconds of an eager call, or how many times another's."""

    def value(results: Results) -> float | None:
        calls = {row["call"]: row["microseconds"] for row in results.get("overhead", ())}
        if name not in calls or (over is not None and over not in calls):
            return None
        return calls[name] / (1 if over is None else calls[over])

    return value


def _network(name: str, fast: str, slow: str) -> Callable[[Results], float | None]:
    return _forms(name, (slow, "seconds"), (fast, "seconds"), min)


def _wall(name: str, form: str) -> Callable[[Results], float | None]:
    return _forms(name, (form, "wall_seconds"), (form, "seconds"))


def _bandwidth(form: str) -> Callable[[Results], float | None]:
    return _worst(
        "shift",
        lambda row: 1 / row["over_copy"][form],
        lambda row: form in row["over_copy"] and row["megabytes"] > 50,
        min,
    )


def _training(above: str, below: str, key: str) -> Callable[[Results], float | None]:
    return _forms("training", (above, key), (below, key))


def _pointwise(
    key: str, kind: str, channels: str, least: int, most: int
) -> Callable[[Results], float | None]:
    return _worst(
        "pointwise", lambda row: row[key], lambda row: row["kind"] == kind and least < row[channels] <= most
    )


FUSED, WIDEST = "fused, compiled", 2**20
GOALS: tuple[Goal, ...] = (
    # the whole
    Goal("gpu", "fused / compiled unshifted ResNet-50, both graphs: throughput", ">=", 2.0,
         _network("resnet50", FUSED, models.COMPILED)),
    Goal("gpu", "fused / compiled unshifted MobileNetV2, both graphs: throughput", ">=", 1.6,
         _network("mobilenetv2_100", FUSED, models.COMPILED)),
    Goal("gpu", "fused / max-autotuned unshifted ResNet-50, both graphs: throughput", ">=", 1.5,
         _network("tuned", FUSED, tuned.TUNED)),
    # right on CUDA; what is equal differs by the noise of a run
    *(
        Goal(device, f"backend / plain torch.compile of the same patched {name}, noise of 2 %", "<=", 1.02,
             _forms(name, (models.BACKEND, "seconds"), ("patched, compiled", "seconds")))
        for device in ("gpu", "cpu")
        for name in models.MODELS
    ),
    # the shifted 1x1 convolution
    Goal("gpu", "shift + conv1x1 + bias + ReLU / bare cuDNN, C_in <= 512", "<=", 1.05,
         _pointwise("over_bare", "c1", "c_in", 0, 512)),
    Goal("gpu", "the same, C_in > 512", "<=", 1.2, _pointwise("over_bare", "c1", "c_in", 512, WIDEST)),
    Goal("gpu", "conv1x1 + bias + residual + ReLU / its floor, C_out <= 1024", "<=", 1.25,
         _pointwise("over_floor", "c3", "c_out", 0, 1024)),
    Goal("gpu", "the same / convolution and one pass, C_out > 1024", "<=", 1.0,
         _pointwise("over_two", "c3", "c_out", 1024, WIDEST)),
    # the rest of the network
    Goal("gpu", "stem 7x7 with bias and ReLU, N=32, us", "<=", 300,
         _worst("convolutions", lambda row: 1e6 * row["seconds"]["ours"],
                lambda row: row["kind"] == "stem" and row["kernel"] == 7)),
    # no Python in the way
    *(
        Goal("gpu", f"wall time of the fused, compiled {name} / its kernels", "<=", 1.05, _wall(name, FUSED))
        for name in models.MODELS
    ),
    Goal("gpu", "wall time of the compiled training step / its kernels", "<=", 1.05,
         _forms("training", (training.BACKEND, "seconds"), (training.BACKEND, "kernel_seconds"))),
    Goal("gpu", "eager call of temporal_shift, us", "<=", 25, _call("functional, no grad")),
    Goal("gpu", "the same with gradient, us", "<=", 45, _call("functional, grad")),
    Goal("cpu", "eager call of temporal_shift / the authors' slicing", "<=", 1.0,
         _call("functional, no grad", "the authors' slicing, no grad")),
    Goal("cpu", "the same with gradient", "<=", 1.0, _call("functional, grad", "the authors' slicing, grad")),
    # training
    Goal("gpu", "peak training memory, patched / unshifted, eager", "<=", 1.02,
         _training("patched", "unshifted", "peak_bytes")),
    Goal("gpu", "peak training memory, backend / unshifted compiled", "<=", 1.02,
         _training(training.BACKEND, training.COMPILED, "peak_bytes")),
    Goal("gpu", "compiled training step, backend / unshifted: kernels", "<=", 1.03,
         _training(training.BACKEND, training.COMPILED, "kernel_seconds")),
    Goal("gpu", "compiled training step, backend / unshifted: wall", "<=", 1.05,
         _training(training.BACKEND, training.COMPILED, "seconds")),
    Goal("gpu", "eager training step, authors' / ours", ">=", 1.5,
         _forms("training", ("slicing", "seconds"), ("patched", "seconds"), min)),
    # streaming
    Goal("gpu", "fused step / compiled unshifted frame, ResNet-50, N=1, both graphs", "<=", 0.95,
         _forms("streaming", ("fused step, compiled", "seconds"), (streaming.COMPILED, "seconds"),
                model="resnet50")),
    # shift and residual
    Goal("gpu", "shift bandwidth / copy_, every shape over 50 MB", ">=", 0.95, _bandwidth("ours")),
    Goal("gpu", "residual_shift bandwidth / copy_, every shape over 50 MB", ">=", 0.95,
         _bandwidth("residual_shift")),
    # a CPU's own
    *(
        Goal("cpu", f"eager {name}, patched / unshifted", "<=", 1.05,
             _forms(name, ("patched", "seconds"), ("unshifted", "seconds")))
        for name in models.MODELS
    ),
    *(
        Goal("cpu", f"eager shift / clone(), {dtype} {layout}, the worst shape", "<=", goal,
             _worst("shift", lambda row: row["over_copy"]["ours"],
                    lambda row, kind=(dtype, layout): (row["dtype"], row["layout"]) == kind
                    and row.get("goal") is not None))
        for (dtype, layout), goal in CPU_GOALS.items()
    ),
)  # fmt: skip
