"""`tsm-triton stream SOURCE`: live video through a causal model, frame by frame."""

import argparse
from pathlib import Path

from ..demo import DEMO_WEIGHTS
from ..options import add_shift_options, weights_at

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a video file, a folder of images, a camera's number or a URL")
    add(
        "--model",
        metavar="NAME",
        help="a timm name, or torchvision/NAME (default: as the weights say); or an exported .onnx or .pt2",
    )
    add("--weights", type=weights_at, metavar="FILE", help=f"a causal checkpoint (default: {DEMO_WEIGHTS})")
    add_shift_options(parser, ["causal"])
    add("--labels", type=Path, metavar="FILE", help="a class name a line")
    add(
        "--out",
        type=Path,
        default=Path("stream"),
        metavar="DIR",
        help="folder for results (default: stream/)",
    )
    add("--json", type=Path, metavar="FILE", help="write what was predicted for each frame as JSON, too")
    add("--csv", type=Path, metavar="FILE", help="the same as a table")
    add("--top", type=int, default=5, metavar="K", help="labels a frame in these (default: %(default)s)")
    add("--device", help="where to run (default: cuda where there is one, else cpu)")
    add("--realtime", action="store_true", help="keep to the source's pace, dropping frames where need be")
    add("--consensus", type=int, metavar="K", help="average the logits of the last K frames")
    add("--every", type=int, default=1, metavar="N", help="compute each N-th frame (default: %(default)s)")
    add("--max-frames", type=int, metavar="N", help="stop after N frames of the source")
