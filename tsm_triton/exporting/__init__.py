"""A model as a file that others run: interface says what goes in and out, one file a format writes it.

capture makes the graph, description what the file says of itself, export is what users call; loading reads a file back,
on what runtimes knows.
"""

from .export import FORMATS, export
from .loading import load_exported

__all__ = ["FORMATS", "export", "load_exported"]
