"""The sections of a run, what each costs, and which fit into a lease."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from . import (
    against_slicing,
    convolutions,
    loading,
    models,
    overhead,
    pointwise,
    shift,
    streaming,
    traffic,
    training,
    tuned,
)
from .lease import STARTING
from .page import table
from .run import Build, Row, Run, Section

__all__ = ["COSTS", "SECTIONS", "Cost", "cost", "plan"]


class Cost(NamedTuple):
    """Seconds: of building beside the others on 16 cores, and of timing alone."""

    building: float
    timing: float


def _overhead(run: Run) -> dict[str, Build]:
    return {"calls": lambda: partial(overhead.run, run.device, run.quick)}


def _overhead_lines(rows: list[Row]) -> list[str]:
    return table(["call", "us"], [[row["call"], f"{row['microseconds']:.1f}"] for row in rows])


# The most important first: the order in which they are timed, and kept where not all fit.
SECTIONS: dict[str, Section] = {
    **{
        name: Section(f"Whole models: {name}", partial(models.cases, name), models.lines)
        for name in models.MODELS
    },
    "against_slicing": Section(
        "Patched against the authors' slicing", against_slicing.cases, against_slicing.lines
    ),
    "training": Section("A training step", training.cases, training.lines),
    "streaming": Section("Streaming: one frame of one stream", streaming.cases, streaming.lines),
    "pointwise": Section("1x1 convolutions", pointwise.cases, pointwise.lines),
    "convolutions": Section("The other convolutions", convolutions.cases, convolutions.lines),
    "shift": Section("Shift, and residual and shift", shift.cases, shift.lines),
    "overhead": Section("Host time of one eager call", _overhead, _overhead_lines),
    "traffic": Section("Bytes: counted, not measured", traffic.cases, traffic.lines),
    "loading": Section(
        "Loading: a video is 8 frames at 224 pixels, as trained on", loading.cases, loading.lines
    ),
    "tuned": Section("ResNet-50, max-autotuned", tuned.cases, tuned.lines),
}

# A plan, whole and quick. No GPU has run it yet: a session built nine such sections in 200 s on 16 cores and timed them
# in 150. Tuning by Inductor is measuring too, minutes alone, and is run by its name.
COSTS: dict[str, dict[str, tuple[Cost, Cost]]] = {
    "gpu": {
        "resnet50": (Cost(200, 25), Cost(90, 10)),
        "mobilenetv2_100": (Cost(200, 25), Cost(90, 10)),
        "training": (Cost(200, 30), Cost(90, 15)),
        "streaming": (Cost(180, 15), Cost(90, 8)),
        "pointwise": (Cost(120, 30), Cost(60, 20)),
        "convolutions": (Cost(90, 15), Cost(40, 8)),
        "shift": (Cost(120, 25), Cost(40, 8)),
        "overhead": (Cost(20, 5), Cost(20, 5)),
        "traffic": (Cost(180, 1), Cost(60, 1)),
        "loading": (Cost(40, 30), Cost(40, 12)),
        "tuned": (Cost(30, 400), Cost(30, 400)),
    },
    "cpu": {
        "resnet50": (Cost(200, 45), Cost(20, 15)),
        "mobilenetv2_100": (Cost(200, 20), Cost(20, 8)),
        "against_slicing": (Cost(20, 44), Cost(20, 20)),
        "streaming": (Cost(150, 25), Cost(20, 15)),
        "shift": (Cost(10, 90), Cost(10, 25)),
        "overhead": (Cost(10, 5), Cost(10, 5)),
        "traffic": (Cost(100, 1), Cost(60, 1)),
        "loading": (Cost(60, 35), Cost(40, 15)),
    },
}


def cost(name: str, device: str, quick: bool) -> Cost:
    """What a section costs on a device, `cpu` or a GPU."""
    return COSTS["cpu" if device == "cpu" else "gpu"][name][quick]


def plan(
    names: Sequence[str] | None, device: str, quick: bool, seconds: float
) -> tuple[list[str], list[str]]:
    """Which sections fit into so many seconds, the most important first, and which do not.

    Args:
        names: those wanted; None for all that the device has but the one that tunes.

    Raises:
        ValueError: a name of no section of the device.
    """
    known = COSTS["cpu" if device == "cpu" else "gpu"]
    if unknown := sorted(set(names or ()) - known.keys()):
        raise ValueError(
            f"expected sections of {device}, {', '.join(known)}, got {', '.join(unknown)}: give others"
        )
    wanted = [name for name in SECTIONS if name in (known.keys() - {"tuned"} if names is None else names)]
    taken: list[str] = []
    for name in wanted:
        costs = [cost(other, device, quick) for other in (*taken, name)]
        if STARTING + max(c.building for c in costs) + sum(c.timing for c in costs) <= seconds:
            taken.append(name)
    return taken, [name for name in wanted if name not in taken]
