"""`tsm-triton stream`: live video through a model, frame by frame."""

from .command import run

__all__ = ["run"]
