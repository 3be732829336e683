"""Values that the options of several commands take. Imports no torch: `COMMAND --help` is there at once."""

import argparse
from collections.abc import Callable

__all__ = ["SEEDS", "within"]

SEEDS = (-(2**63), 2**64 - 1)  # what torch.manual_seed takes


def within(low: int, high: int) -> Callable[[str], int]:
    """A whole number in these bounds, as the type of an option."""

    def number(text: str) -> int:
        if not low <= (value := int(text)) <= high:
            raise argparse.ArgumentTypeError(f"expected {low} to {high}, got {text}: choose one in between")
        return value

    number.__name__ = "int"  # what argparse calls a value that is no number
    return number
