"""ResNet-50's 1x1 convolutions as fused ops on a GPU, beside cuDNN's bare one and their floor.

`c1` is `relu(conv(shift(x)) + bias)`, `c3` is `relu(conv(x) + bias + identity)`.
"""

from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, channels_last
from torch.nn.functional import conv2d

from tsm_triton import ops, reference

from .baselines import NUM_SEGMENTS, SHIFT_DIV
from .convolutions import warmed
from .gate import require_close
from .page import microseconds, percent, table
from .run import Build, Measure, Row, Run
from .timing import Call, measure


class Convolution(NamedTuple):
    kind: str
    c_in: int
    c_out: int
    size: int


CONVOLUTIONS = (
    Convolution("c1", 64, 64, 56),
    Convolution("c1", 256, 64, 56),
    Convolution("c1", 256, 128, 56),
    Convolution("c1", 512, 128, 28),
    Convolution("c1", 512, 256, 28),
    Convolution("c1", 1024, 256, 14),
    Convolution("c1", 1024, 512, 14),
    Convolution("c1", 2048, 512, 7),
    Convolution("c3", 64, 256, 56),
    Convolution("c3", 128, 512, 28),
    Convolution("c3", 256, 1024, 14),
    Convolution("c3", 512, 2048, 7),
)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def cases(run: Run) -> dict[str, Build]:
    """None on a CPU, where the ops are made of torch's own."""
    if not run.on_gpu:
        return {}
    return {
        f"{c.kind} {c.c_in} -> {c.c_out} @ {c.size}": partial(build, run, c, 32, torch.bfloat16)
        for c in CONVOLUTIONS
    }


def build(run: Run, convolution: Convolution, num_clips: int, dtype: torch.dtype) -> Measure:
    timed = warmed(run, convolution, partial(prepared, run, convolution, num_clips, dtype))

    def rows() -> list[Row]:
        row, x = timed()
        seconds = row["seconds"]
        floor = floor_of(convolution, len(x), x.element_size(), ceilings(run.device, dtype))
        over = {"over_bare": seconds["ours"] / seconds["bare"], "over_floor": seconds["ours"] / floor}
        return [{**row, "floor_seconds": floor, **over}]

    return rows


def prepared(
    run: Run, convolution: Convolution, num_clips: int, dtype: torch.dtype
) -> tuple[dict[str, Call], list[Tensor]]:
    """The calls, of which ours is right, and inputs that go round."""
    kind, c_in, c_out, size = convolution

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device=run.device, dtype=dtype)

    def maps(channels: int) -> Tensor:
        return randn(num_clips * NUM_SEGMENTS, channels, size, size).contiguous(memory_format=channels_last)

    inputs = [maps(c_in) for _ in range(2)]
    weight, bias = randn(c_out, c_in, 1, 1) / c_in**0.5, randn(c_out)
    identity = maps(c_out) if kind == "c3" else None
    fold = c_in // SHIFT_DIV if kind == "c1" else 0
    shift = (NUM_SEGMENTS, fold, fold, False)

    def ours(x: Tensor) -> Tensor:
        return ops.shift_conv1x1(x, weight, bias, identity, *shift, "relu")

    def in_two(x: Tensor) -> Tensor:
        out = conv2d(x, weight) + bias.view(-1, 1, 1)
        return (out if identity is None else out + identity).relu()

    x = inputs[0]
    expected = conv2d(reference.temporal_shift(x, *shift), weight, bias)
    expected = torch.relu(expected if identity is None else expected + identity)
    require_close(f"{kind} {c_in} -> {c_out} @ {size}", ours(x), expected, TOLERANCE[dtype])
    calls = {
        "ours": ours,
        "bare": lambda x: conv2d(x, weight),
        "convolution and pass": run.compiled(in_two),
    }
    return calls, inputs


@cache
def ceilings(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes and floating-point operations a second, of a large copy and of a large product of matrices."""
    size = 8192 if device != "cpu" else 64
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    out, copied = torch.empty_like(a), torch.empty_like(a)
    inputs = [torch.randn_like(a) for _ in range(3)]
    timings = measure(
        {"copy": copied.copy_, "product": lambda x: torch.mm(x, b, out=out)}, inputs, repeats=11
    )
    return 2 * a.nbytes / timings["copy"].median, 2 * size**3 / timings["product"].median


def flops(row: Row) -> float:
    return 2.0 * row["frames"] * row["size"] ** 2 * row["c_in"] * row["c_out"]


def bytes_moved(row: Row, element_size: int = 2) -> float:
    """Each map once, and the weight."""
    pixels, written = row["frames"] * row["size"] ** 2, row["c_out"] * (1 + (row["kind"] == "c3"))
    return element_size * (pixels * (row["c_in"] + written) + row["c_in"] * row["c_out"])


def floor_of(
    convolution: Convolution, frames: int, element_size: int, ceilings: tuple[float, float]
) -> float:
    """Seconds that no kernel is faster than: of its bytes or of its products, whichever take longer."""
    row = {**convolution._asdict(), "frames": frames}
    return max(bytes_moved(row, element_size) / ceilings[0], flops(row) / ceilings[1])


def lines(rows: list[Row]) -> list[str]:
    head = ["", "C_in -> C_out @ size", "us", "spread", "cuDNN bare", "/ bare", "floor", "/ floor"]
    head += ["convolution and pass", "/ both"]
    return [
        f"In us. {(__doc__ or '').splitlines()[2]} The floor is of this run's own copy and product of matrices.",
        "",
        *table(
            head,
            [
                [
                    row["kind"],
                    f"{row['c_in']} -> {row['c_out']} @ {row['size']}",
                    microseconds(row["seconds"]["ours"]),
                    percent(row["spread"]),
                    microseconds(row["seconds"]["bare"]),
                    f"{row['over_bare']:.2f}",
                    microseconds(row["floor_seconds"]),
                    f"{row['over_floor']:.2f}",
                    microseconds(row["seconds"]["convolution and pass"]),
                    f"{row['over_two']:.2f}",
                ]
                for row in rows
            ],
        ),
    ]
