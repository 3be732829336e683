"""Layers over the frames of clips: the shift for networks that are written rather than patched, and what the authors
and E2E-Spot put beside it.

clip_layer is what knows T; temporal_shift, temporal_pool, non_local and recurrent are a layer each, dropout a head.
"""

from .clip_layer import ClipLayer
from .dropout import DropoutLinear
from .non_local import NonLocal
from .recurrent import RecurrentHead
from .temporal_pool import TemporalPool
from .temporal_shift import TemporalShift

__all__ = ["ClipLayer", "DropoutLinear", "NonLocal", "RecurrentHead", "TemporalPool", "TemporalShift"]
