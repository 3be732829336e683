"""The other convolutions as fused ops on a GPU: 3x3, the stem, and MobileNetV2's depthwise ones."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, channels_last
from torch.nn.functional import conv2d

from tsm_triton import ops
from tsm_triton.activations import activate

from .baselines import NUM_SEGMENTS
from .gate import require_close
from .page import microseconds, percent, table
from .run import Build, Measure, Row, Run
from .timing import Call, measure


class Convolution(NamedTuple):
    """`act(conv(x) + bias)`, and how many of it the network has."""

    kind: str
    c_in: int
    c_out: int
    kernel: int
    size: int
    stride: int = 1
    activation: str = "relu"
    times: int = 1


# ResNet-50's 3x3 and stem, MobileNetV2's stem and depthwise ones
CONVOLUTIONS = (
    Convolution("stem", 3, 64, 7, 224, 2),
    Convolution("stem", 3, 32, 3, 224, 2, "relu6"),
    Convolution("3x3", 64, 64, 3, 56),
    Convolution("3x3", 128, 128, 3, 28),
    Convolution("3x3", 256, 256, 3, 14),
    Convolution("3x3", 512, 512, 3, 7),
    *(
        Convolution("depthwise", channels, channels, 3, size, stride, "relu6", times)
        for channels, size, stride, times in (
            (32, 112, 1, 1),
            (96, 112, 2, 1),
            (144, 56, 1, 1),
            (144, 56, 2, 1),
            (192, 28, 1, 2),
            (192, 28, 2, 1),
            (384, 14, 1, 4),
            (576, 14, 1, 2),
            (576, 14, 2, 1),
            (960, 7, 1, 3),
        )
    ),
)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
ONES = [1, 1]


def cases(run: Run) -> dict[str, Build]:
    """None on a CPU, where the ops are made of torch's own."""
    if not run.on_gpu:
        return {}
    return {name(c): partial(build, run, c, 32, torch.bfloat16) for c in CONVOLUTIONS}


def name(c: Convolution) -> str:
    return f"{c.kind} {c.kernel}x{c.kernel}, {c.c_in} -> {c.c_out} @ {c.size} / {c.stride}"


def build(run: Run, convolution: Convolution, num_clips: int, dtype: torch.dtype) -> Measure:
    timed = warmed(run, convolution, partial(prepared, run, convolution, num_clips, dtype))
    return lambda: [timed()[0]]


def warmed(
    run: Run, convolution: Any, prepared: Callable[[], tuple[dict[str, Call], list[Tensor]]]
) -> Callable[[], tuple[Row, Tensor]]:
    """What measures prepared calls, made anew, which ran once: the row, and an input."""
    calls, inputs = prepared()
    for call in calls.values():
        call(inputs[0])
    del calls, inputs  # held by each case, they would not all fit

    def timed() -> tuple[Row, Tensor]:
        calls, inputs = prepared()
        timings = measure(calls, inputs, 7 if run.quick else 21)
        seconds = {form: timing.median for form, timing in timings.items()}
        row = {
            **convolution._asdict(),
            "frames": len(inputs[0]),
            "dtype": str(inputs[0].dtype).removeprefix("torch."),
            "seconds": seconds,
            "spread": timings["ours"].spread,
            "over_two": seconds["ours"] / seconds["convolution and pass"],
        }
        return row, inputs[0]

    return timed


def prepared(
    run: Run, convolution: Convolution, num_clips: int, dtype: torch.dtype
) -> tuple[dict[str, Call], list[Tensor]]:
    """The calls, of which ours is right, and inputs that go round."""
    kind, c_in, c_out, kernel, size, stride, activation, _ = convolution
    groups = c_in if kind == "depthwise" else 1

    def randn(*shape: int) -> Tensor:
        x = torch.randn(shape, device=run.device, dtype=dtype)
        return x.contiguous(memory_format=channels_last)

    inputs = [randn(num_clips * NUM_SEGMENTS, c_in, size, size) for _ in range(2)]
    weight = randn(c_out, c_in // groups, kernel, kernel) / (c_in // groups * kernel**2) ** 0.5
    bias = torch.randn(c_out, device=run.device, dtype=dtype)
    padding = kernel // 2
    form = ([stride] * 2, [padding] * 2)
    ours: dict[str, Callable[[Tensor], Tensor]] = {
        "stem": lambda x: ops.stem_convolution(x, weight, bias, *form, activation),
        "depthwise": lambda x: ops.depthwise_convolution(x, weight, bias, *form, ONES, activation),
        "3x3": lambda x: ops.convolution(x, weight, bias, None, *form, ONES, 1, activation),
    }

    def in_two(x: Tensor) -> Tensor:
        return activate(conv2d(x, weight, None, stride, padding, 1, groups) + bias.view(-1, 1, 1), activation)

    require_close(name(convolution), ours[kind](inputs[0]), in_two(inputs[0]), TOLERANCE[dtype])
    calls = {
        "ours": ours[kind],
        "bare": lambda x: conv2d(x, weight, None, stride, padding, 1, groups),
        "convolution and pass": run.compiled(in_two),
    }
    return calls, inputs


def lines(rows: list[Row]) -> list[str]:
    head = [
        "",
        "C_in -> C_out @ size / stride",
        "times",
        "us",
        "spread",
        "cuDNN bare",
        "convolution and pass",
    ]
    return [
        "In us, of one; `times`: how many the network has.",
        "",
        *table(
            [*head, "/ both"],
            [
                [
                    f"{row['kind']} {row['kernel']}x{row['kernel']}",
                    f"{row['c_in']} -> {row['c_out']} @ {row['size']} / {row['stride']}",
                    str(row["times"]),
                    microseconds(row["seconds"]["ours"]),
                    percent(row["spread"]),
                    microseconds(row["seconds"]["bare"]),
                    microseconds(row["seconds"]["convolution and pass"]),
                    f"{row['over_two']:.2f}",
                ]
                for row in rows
            ],
        ),
    ]
