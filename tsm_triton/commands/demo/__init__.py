"""`tsm-triton demo`: clips that no single frame can tell apart, and what the shift makes of them."""

from .command import run

__all__ = ["run"]
