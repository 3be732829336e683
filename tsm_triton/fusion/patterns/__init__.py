"""The patterns that a graph is searched for: a class and a file each, named like the op that it becomes."""

from .convolution import Convolution
from .depthwise import Depthwise
from .place import Place
from .residual_shift import ResidualShift
from .shift_conv1x1 import ShiftConv1x1
from .stem import Stem

__all__ = ["OF_CONVOLUTIONS", "OF_SHIFTS", "Place"]

# Each in this order over the whole graph, the shifts' first: the report tells of the shifts and sums that they
# leave, in the words of the graph before the others.
OF_SHIFTS: tuple[type[Place], ...] = (ShiftConv1x1, ResidualShift)
OF_CONVOLUTIONS: tuple[type[Place], ...] = (Stem, Depthwise, Convolution)
