"""Whole models in eager mode on a CPU: the patched one over the authors' slicing, a ratio a round.

What is compared differs by a hundredth, less than the clocks drift within a minute, so each round has a ratio of its
own. Two copies of one network differ by half of that, by where their modules lie in memory: each round draws one of
several, which share their weights. Sliced networks once more are the control: how far from one its ratio is, a ratio
says nothing.
"""

import copy
import random
import statistics
import time
from functools import partial

import timm
import torch
from torch import channels_last, contiguous_format, nn

import tsm_triton

from .baselines import NUM_SEGMENTS, SHIFT_DIV, shifted_network, slicing, with_open_branches
from .models import MODELS, check
from .page import table
from .run import Build, Measure, Row, Run

SIZE = 96
COPIES = 6
FORMATS = {"nchw": contiguous_format, "channels_last": channels_last}


def cases(run: Run) -> dict[str, Build]:
    """Each model in both layouts."""
    return {f"{name}, {layout}": partial(build, run, name, layout) for name in MODELS for layout in FORMATS}


def build(run: Run, name: str, layout: str) -> Measure:
    """A clip of 8 frames through each of three networks, whose logits agree."""
    model = with_open_branches(timm.create_model(name).eval()).to(memory_format=FORMATS[layout])
    x = torch.randn(NUM_SEGMENTS, 3, SIZE, SIZE).contiguous(memory_format=FORMATS[layout])
    kinds = {
        "patched": lambda: tsm_triton.patch(copy.deepcopy(model), num_segments=NUM_SEGMENTS),
        "slicing": lambda: shifted_network(model, slicing, NUM_SEGMENTS, SHIFT_DIV),
        "control": lambda: shifted_network(model, slicing, NUM_SEGMENTS, SHIFT_DIV),
    }
    networks: dict[str, list[nn.Module]] = {which: [] for which in kinds}
    for which in random.Random(0).sample(list(kinds) * COPIES, len(kinds) * COPIES):
        networks[which].append(_sharing(kinds[which](), model))
    with torch.inference_mode():
        expected = networks["slicing"][0](x)
        for network in (*networks["patched"], *networks["slicing"], *networks["control"]):
            check(f"patched {name}", network(x), expected)

    def measure() -> list[Row]:
        order, ratios = random.Random(0), {"patched": [], "control": []}
        with torch.inference_mode():
            for turn in range(30 if run.quick else 100):
                seconds = {}
                for which in order.sample(list(networks), len(networks)):
                    network = order.choice(networks[which])
                    started = time.perf_counter()
                    network(x)
                    seconds[which] = time.perf_counter() - started
                if turn >= 10:
                    for which, values in ratios.items():
                        values.append(seconds[which] / seconds["slicing"])
        about = {"model": name, "layout": layout, "size": SIZE, "threads": torch.get_num_threads()}
        quartiles = {which: statistics.quantiles(values, n=4) for which, values in ratios.items()}
        return [{**about, "rounds": len(ratios["patched"]), **quartiles}]

    return measure


def _sharing(network: nn.Module, model: nn.Module) -> nn.Module:
    """A network that has the memory of another's weights."""
    shared = model.state_dict(keep_vars=True)
    for name, value in network.state_dict(keep_vars=True).items():
        value.data = shared[name].data
    return network


def lines(rows: list[Row]) -> list[str]:
    def told(quartiles: list[float]) -> str:
        low, median, high = quartiles
        return f"{median:.3f} [{low:.3f} {high:.3f}]"

    return [
        f"8 frames of {SIZE} pixels, float32: the median of a ratio a round and its quartiles.",
        "",
        *table(
            ["model", "layout", "threads", "rounds", "patched / slicing", "slicing / slicing"],
            [
                [
                    *(str(row[key]) for key in ("model", "layout", "threads", "rounds")),
                    told(row["patched"]),
                    told(row["control"]),
                ]
                for row in rows
            ],
        ),
    ]
