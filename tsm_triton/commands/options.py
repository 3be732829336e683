"""Values and options that several commands take. Imports no torch: `COMMAND --help` is there at once."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from ..choices import DIRECTIONS, PLACES

__all__ = ["SEEDS", "add_prediction_options", "add_shift_options", "option_of", "weights_at", "within"]

SEEDS = (-(2**63), 2**64 - 1)  # what torch.manual_seed takes


def option_of(name: str) -> str:
    """The option of an argument: `--shift-div` of `shift_div`."""
    return f"--{name.replace('_', '-')}"


def within(low: int, high: int) -> Callable[[str], int]:
    """A whole number in these bounds, as the type of an option."""

    def number(text: str) -> int:
        if not low <= (value := int(text)) <= high:
            raise argparse.ArgumentTypeError(f"expected {low} to {high}, got {text}: choose one in between")
        return value

    number.__name__ = "int"  # what argparse calls a value that is no number
    return number


def weights_at(text: str) -> str | Path:
    """A file of weights, or the address of one, as the type of an option."""
    return text if text.startswith(("hf-hub:", "https://", "http://")) else Path(text)


def add_shift_options(parser: argparse.ArgumentParser, directions: Sequence[str] = DIRECTIONS) -> None:
    """How weights were trained, where they do not say it."""
    add = parser.add_argument
    add("--direction", choices=directions, help="how a bare state dict was trained, which it does not say")
    add("--place", choices=PLACES, help="the same: what was shifted, a branch or its block")
    add("--shift-div", type=within(1, 4096), metavar="D", help="the same: a D-th of the channels each way")


def add_prediction_options(parser: argparse.ArgumentParser) -> None:
    """The model, and which clips and views of a video it predicts."""
    add = parser.add_argument
    add(
        "--checkpoint",
        type=weights_at,
        metavar="FILE",
        help="of tsm-triton train, or a published one; or its address",
    )
    add(
        "--model",
        metavar="NAME",
        help="of a bare state dict; alone, a library's model with weights of images, or an exported .onnx or .pt2",
    )
    add_shift_options(parser)
    add("--non-local", metavar="MODE", help="of published weights with non-local blocks that do not say it")
    add(
        "--num-segments", type=within(1, 1024), metavar="T", help="frames a clip (default: as it was trained)"
    )
    add(
        "--sampling",
        choices=["uniform", "dense", "twice", "authors"],
        help="which frames (default: as the checkpoint was trained, else uniform)",
    )
    add(
        "--clips",
        type=within(1, 100),
        default=1,
        metavar="K",
        help="clips of a video with dense (default: 1)",
    )
    add("--views", type=int, choices=[1, 3, 10], default=1, help="crops of a clip (default: %(default)s)")
    add(
        "--average",
        choices=["logits", "probabilities"],
        default="logits",
        help="what is averaged over clips and views (default: %(default)s)",
    )
    add(
        "--batch-size",
        type=within(1, 4096),
        default=8,
        metavar="N",
        help="videos at once (default: %(default)s)",
    )
    add(
        "--workers",
        type=within(0, 256),
        metavar="N",
        help="processes that decode (default: as fits the machine)",
    )
    add(
        "--on-error",
        choices=["raise", "skip"],
        default="raise",
        help="of a video that cannot be read, or is not there",
    )
    add("--device", help="where to run (default: cuda where there is one, else cpu)")
