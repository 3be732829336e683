"""What is asked of a library's rules, and what holds where it has none.

A file of this folder that is named as a library is imported has a class `Rules` of this protocol.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from ..dataflow.merges import Skipped
from ..dataflow.tracing import Trace
from ..sites import ShiftSite

__all__ = ["Library"]


class Library(Protocol):
    """Rules for the models of a library."""

    def is_model(self, module: nn.Module) -> bool:
        """Whether a module is a whole model of images, and not a part of one."""
        ...

    def find_sites(self, model: nn.Module, place: str) -> Sequence[ShiftSite] | None:
        """The sites of a model by a rule of its own, named relative to it; None for what the dataflow decides."""
        return None

    def refusal(self, model: nn.Module) -> str | None:
        """Why a model gets no shift unless it is asked for site by site."""
        return None

    def lost_when_reparameterised(self, sites: Sequence[ShiftSite], graph: Trace) -> Sequence[Skipped]:
        """The sites that the library's own merging of branches would lose."""
        return ()
