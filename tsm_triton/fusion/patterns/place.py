"""What the patterns share: what each of them is, and all that stands behind a convolution and joins its op."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch.fx import Node

from .. import choice
from ..convolutions import convolution_form
from ..editing import EditedGraph
from ..folding import folded, running_norm_behind
from ..graphs import CONVOLUTIONS, activation_behind, arguments, only_user, other_operand, site_of
from ..norms import joined_bias
from ..report import Fusion

__all__ = ["SLOWER", "Convolved", "Place"]

aten = torch.ops.aten
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


class Convolved(Place):
    """`act(norm(conv(x)) + identity)` as one op, with what there is of it.

    Attributes:
        x, weight, bias: what the convolution reads.
        norm: the batch-norm behind it, or None.
        add, identity: the sum behind that and what it adds, or None.
        activation: its name, "none" where none follows.
        end: the last of them all, whose value the op returns.
        takes_sum: whether the op adds an identity.
    """

    starts = CONVOLUTIONS
    takes_sum: ClassVar[bool] = False

    def __init__(self, graph: EditedGraph, node: Node) -> None:
        super().__init__(graph, node)
        values = arguments(node)
        self.x, self.weight, self.bias = values["input"], values["weight"], values["bias"]
        self.norm = running_norm_behind(node)
        end = node if self.norm is None else self.norm
        add = only_user(end) if self.takes_sum else None
        self.identity = None if add is None else other_operand(add, end)
        self.add = None if self.identity is None else add
        self.activation, self.end = activation_behind(self.add or end)

    @property
    def parts(self) -> tuple[Node, ...]:
        return () if self.add is None else (self.add,)

    @property
    def site(self) -> str:
        """As in `Fusion.site`."""
        return site_of(self.node)

    @property
    def reads(self) -> set[Node | None]:
        """What the op will read."""
        return {self.x, self.weight, self.bias, self.identity}

    @property
    def bare(self) -> bool:
        """Whether nothing is added to the products."""
        return self.norm is None and self.bias is None

    @abstractmethod
    def call(self, weight: Node | None, bias: Node | None, identity: Node | None) -> Node:
        """Insert the op, whose weight and bias do the batch-norm's work."""

    def why_left(self) -> str | None:
        x, out = self.x.meta["val"], self.node.meta["val"]
        if x.dtype != out.dtype:
            return f"input is {x.dtype}, output {out.dtype}"
        if not self.graph.written.isdisjoint(self.reads):
            return "an input is written in place"
        # The op writes channels_last, and views behind it may rely on what the graph has. Its kernel would copy an
        # input of another layout.
        there = self.graph.channels_last
        if self.end not in there or (out.device.type != "cpu" and self.x not in there):
            return "the graph is not channels_last here"
        return None if choice.is_faster(self.kind, x) else SLOWER

    def apply(self) -> Fusion:
        graph, dtype, identity = self.graph, self.node.meta["val"].dtype, self.identity
        with graph.before(self.end):
            if self.norm is not None:
                weight, bias = folded(graph, self.node, self.norm, dtype)
            else:
                weight, bias = graph.cast(self.weight, dtype), graph.cast(self.bias, dtype)
        if identity is not None:
            identity, bias = _joined(graph, identity, bias, self.end)
        with graph.before(self.end):
            fused = self.call(weight, bias, identity)
        fusion = Fusion(self.site, self.kind, self.activation)
        graph.replace(self.end, fused)
        return fusion


def _joined(graph: EditedGraph, identity: Node, bias: Node | None, end: Node) -> tuple[Node, Node | None]:
    """The identity without the bias of its own batch-norm, which joins `bias`: so a shortcut needs no pass."""
    if (
        not choice.rewrites_convolutions(identity.meta["val"])
        or identity.target is not aten.batch_norm.default
    ):
        return identity, bias
    conv, dtype = arguments(identity)["input"], identity.meta["val"].dtype
    plain = conv.target in CONVOLUTIONS and convolution_form(conv) is not None and len(identity.users) == 1
    if (
        not plain
        or running_norm_behind(conv) is not identity
        or not graph.written.isdisjoint({conv, identity})
    ):
        return identity, bias
    with graph.before(conv):
        weight, other = folded(graph, conv, identity, dtype)
    with graph.before(end):
        bias = other if bias is None else graph.call(joined_bias, other, bias)
    conv.args = (conv.args[0], weight, None, *conv.args[3:])
    graph.replace(identity, conv)
    return conv, bias
