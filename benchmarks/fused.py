"""The fused kernels on a GPU: `residual_shift` beside a copy, `shift_conv1x1` beside the bare 1x1 convolution."""

from typing import Any

import torch
from torch import Tensor, channels_last
from torch.nn.functional import conv2d
from tqdm import tqdm

from tsm_triton import reference
from tsm_triton.functional import fold_counts, residual_shift, shift_conv1x1

from .baselines import NUM_SEGMENTS, SHIFT_DIV
from .gate import require_close
from .timing import measure

# [C_in, C_out, H = W] of ResNet-50's shifted convolutions
CONVOLUTIONS = ((64, 64, 56), (256, 64, 56), (512, 128, 28), (1024, 256, 14), (2048, 512, 7))
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def run(device: str, quick: bool) -> list[dict[str, Any]]:
    """A row for each convolution; no row on a CPU, where the ops are made of torch's own."""
    if device == "cpu":
        return []
    repeats = 21 if quick else 51
    sizes = tqdm(CONVOLUTIONS, desc="fused kernels", disable=None)
    return [row(*size, 32, device, torch.bfloat16, repeats) for size in sizes]


def row(
    c_in: int, c_out: int, size: int, num_clips: int, device: str, dtype: torch.dtype, repeats: int
) -> dict[str, Any]:
    """Seconds of a copy, of both ops and of the convolution; bandwidth and speed as ratios."""
    shape = (num_clips * NUM_SEGMENTS, c_in, size, size)
    inputs = [
        torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=channels_last)
        for _ in range(2)
    ]
    identity = inputs[-1]
    scale, bias = torch.randn(2, c_in, device=device, dtype=dtype)
    weight = torch.randn(c_out, c_in, 1, 1, device=device, dtype=dtype) / c_in**0.5
    conv_bias = torch.randn(c_out, device=device, dtype=dtype)
    copied = torch.empty_like(identity)

    def residual(x: Tensor) -> tuple[Tensor, Tensor]:
        return residual_shift(x, identity, NUM_SEGMENTS, scale=scale, bias=bias, shift_div=SHIFT_DIV)

    calls = {
        "copy": copied.copy_,
        "residual_shift": residual,
        "conv1x1": lambda x: conv2d(x, weight),
        "shift_conv1x1": lambda x: shift_conv1x1(
            x, weight, NUM_SEGMENTS, bias=conv_bias, shift_div=SHIFT_DIV, activation="relu"
        ),
    }
    x = inputs[0]
    counts = (NUM_SEGMENTS, *fold_counts(c_in, SHIFT_DIV, "bidirectional"))
    y = torch.relu(x.float() * scale.view(-1, 1, 1) + bias.view(-1, 1, 1) + identity.float())
    got, shifted = residual(x)
    require_close(f"residual_shift's y of {shape}", got, y, TOLERANCE[dtype])
    require_close(
        f"residual_shift's shift of {shape}", shifted, reference.temporal_shift(y, *counts), TOLERANCE[dtype]
    )
    require_close(
        f"shift_conv1x1 of {shape}",
        calls["shift_conv1x1"](x),
        torch.relu(conv2d(reference.temporal_shift(x, *counts), weight, conv_bias)),
        TOLERANCE[dtype],
    )
    timings = measure(calls, inputs, repeats)
    seconds = {name: timing.median for name, timing in timings.items()}
    return {
        "shape": shape,
        "c_out": c_out,
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": seconds,
        "spread": {name: timing.spread for name, timing in timings.items()},
        # two reads and two writes, where a copy has one of each
        "residual_bandwidth_over_copy": 2 * seconds["copy"] / seconds["residual_shift"],
        "conv_speed_over_bare": seconds["conv1x1"] / seconds["shift_conv1x1"],
    }
