"""`tsm-triton inspect FILE`: what a file of weights is, and how to load it."""

import argparse

from ...choices import DIRECTIONS, PLACES

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="a file of weights, its address, or hf-hub:owner/name")
    add("--num-segments", type=int, metavar="T", help="of published weights, where the file does not say it")
    add("--place", choices=PLACES, help="the same")
    add("--shift-div", type=int, metavar="N", help="the same")
    add("--direction", choices=DIRECTIONS, help="the same")
    add("--non-local", metavar="MODE", help="the same, of non-local blocks")
    add("--checksum", metavar="SHA256", help="of the file, or its beginning")
