"""Curves of a training, and a confusion matrix, as PNG files that appear whole."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import printable, replacing

__all__ = ["save_confusion", "save_curves"]

NAMED = 60  # classes whose names are still readable beside the matrix
NUMBERED = 16  # and whose counts are, in it


def save_curves(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw loss and accuracy over the epochs.

    Args:
        path: of the PNG.
        rows: of metrics.csv.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained", facecolor="white")
    epochs = [row["epoch"] for row in rows]
    for axes, what, label in zip(figure.subplots(1, 2), ("loss", "top1"), ("loss", "top-1 (%)"), strict=True):
        for part, color in (("train", "#d55e00"), ("val", "#0072b2")):
            if f"{part}_{what}" in rows[0]:
                axes.plot(
                    epochs, [row[f"{part}_{what}"] for row in rows], "o-", color=color, label=part, ms=3
                )
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if what == "top1":
            axes.set_ylim(0, 101)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def save_confusion(
    path: Path, matrix: Sequence[Sequence[int]], labels: Sequence[str] | None = None, title: str = ""
) -> None:
    """Draw which class (row) was taken for which (column), each row as its shares.

    Args:
        path: of the PNG.
        matrix: counts `[C, C]`.
        labels: a name for each class.
        title: above it.
    """
    import numpy as np
    from matplotlib.figure import Figure

    counts = np.asarray(matrix)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    size = min(16.0, 3 + 0.35 * min(len(counts), NAMED))
    figure = Figure(figsize=(size, size), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [printable(label) for label in labels or [str(number) for number in range(len(counts))]]
    if len(names) <= NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    if len(counts) <= NUMBERED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8
            )
    axes.set(xlabel="taken for", ylabel="class")
    axes.set_title(title, fontsize=10, parse_math=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
