"""Bytes that code moves, counted from the code without a GPU: nothing here is measured.

Triton kernels run in Triton's interpreter, which is asked for every address that an unmasked lane loads or stores:
`bytes` counts each address once a kernel for reading and once for writing (what memory must move), `requested` every
access (what the caches see). What Inductor generates is counted by Inductor's own scheduler, buffer by buffer, after
it has fused; nothing is built. That is its plan for a CPU, with two choices made as on a GPU: a concatenation is one
pointwise kernel, and the fused ops stay ops. Other fusions of a GPU may differ. Inductor counts a buffer whole where a
fused kernel reads a part of it, and a convolution as one read of each input and one write.
"""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import timm
import torch
from torch import Tensor, channels_last, nn

import tsm_triton

from .baselines import NUM_SEGMENTS, SHIFT_DIV, SHIFTS, shifted_network
from .page import table
from .run import Build, Measure, Row, Run

# of a layer: small for the interpreter, channels in the proportion of a bottleneck's conv1
SHAPE = (16, 256, 4, 4)
CONV_CHANNELS = 64
# of the model: a shifted read skips the frames outside the clip, one fold in NUM_SEGMENTS each way
AGREEMENT = 0.05
HOW = (
    "From the code, no GPU: Triton's kernels by the addresses that they load and store in the interpreter (each once; "
    "`requested` counts every access), Inductor's by its scheduler's own count."
)
# performance.md's extra bytes over the network without a shift, in S
NETWORK_MODEL = {"unshifted": 0, "slicing": 4, "flat": 2, "patched, one-pass shift": 2}
# x in, out out, and the weight; the shift itself is free
CONVOLUTION = 1 + CONV_CHANNELS / SHAPE[1] + CONV_CHANNELS * SHAPE[1] / torch.Size(SHAPE).numel()
# multiples of the shifted tensor's bytes: performance.md's extra traffic, with what the unshifted code moves
BYTE_MODEL = {
    "temporal_shift, Triton": 2,
    "residual_shift, Triton": 4,
    "shift_conv1x1, Triton": CONVOLUTION,
    "the same without a shift, Triton": CONVOLUTION,
    "slicing, Inductor": 4,
    "concatenating, Inductor": None,
    "flat, Inductor": 2,
    "norm + add + relu, Inductor": 3,
    "norm + add + relu + slicing, Inductor": 7,
    "norm + add + relu + flat, Inductor": 5,
}


def cases(run: Run) -> dict[str, Build]:
    """Rows of layers and, unless `quick`, of ResNet-50: counted while others build, as there is nothing to time."""
    return {
        "layers": partial(build, "layers"),
        **({} if run.quick else {"networks": partial(build, "networks")}),
    }


