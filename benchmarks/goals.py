"""The goals (design: performance.md) beside what this run measured of them."""

import operator
from collections.abc import Callable
from typing import Any

from .shift import CPU_GOALS

NOT_MEASURED = "not measured, no GPU"
Row = tuple[str, str, str]


def table(results: dict[str, Any]) -> list[Row]:
    """Metric, goal, and the measured ratio with `met` or `missed`; on a CPU only the last goal is measured."""
    on_gpu = results["environment"]["gpu"]
    rows: list[Row] = []
    for metric, sign, goal, ratio in GPU_GOALS:
        value = ratio(results) if on_gpu else None
        missing = "not measured in this run" if on_gpu else NOT_MEASURED
        rows.append((metric, f"{sign} {goal}", missing if value is None else _judged(value, sign, goal)))
    for row in _largest_of_cpu(results["shift"]):
        metric = f"CPU eager shift / clone(), {row['dtype']} {row['layout']}, the worst shape"
        rows.append((metric, f"<= {row['goal']}", _judged(row["over_copy"]["ours"], "<=", row["goal"])))
    if on_gpu:
        goals = " / ".join(map(str, CPU_GOALS.values()))
        rows.append(("CPU eager shift / clone()", f"<= {goals}", "not measured, no CPU run"))
    return rows


def verdict(value: float, sign: str, goal: float) -> str:
    met = {"<=": operator.le, ">=": operator.ge}[sign](value, goal)
    return "met" if met else "missed"


def _judged(value: float, sign: str, goal: float) -> str:
    return f"{value:.2f} {verdict(value, sign, goal)}"


def _largest_of_cpu(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = row["dtype"], row["layout"]
        if row.get("goal") is not None and (
            key not in worst or row["over_copy"]["ours"] > worst[key]["over_copy"]["ours"]
        ):
            worst[key] = row
    return list(worst.values())


def _shift_bandwidth(results: dict[str, Any]) -> float | None:
    ratios = [1 / row["over_copy"]["ours"] for row in results["shift"] if row["megabytes"] >= 256]
    return min(ratios, default=None)


def _fused(key: str, widest: int) -> Callable[[dict[str, Any]], float | None]:
    return lambda results: min(
        (row[key] for row in results["fused"] if row["shape"][1] <= widest), default=None
    )


def _model(slow: str, fast: str) -> Callable[[dict[str, Any]], float | None]:
    """How many times faster `fast` is than `slow`, eager or compiled in the same mode, without a CUDA graph."""
    mode = slow.partition(",")[2]

    def ratio(results: dict[str, Any]) -> float | None:
        for row in results["models"]:
            seconds = row["seconds"]
            best = [seconds[form] for form in (fast, f"{fast},{mode}") if form in seconds]
            if row["model"] == "resnet50" and slow in seconds and best:
                return seconds[slow] / min(best)
        return None

    return ratio


def _training(key: str, above: str, below: str) -> Callable[[dict[str, Any]], float | None]:
    def ratio(results: dict[str, Any]) -> float | None:
        values = {row["form"]: row[key] for row in results["training"]}
        return values[above] / values[below] if values.get(above) and values.get(below) else None

    return ratio


def _streaming(results: dict[str, Any]) -> float | None:
    ratios = [
        row["over_unshifted"]
        for row in results["streaming"]
        if row["model"] == "resnet50" and "CUDA graph" in row["form"]
    ]
    return min(ratios, default=None)


# metric, sign, goal, and where its ratio is in the results
GPU_GOALS: tuple[tuple[str, str, float, Callable[[dict[str, Any]], float | None]], ...] = (
    ("shift bandwidth / copy_, tensors >= 256 MB", ">=", 0.95, _shift_bandwidth),
    ("residual_shift bandwidth / copy_", ">=", 0.92, _fused("residual_bandwidth_over_copy", 2048)),
    ("shift_conv1x1 / 1x1 conv alone, C <= 512", ">=", 1.0, _fused("conv_speed_over_bare", 512)),
    ("fused / compiled unshifted, throughput", ">=", 1.2, _model("unshifted, compiled", "fused")),
    ("fused / max-autotuned unshifted", ">=", 1.0, _model("unshifted, max-autotune", "fused")),
    ("fused / compiled authors' TSM", ">=", 1.6, _model("slicing, compiled", "fused")),
    ("eager train step, authors' / ours", ">=", 1.5, _training("seconds", "slicing", "patched")),
    (
        "compiled train step, ours / unshifted",
        "<=",
        1.05,
        _training("seconds", "patched, tsm_triton backend", "unshifted, compiled"),
    ),
    (
        "peak training memory, ours / unshifted",
        "<=",
        1.02,
        _training("peak_bytes", "patched, tsm_triton backend", "unshifted, compiled"),
    ),
    ("streaming ResNet-50, CUDA graph, frame / unshifted", "<=", 1.03, _streaming),
)
