"""What some arguments are chosen from, by name. Imports nothing: `--help` lists them too."""

__all__ = ["DIRECTIONS", "PLACES"]

DIRECTIONS = ("bidirectional", "causal")
PLACES = ("blockres", "block")