def build(what: str) -> Measure:
    """Counted in a process that interprets its kernels."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.traffic", what]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    counted = json.loads(done.stdout.splitlines()[-1])
    return lambda: counted


def layers() -> list[dict[str, Any]]:
    """A row for each form of the shift of one layer; `multiple` is of the bytes of the shifted tensor."""
    unit = torch.Size(SHAPE).numel() * 2
    rows = []
    for name, counts in {**_kernels(), **_generated()}.items():
        model, multiple = BYTE_MODEL[name], counts["bytes"] / unit
        agrees = None if model is None else abs(multiple - model) <= AGREEMENT * model
        rows.append({"code": name, **counts, "multiple": multiple, "model": model, "agrees": agrees})
    return rows


def interpreted_bytes(call: Callable[[], Any]) -> dict[str, int]:
    """What the interpreted kernels of a call load and store."""
    from tsm_triton.kernels.triton_private import interpreter_builder

    builder = interpreter_builder()
    touched: dict[str, list[np.ndarray]] = {"read": [], "written": []}
    sizes: set[int] = set()
    load, store = builder.create_masked_load, builder.create_masked_store

    def record(kind: str, pointers: Any, mask: Any) -> None:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        sizes.add(size)
        touched[kind].append(np.broadcast_to(pointers.data, mask.data.shape)[mask.data.astype(bool)])

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        record("read", pointers, mask)
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        record("written", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    with (
        patch.object(builder, "create_masked_load", counted_load),
        patch.object(builder, "create_masked_store", counted_store),
    ):
        call()
    if len(sizes) != 1:
        raise RuntimeError(f"expected interpreted kernels whose elements have one size, got sizes {sizes}")
    (size,) = sizes
    read, written = (np.concatenate(touched[kind]) for kind in ("read", "written"))
    return {
        "bytes": size * (np.unique(read).size + np.unique(written).size),
        "requested": size * (read.size + written.size),
    }


class _Counted(Exception):
    """Ends a compilation whose plan has been counted."""


def inductor_bytes(function: Callable[..., Any], *inputs: Tensor) -> dict[str, int]:
    """What the kernels that Inductor plans for a call read and write, and how many they are."""
    from tsm_triton.ops.inductor import INDUCTOR_FORMS
    from tsm_triton.torch_private import NopKernelSchedulerNode, Scheduler, autograd_config, inductor_config

    counts: list[int] = []

    def count(scheduler: Any) -> None:
        nodes = [node for node in scheduler.nodes if not isinstance(node, NopKernelSchedulerNode)]
        counts.extend(node.get_read_write_buffers_sizes() for node in nodes)
        raise _Counted

    torch.compiler.reset()
    try:
        with (
            patch.object(Scheduler, "codegen", count),
            patch.dict(INDUCTOR_FORMS, clear=True),  # each op is called, none taken apart
            inductor_config.patch(fx_graph_cache=False, force_pointwise_cat=True),
            autograd_config.patch(enable_autograd_cache=False),
            torch.no_grad(),
        ):
            torch.compile(function, fullgraph=True)(*inputs)
    except Exception:  # Dynamo wraps what a backend raises
        if not counts:
            raise
    # a kernel of no bytes is a view's
    return {"bytes": sum(counts), "kernels": sum(count > 0 for count in counts)}


def _inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    branch, identity = (
        torch.randn(SHAPE, dtype=torch.float16).contiguous(memory_format=channels_last) for _ in range(2)
    )
    scale, bias = torch.randn(2, SHAPE[1], dtype=torch.float16)
    return branch, identity, scale, bias


def _kernels() -> dict[str, dict[str, int]]:
    """The kernels themselves, below the ops, whose CPU form is another."""
    from tsm_triton.kernels.residual_shift import residual_shift
    from tsm_triton.kernels.shift_conv1x1 import shift_conv1x1
    from tsm_triton.kernels.temporal_shift import temporal_shift

    x, identity, scale, bias = _inputs()
    weight = torch.randn(CONV_CHANNELS, SHAPE[1], dtype=torch.float16)
    fold = SHAPE[1] // SHIFT_DIV
    shift = (NUM_SEGMENTS, fold, fold, False)
    calls = {
        "temporal_shift, Triton": lambda: temporal_shift(x, *shift, 1),
        "residual_shift, Triton": lambda: residual_shift(x, scale, bias, identity, *shift, "relu"),
        "shift_conv1x1, Triton": lambda: shift_conv1x1(x, weight, None, None, *shift, "relu"),
        "the same without a shift, Triton": lambda: shift_conv1x1(
            x, weight, None, None, NUM_SEGMENTS, 0, 0, False, "relu"
        ),
    }
    return {name: interpreted_bytes(call) for name, call in calls.items()}


def _generated() -> dict[str, dict[str, int]]:
    x, identity, scale, bias = _inputs()

    def residual(branch: Tensor, identity: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return torch.relu(branch * scale.view(-1, 1, 1) + bias.view(-1, 1, 1) + identity)

    counted = {}
    for name, shift in SHIFTS.items():
        counted[f"{name}, Inductor"] = inductor_bytes(lambda x, f=shift: f(x, NUM_SEGMENTS, SHIFT_DIV), x)
    counted["norm + add + relu, Inductor"] = inductor_bytes(residual, x, identity, scale, bias)
    for name in ("slicing", "flat"):

        def joined(*inputs: Tensor, f: Callable[..., Tensor] = SHIFTS[name]) -> tuple[Tensor, Tensor]:
            y = residual(*inputs)
            return y, f(y, NUM_SEGMENTS, SHIFT_DIV)

        counted[f"norm + add + relu + {name}, Inductor"] = inductor_bytes(joined, x, identity, scale, bias)
    return counted


def networks(name: str = "resnet50", size: int = 224) -> list[dict[str, Any]]:
    """A row for each form of a network, for one clip in bfloat16: megabytes, and multiples of S above unshifted."""
    model = timm.create_model(name).eval().to(torch.bfloat16).to(memory_format=channels_last)
    x = torch.randn(NUM_SEGMENTS, 3, size, size, dtype=torch.bfloat16).contiguous(memory_format=channels_last)
    patched = tsm_triton.patch(copy.deepcopy(model), NUM_SEGMENTS)
    forms: dict[str, nn.Module] = {"unshifted": model}
    for form in ("slicing", "flat"):
        forms[form] = shifted_network(model, SHIFTS[form], NUM_SEGMENTS, SHIFT_DIV)
    forms["patched, one-pass shift"] = patched
    forms["fused"] = tsm_triton.fuse(patched, example_input=x)
    shifted_bytes = _shifted_bytes(model, x)
    rows = []
    for form, network in forms.items():
        counts = inductor_bytes(network, x)
        extra = (counts["bytes"] - rows[0]["bytes"]) / shifted_bytes if rows else 0.0
        rows.append(
            {
                "model": name,
                "form": form,
                **counts,
                "S": shifted_bytes,
                "extra_S": extra,
                "model_S": NETWORK_MODEL.get(form),
            }
        )
    return rows


def _shifted_bytes(model: nn.Module, x: Tensor) -> int:
    """S: the bytes of all inputs that `patch` would shift."""
    sizes: list[int] = []
    handles = [
        site.module.register_forward_pre_hook(lambda _, args: sizes.append(args[0].nbytes))
        for site in tsm_triton.find_sites(model)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return sum(sizes)


def lines(rows: list[Row]) -> list[str]:
    return [
        HOW,
        "",
        *table(
            ["one layer", "times its bytes", "requested", "byte model", "agrees", "kernels"],
            [
                [
                    row["code"],
                    f"{row['multiple']:.2f}",
                    f"{row['multiple'] * row['requested'] / row['bytes']:.2f}" if "requested" in row else "",
                    "" if row["model"] is None else f"{row['model']:.2f}",
                    "" if row["model"] is None else "yes" if row["agrees"] else "**no**",
                    str(row.get("kernels", 1)),
                ]
                for row in rows
                if "code" in row
            ],
        ),
        "",
        *table(
            ["network, one clip", "form", "MB", "over unshifted, in S", "byte model", "kernels"],
            [
                [
                    row["model"],
                    row["form"],
                    f"{row['bytes'] / 1e6:.1f}",
                    f"{row['extra_S']:+.2f}",
                    "" if row["model_S"] is None else f"{row['model_S']:+.0f}",
                    str(row["kernels"]),
                ]
                for row in rows
                if "form" in row
            ],
        ),
    ]


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps({"layers": layers, "networks": networks}[sys.argv[1]]()))
