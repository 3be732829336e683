"""Whole models in eager mode on a CPU: the patched one over the authors' slicing, a ratio a round.

What is compared differs by a hundredth, less than the clocks drift within a minute, so each round has a ratio of its
own. Two copies of one network differ by half of that, by where their modules lie in memory: each round draws one of
several, which share their weights. Sliced networks once more are the control: how far from one its ratio is, a ratio
says nothing.

What differs is timed by itself, too, in rounds of its own: from the call of each site, and of the network where a patch
has a hook there, to its forward.
"""

import copy
import itertools
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import channels_last, contiguous_format, nn

import tsm_triton
from tsm_triton.torch_private import pre_hooks

from .baselines import NUM_SEGMENTS, SHIFT_DIV, shifted_network, slicing, with_open_branches
from .models import MODELS, check
from .page import table
from .run import Build, Measure, Row, Run

SIZE = 96
COPIES = 6
TIMES = {"patched us": "patched", "slicing us": "slicing", "slicing again us": "control"}
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
        def whole(network: nn.Module) -> float:
            started = time.perf_counter()
            network(x)
            return time.perf_counter() - started

        def shifts_alone(network: nn.Module) -> float:
            spent[0] = 0.0
            network(x)
            return spent[0]

        spent = [0.0]
        rounds = _rounds(networks, whole, 30 if run.quick else 80)
        for network in itertools.chain(*networks.values()):
            for module in network.modules():
                if module is network or pre_hooks(module):
                    _add_time_to_forward(module, spent)
        rounds_alone = _rounds(networks, shifts_alone, 30)
        about = {"model": name, "layout": layout, "size": SIZE, "threads": torch.get_num_threads()}
        ratios = {
            which: statistics.quantiles([each[which] / each["slicing"] for each in rounds], n=4)
            for which in ("patched", "control")
        }
        alone = {
            f"{which}_alone_us": 1e6 * statistics.median(each[which] for each in rounds_alone)
            for which in networks
        }
        return [{**about, "rounds": len(rounds), **ratios, **alone}]

    return measure


def _rounds(
    networks: dict[str, list[nn.Module]], seconds: Callable[[nn.Module], float], turns: int
) -> list[dict[str, float]]:
    """One of each kind a round, in an order drawn anew; those that warm up are left out."""
    order = random.Random(0)
    with torch.inference_mode():
        rounds = [
            {
                which: seconds(order.choice(networks[which]))
                for which in order.sample(list(networks), len(networks))
            }
            for _ in range(turns)
        ]
    return rounds[10:]


def _add_time_to_forward(module: nn.Module, spent: list[float]) -> None:
    """Have a module's calls add what they take until its forward begins."""
    cls: Any = type(module)
    started = 0.0

    def call(self: Any, *args: Any) -> Any:
        nonlocal started
        started = time.perf_counter()
        return cls.__call__(self, *args)

    def forward(self: Any, *args: Any) -> Any:
        spent[0] += time.perf_counter() - started
        return cls.forward(self, *args)

    module.__class__ = type(cls.__name__, (cls,), {"__call__": call, "forward": forward})


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
        f"8 frames of {SIZE} pixels, float32: the median of a ratio a round and its quartiles; and what the calls of",
        "shifted modules take until their forward begins, with the network's own hook, in microseconds.",
        "",
        *table(
            ["model", "layout", "threads", "rounds", "patched / slicing", "slicing / slicing", *TIMES],
            [
                [
                    *(str(row[key]) for key in ("model", "layout", "threads", "rounds")),
                    told(row["patched"]),
                    told(row["control"]),
                    *(f"{row[f'{which}_alone_us']:.0f}" for which in TIMES.values()),
                ]
                for row in rows
            ],
        ),
    ]
