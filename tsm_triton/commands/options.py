"""The options of each command, a function of its name. Imports no torch: `COMMAND --help` is there at once."""

import argparse
from collections.abc import Callable
from pathlib import Path

from ..choices import DIRECTIONS, PLACES

__all__ = ["DEMO_WEIGHTS", "TRAINING", "demo", "sites", "stream", "verify"]

# direction -> clips and epochs. Without the future a model learns 640 clips by heart: 57 % on others.
TRAINING = {"bidirectional": (800, 8), "causal": (1600, 6)}
DEMO_WEIGHTS = Path("demo", "causal.pt")
SEEDS = (-(2**63), 2**64 - 1)  # what torch.manual_seed takes


def demo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--direction",
        choices=DIRECTIONS,
        default="bidirectional",
        help="causal trains a model for live video, and tests it frame by frame too (default: %(default)s)",
    )
    add("--device", help="where to train (default: cuda where there is one, else cpu)")
    add(
        "--model",
        default="test_resnet",
        help="any timm model that patch takes and that runs on small frames (default: %(default)s)",
    )
    add("--out", type=Path, default=Path("demo"), help="folder for clips and results (default: demo/)")
    add("--seed", type=_within(*SEEDS), default=0, help="of clips, weights and order (default: %(default)s)")
    several = ", ".join(f"{clips} if {direction}" for direction, (clips, _) in TRAINING.items())
    add("--clips", type=int, help=f"a fifth of them for testing (default: {several})")
    several = ", ".join(f"{epochs} if {direction}" for direction, (_, epochs) in TRAINING.items())
    add("--epochs", type=int, help=f"default: {several}")


def sites(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a timm name, or torchvision/NAME")
    parser.add_argument(
        "--place",
        choices=PLACES,
        default="blockres",
        help="shift the residual branch only, or the whole block (default: %(default)s)",
    )
    parser.add_argument(
        "--shift-div",
        type=int,
        default=8,
        metavar="N",
        help="one channel in N moves each way (default: %(default)s)",
    )


def stream(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a video file, a folder of images, a camera's number or a URL")
    add("--model", metavar="NAME", help="a timm name, or torchvision/NAME (default: as the weights say)")
    add("--weights", type=Path, metavar="FILE", help=f"a causal checkpoint (default: {DEMO_WEIGHTS})")
    add("--direction", choices=["causal"], help="how a bare state dict was trained, which it does not say")
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


def verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", metavar="DEVICE", help="cuda, cuda:1, cpu (default: CUDA where there is a GPU)"
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=50,
        metavar="N",
        help="cases for each property (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=_within(*SEEDS),
        default=0,
        metavar="S",
        help="what cases and weights are drawn from (default: %(default)s)",
    )
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first failure")


def _within(low: int, high: int) -> Callable[[str], int]:
    """A whole number in these bounds, as the type of an option."""

    def number(text: str) -> int:
        if not low <= (value := int(text)) <= high:
            raise argparse.ArgumentTypeError(f"expected {low} to {high}, got {text}: choose one in between")
        return value

    number.__name__ = "int"  # what argparse calls a value that is no number
    return number
