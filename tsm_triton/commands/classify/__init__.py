"""`tsm-triton classify VIDEO...`: what is seen in videos."""

import argparse
from pathlib import Path

from ..options import add_prediction_options, within

__all__ = ["ENGINES", "add_arguments"]

ENGINES = ("local", "ray")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("videos", nargs="+", metavar="VIDEO", help="files, folders of videos or of frames, or lists of them")
    add("--root", type=Path, metavar="DIR", help="what the paths of a list start from (default: its folder)")
    add("--split", help="which part of a folder or a list that holds several")
    add("--top", type=within(1, 10000), default=5, metavar="K", help="labels a video (default: %(default)s)")
    add("--labels", type=Path, metavar="FILE", help="a class name a line (default: as the checkpoint says)")
    add("--json", type=Path, metavar="FILE", help="write the predictions as JSON")
    add("--csv", type=Path, metavar="FILE", help="the same as a table")
    add(
        "--parquet",
        type=Path,
        metavar="FILE",
        help="the same as Parquet; with ray a folder (default there: classes.parquet)",
    )
    add("--pictures", type=Path, metavar="DIR", help="a picture a video: its frames, and a bar a label")
    add(
        "--engine",
        choices=ENGINES,
        default="local",
        help="ray spreads over a cluster: Ray Data decodes on CPUs and predicts on GPUs (default: %(default)s)",
    )
    add_prediction_options(parser)
