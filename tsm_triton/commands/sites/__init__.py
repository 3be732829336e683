"""`tsm-triton sites MODEL`: where a model would be shifted, without building its weights."""

import argparse

from ...choices import PLACES

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
