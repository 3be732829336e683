"""The sum that ends a residual block, with the shift that opens the next one."""

import operator

import torch
from torch.fx import Node

from ... import ops
from .. import choice
from ..editing import EditedGraph
from ..folding import affine, norm_before
from ..graphs import activation_of, arguments, is_sum, name_of, operands, site_of
from ..report import Fusion
from .place import SLOWER, Place

__all__ = ["ResidualShift"]

aten = torch.ops.aten


class ResidualShift(Place):
    """`y = act(norm(branch) + identity)` with the shift of y as one op.

    Attributes:
        y: the map that is shifted.
        add: the sum that it is, or that its activation reads.
        activation: its name, "none" where there is none.
    """

    starts = (ops.temporal_shift,)
    trains = True
    kind = "residual + shift"

    def __init__(self, graph: EditedGraph, node: Node) -> None:
        super().__init__(graph, node)
        self.y: Node = arguments(node)["x"]
        self.activation, self.add = activation_of(self.y)

    @property
    def parts(self) -> tuple[Node, ...]:
        return (self.node,)

    def why_not(self) -> str | None:
        if (channel_dim := arguments(self.node)["channel_dim"]) != 1:
            return f"channels on axis {channel_dim}"
        if self.add.target is not aten.add.Tensor:
            sums = [node for node in self.y.all_input_nodes if node.target is aten.add.Tensor]
            return f"activation {name_of(self.y)}" if sums else f"input is {name_of(self.y)}"
        if self.activation != "none" and len(self.add.users) != 1:
            return f"sum has {len(self.add.users)} users"
        if arguments(self.add)["alpha"] != 1 or not is_sum(self.add):
            return "sum of different shapes"
        return (
            None if self.graph.written.isdisjoint({self.y, *operands(self.add)}) else "sum written in place"
        )

    def why_left(self) -> str | None:
        return None if choice.is_faster(self.kind, self.add.meta["val"]) else SLOWER

    def apply(self) -> Fusion:
        graph, scale, bias = self.graph, None, None
        branch, identity, norm = self._operands()
        with graph.before(self.y):
            if norm is not None:
                branch, scale, bias = affine(graph, norm)
            counts = self.node.args[1:5]
            both = graph.call(ops.residual_shift, branch, scale, bias, identity, *counts, self.activation)
            both.meta = {key: value for key, value in self.node.meta.items() if key != "val"}
            first, second = [graph.call(operator.getitem, both, i) for i in (0, 1)]
        fusion = Fusion(site_of(self.node), self.kind, self.activation)
        graph.replace(self.y, first)
        graph.replace(self.node, second)
        return fusion

    def _operands(self) -> tuple[Node, Node, Node | None]:
        """The branch, the identity, and the batch-norm of the branch that the op does too, or None."""
        branch, identity = operands(self.add)
        if not self.graph.training and not choice.takes_norm(branch.meta["val"]):
            return branch, identity, None
        norm = norm_before(self.graph, branch)
        if norm is None and (norm := norm_before(self.graph, identity)) is not None:
            branch, identity = identity, branch
        return branch, identity, norm

    @staticmethod
    def why_no_part(graph: EditedGraph, node: Node) -> str | None:
        return ResidualShift(graph, node).why_not() if node.target in ResidualShift.starts else None
