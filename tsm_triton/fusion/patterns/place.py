"""What every pattern is: a class, of which an instance is one place of a graph."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch.fx import Node

from ..editing import EditedGraph
from ..report import Fusion

__all__ = ["SLOWER", "Place"]

SLOWER = "the fused form is slower here"


class Place(ABC):
    """A place of a graph, read as one pattern; reading changes nothing.

    Args:
        graph: that is rewritten.
        node: where the place begins, a call of one of `starts`.

    Attributes:
        starts: the operators that a place of this pattern can begin with.
        trains: whether it is rewritten where gradients are wanted, too.
        kind: as in `Fusion.kind`.
        parts: the shifts and sums that become part of the fused op.
    """

    starts: ClassVar[tuple[Any, ...]]
    trains: ClassVar[bool] = False
    kind: str

    def __init__(self, graph: EditedGraph, node: Node) -> None:
        self.graph = graph
        self.node = node

    @property
    def parts(self) -> tuple[Node, ...]:
        return ()

    @abstractmethod
    def why_not(self) -> str | None:
        """Why this is no place of the pattern, None where it is one."""

    @abstractmethod
    def why_left(self) -> str | None:
        """Why a place of the pattern is better left as it is, None where it is not."""

    @abstractmethod
    def apply(self) -> Fusion:
        """Rewrite it."""

    @staticmethod
    def why_no_part(graph: EditedGraph, node: Node) -> str | None:
        """What the report says of a shift or a sum that is part of no such place; None where that is nothing."""
        return None
