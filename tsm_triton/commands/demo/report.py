"""The demo's two files: results.json, and a picture of the curves and of a few clips."""

import json
import platform
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..common import replacing
from ..outputs import others_of
from .motion_clips import CLASSES

__all__ = ["check_folder", "save_plot", "save_results", "versions"]

COLORS = {"TSM": "#0072b2", "TSN": "#d55e00"}
NAMES = "|".join(name.replace(" ", "-") for name in CLASSES)
CLIPS = re.compile(
    rf"train|test|(?:train|test)\.csv|(?:train|test)/\d{{4,}}-(?:{NAMES})\.mp4|(?:train|test)/\..*\.tmp"
)
SHOWN = ("right", "clockwise", "zoom out")


def versions() -> dict[str, str]:
    """What ran: the version of each distribution that is installed."""
    found: dict[str, str] = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("triton", "timm", "torchvision", "av", "tsm-triton"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def check_folder(out: Path) -> None:
    """Raise for a folder whose files a demo would replace, and none wrote."""
    clips = out / "clips"
    held = {path.relative_to(clips).as_posix() for depth in ("*", "*/*") for path in clips.glob(depth)}
    others = {f"clips/{name}" for name in held if not CLIPS.fullmatch(name)}
    others |= {*others_of(out, ("demo.png", "causal.pt"), {"verdict", "as_expected", "trainings"})}
    if others:
        raise ValueError(
            f"expected --out to be a new folder, or a demo's, got {str(out)!r} with {min(others)!r} in it: "
            "pass another one"
        )


def save_results(path: Path, results: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n")


def save_plot(path: Path, results: dict[str, Any], frames: Tensor, labels: list[int]) -> None:
    """Draw the accuracy curves, and a test clip of each of three motions with what the models said of it.

    Args:
        path: of the PNG.
        results: as in results.json.
        frames: the test clips, uint8 `[N, T, 3, H, W]`.
        labels: their classes.
    """
    from matplotlib.figure import Figure

    shown = [labels.index(CLASSES.index(name)) for name in SHOWN if CLASSES.index(name) in labels]
    figure = Figure(figsize=(9, 4.4 + 1.4 * len(shown)), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(1 + len(shown), 1, height_ratios=[3.0, *[1.0] * len(shown)])

    _draw_curves(figure.add_subplot(grid[0]), results)
    for row, index in enumerate(shown, 1):
        said = {name: results["trainings"][name]["predictions"][index] for name in ("TSN", "TSM")}
        _draw_clip(figure.add_subplot(grid[row]), frames[index], labels[index], said)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_curves(axes: Any, results: dict[str, Any]) -> None:
    trainings, accuracy = results["trainings"], results["test_accuracy"]
    epochs = range(1, len(trainings["TSM"]["test_accuracy"]) + 1)
    for name, color in COLORS.items():
        label = f"{name}, test ({accuracy[name]:.1f} %)"
        axes.plot(epochs, trainings[name]["test_accuracy"], "o-", color=color, label=label, clip_on=False)
        axes.plot(
            epochs,
            trainings[name]["train_accuracy"],
            "--",
            color=color,
            alpha=0.5,
            label=f"{name}, while training",
        )
    axes.axhline(results["chance"], color="grey", linestyle=":", label=f"chance ({results['chance']:.1f} %)")
    moved = "an eighth" if results["arguments"]["direction"] == "causal" else "a quarter"
    axes.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 101), xticks=list(epochs))
    axes.set_title(
        f"{results['arguments']['model']} on {len(CLASSES)} motions that no single frame tells apart\n"
        f"TSM shifts {moved} of the channels in time; TSN is the same network without the shift",
        fontsize=11,
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=5, frameon=False, fontsize=9)


def _draw_clip(axes: Any, frames: Tensor, label: int, answers: dict[str, int]) -> None:
    """The frames `[T, 3, H, W]` in a row, and what each model said."""
    gap = torch.full_like(frames[..., :3], 255)
    strip = rearrange(torch.cat([frames, gap], dim=-1), "t rgb h w -> h (t w) rgb")
    axes.imshow(strip[:, :-3].numpy(), interpolation="bilinear")
    axes.set_axis_off()
    said = [f"{name}: {CLASSES[a]} {'✓' if a == label else '✗'}" for name, a in answers.items()]
    axes.set_title(f"true motion: {CLASSES[label]}        {'        '.join(said)}", fontsize=10, loc="left")
