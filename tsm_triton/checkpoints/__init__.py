"""Weights in a file, with what is needed to use them: how they are shifted, whose they are, what frames they take.

files reads and writes, keys finds a model's weights in what was read, patches describes a shift, native is our own
format.
"""

from .native import Checkpoint, load_checkpoint, read_checkpoint, save_checkpoint

__all__ = ["Checkpoint", "load_checkpoint", "read_checkpoint", "save_checkpoint"]
