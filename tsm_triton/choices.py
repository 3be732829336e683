"""What some arguments are chosen from, by name. Imports nothing: `--help` lists them too."""

__all__ = ["DIRECTIONS", "FOLD_ORDERS", "PLACES"]

DIRECTIONS = ("bidirectional", "causal")
FOLD_ORDERS = ("future_first", "past_first")
PLACES = ("blockres", "block")
