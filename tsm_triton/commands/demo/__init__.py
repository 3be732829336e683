"""`tsm-triton demo`: clips that no single frame can tell apart, and what the shift makes of them."""

import argparse
from pathlib import Path

from ...choices import DIRECTIONS
from ..options import SEEDS, within

__all__ = ["DEMO_WEIGHTS", "TRAINING", "add_arguments"]

# direction -> clips and epochs. Without the future a model learns 640 clips by heart: 57 % on others.
TRAINING = {"bidirectional": (800, 8), "causal": (1600, 6)}
DEMO_WEIGHTS = Path("demo", "causal.pt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    add("--seed", type=within(*SEEDS), default=0, help="of clips, weights and order (default: %(default)s)")
    several = ", ".join(f"{clips} if {direction}" for direction, (clips, _) in TRAINING.items())
    add("--clips", type=int, help=f"a fifth of them for testing (default: {several})")
    several = ", ".join(f"{epochs} if {direction}" for direction, (_, epochs) in TRAINING.items())
    add("--epochs", type=int, help=f"default: {several}")
