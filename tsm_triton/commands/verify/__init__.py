"""`tsm-triton verify`: the checks of kernels and models on the machine they run on."""

from .command import run

__all__ = ["run"]
