"""`tsm-triton verify`: the checks of kernels and models on the machine they run on."""

import argparse

from ..options import SEEDS, within

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
        type=within(*SEEDS),
        default=0,
        metavar="S",
        help="what cases and weights are drawn from (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORDS",
        help="run the checks whose line in the report holds these words; may be given several times",
    )
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first failure")
