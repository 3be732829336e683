"""A model as a file that others run: interface says what goes in and out, one file a format writes it.

capture makes the graph, description what the file says of itself, export is what users call.
"""

from .export import FORMATS, export

__all__ = ["FORMATS", "export"]
