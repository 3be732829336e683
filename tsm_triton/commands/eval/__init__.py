"""`tsm-triton eval DATA`: how well a model does on labelled videos."""

import argparse
from pathlib import Path

from ..options import add_prediction_options

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", metavar="DATA", help="a folder with a folder for each class, or a list of videos")
    add("--split", help="which part of DATA, where it holds several (default: val)")
    add("--root", type=Path, metavar="DIR", help="what the paths of a list start from (default: its folder)")
    add("--out", type=Path, default=Path("eval"), metavar="DIR", help="folder for results (default: eval/)")
    add("--table", choices=["csv", "parquet"], default="csv", help="predictions as (default: %(default)s)")
    add("--labels", type=Path, metavar="FILE", help="a class name a line (default: as the checkpoint says)")
    add_prediction_options(parser)
