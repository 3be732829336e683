"""Charts beside the results: a bar a form of whole models and of the shift; of a GPU, a roofline."""

import statistics
from pathlib import Path
from typing import Any

from . import models
from .pointwise import bytes_moved, flops
from .run import Row


def save(folder: Path, results: dict[str, Any]) -> str:
    """Write the PNG files; says what was written, or why nothing was."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return "No charts: matplotlib is not installed (pip install 'matplotlib>=3.8')."
    drawn = {
        "models.png": _models([row for name in models.MODELS for row in results.get(name, ())]),
        "shift.png": _shift(results.get("shift", [])),
        "roofline.png": _roofline(results.get("pointwise", [])),
    }
    written = {name: figure for name, figure in drawn.items() if figure is not None}
    for name, figure in written.items():
        figure.savefig(folder / name, dpi=120)
    return f"Wrote {', '.join(written) or 'no charts: nothing was measured'}"


def _models(rows: list[Row]) -> Any:
    """A panel a network, a bar a form: its time over the unshifted network's, compiled where that was run."""
    networks: dict[str, dict[str, float]] = {}
    for row in rows:
        networks.setdefault(f"{row['model']}, {row['layout']}", {})[row["form"]] = row["seconds"]
    if not networks:
        return None
    bars = {}
    for title, seconds in networks.items():
        base = models.COMPILED if models.COMPILED in seconds else "unshifted"
        ratios = {form: [value / seconds[base]] for form, value in seconds.items()}
        bars[f"{title}: time / {base}"] = ratios
    return _bars(bars)


def _shift(rows: list[Row]) -> Any:
    """A bar a form: the median of all shapes, with a line from the best to the worst of them."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        memory = f" ({row['memory']} memory)" if "memory" in row else ""
        for form, ratio in row["over_copy"].items():
            ratios.setdefault(f"shift: time / copy{memory}", {}).setdefault(form, []).append(ratio)
    return _bars(ratios) if ratios else None


def _bars(panels: dict[str, dict[str, list[float]]]) -> Any:
    from matplotlib.figure import Figure

    counts = [len(bars) for bars in panels.values()]
    figure = Figure(figsize=(8, 1.2 + 0.32 * sum(counts) + 0.5 * len(counts)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=counts)[:, 0]
    for axis, (title, bars) in zip(axes, panels.items(), strict=True):
        forms = sorted(bars, key=lambda form: statistics.median(bars[form]), reverse=True)
        medians = [statistics.median(bars[form]) for form in forms]
        reach = [(m - min(bars[form]), max(bars[form]) - m) for form, m in zip(forms, medians, strict=True)]
        colours = [
            "tab:orange" if "fused" in f or "ours" in f or "tsm_triton" in f else "tab:gray" for f in forms
        ]
        axis.barh(forms, medians, color=colours, xerr=list(zip(*reach, strict=True)))
        for place, median in enumerate(medians):
            axis.text(0, place, f" {median:.2f}", va="center", color="white", fontweight="bold")
        axis.axvline(1, color="black", linewidth=1)
        axis.set_title(f"{title} (lower is faster)", loc="left", fontsize=10)
    return figure


def _roofline(rows: list[Row]) -> Any:
    """TFLOP/s over FLOP/byte of the fused convolutions, under what their floors say the machine can do."""
    if not rows:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for kind, marker in (("c1", "o"), ("c3", "^")):
        for form, colour in (("ours", "tab:orange"), ("convolution and pass", "tab:gray")):
            of_kind = [row for row in rows if row["kind"] == kind]
            rates = [flops(row) / row["seconds"][form] / 1e12 for row in of_kind]
            axes.scatter(_intensities(of_kind), rates, marker=marker, color=colour, label=f"{kind}, {form}")
    ordered = sorted(rows, key=lambda row: flops(row) / bytes_moved(row))
    bound = [flops(row) / row["floor_seconds"] / 1e12 for row in ordered]
    axes.plot(
        _intensities(ordered), bound, color="black", label="floor: this run's copy and product of matrices"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP / byte")
    axes.set_ylabel("TFLOP/s")
    axes.set_title("1x1 convolutions of ResNet-50")
    axes.legend(fontsize=8)
    return figure


def _intensities(rows: list[Row]) -> list[float]:
    return [flops(row) / bytes_moved(row) for row in rows]
