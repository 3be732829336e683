"""Weights in a file, with what is needed to use them: how they are shifted, whose they are, what frames they take.

load takes a file, a download of download's or a dictionary to a model; files reads and writes, keys finds a model's
weights in what was read, patches describes a shift, native is our own format, published/ has a file for each of others.
"""

from .load import load_checkpoint
from .native import Checkpoint, read_checkpoint, save_checkpoint

__all__ = ["Checkpoint", "load_checkpoint", "read_checkpoint", "save_checkpoint"]
