"""Charts beside the results: the shift's time over a copy for each shape and, of a GPU, a roofline."""

from pathlib import Path
from typing import Any

WIDTH = 0.8  # of a group of bars


def save(folder: Path, results: dict[str, Any]) -> str:
    """Write the PNG files; says what was written, or why nothing was."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return "No charts: matplotlib is not installed (pip install 'matplotlib>=3.8')."
    written = []
    if results["shift"]:
        _ratios(results["shift"]).savefig(folder / "shift.png", dpi=120)
        written.append("shift.png")
    if results["environment"]["gpu"] and results["fused"]:
        _roofline(results).savefig(folder / "roofline.png", dpi=120)
        written.append("roofline.png")
    return f"Wrote {', '.join(written) or 'no charts: nothing was measured'}"


def _ratios(rows: list[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(8.0, 0.7 * len(rows)), 5), layout="constrained")
    axes = figure.add_subplot()
    names = [name for name in rows[0]["over_copy"] if name != "copy"]
    for index, name in enumerate(names):
        places = [place + WIDTH * (index - (len(names) - 1) / 2) / len(names) for place in range(len(rows))]
        axes.bar(places, [row["over_copy"][name] for row in rows], WIDTH / len(names), label=name)
    labels = [f"{'x'.join(map(str, row['shape']))}\n{row['dtype']}\n{row['layout']}" for row in rows]
    axes.set_xticks(range(len(rows)), labels, rotation=90, fontsize=7)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylabel("time / time of a copy")
    axes.set_title(f"The shift, {rows[0]['num_segments']} frames a clip and more: lower is faster")
    axes.legend(fontsize=8)
    return figure


def _roofline(results: dict[str, Any]) -> Any:
    """TFLOP/s over FLOP/byte of the fused convolution and the bare one; the slope is this run's own copy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    bandwidth = max(2e6 * row["megabytes"] / row["seconds"]["copy"] for row in results["shift"])
    intensities: list[float] = []
    for name, marker in (("conv1x1", "o"), ("shift_conv1x1", "^")):
        points = [(_intensity(row), _flops(row) / row["seconds"][name] / 1e12) for row in results["fused"]]
        intensities += [x for x, _ in points]
        axes.scatter(*zip(*points, strict=True), marker=marker, label=name)
    ends = [min(intensities) / 2, max(intensities) * 2]
    axes.plot(ends, [bandwidth * x / 1e12 for x in ends], color="black", label="bandwidth of copy_")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP / byte")
    axes.set_ylabel("TFLOP/s")
    axes.set_title("1x1 convolutions: the slope is the bound of memory")
    axes.legend()
    return figure


def _flops(row: dict[str, Any]) -> float:
    frames, c_in, height, width = row["shape"]
    return 2.0 * frames * height * width * c_in * row["c_out"]


def _intensity(row: dict[str, Any]) -> float:
    frames, c_in, height, width = row["shape"]
    size = 4 if row["dtype"] == "float32" else 2
    moved = size * (frames * height * width * (c_in + row["c_out"]) + c_in * row["c_out"])
    return _flops(row) / moved
