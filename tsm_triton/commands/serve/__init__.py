"""`tsm-triton serve CHECKPOINT`: a page on which a camera or a video is seen by a causal model."""

import argparse
from pathlib import Path

from ..options import add_shift_options, weights_at, within

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "checkpoint",
        type=weights_at,
        metavar="CHECKPOINT",
        help="causal weights, as of tsm-triton stream; or an .onnx or .pt2 of a stream, as exported",
    )
    add("--model", metavar="NAME", help="a timm name, or torchvision/NAME (default: as the weights say)")
    add_shift_options(parser, ["causal"])
    add("--labels", type=Path, metavar="FILE", help="a class name a line (default: as the weights say)")
    add("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine alone)")
    add("--port", type=within(0, 65535), default=8000, help="0 for any that is free (default: %(default)s)")
    add("--device", help="where to run (default: cuda where there is one, else cpu)")
    add("--fused", action="store_true", help="run a copy rewritten on the fused ops")
    add(
        "--clients",
        type=within(1, 4096),
        default=16,
        metavar="N",
        help="streams at once (default: %(default)s)",
    )
    add(
        "--max-upload",
        type=within(1, 2**20),
        default=200,
        metavar="MB",
        help="size of a video (default: %(default)s)",
    )
