"""A 1x1 convolution that reads its input shifted, of a clip or of one frame; or one that reads it as it is."""

from torch.fx import Node

from ... import ops
from ...ops.shift_conv1x1 import UNSHIFTED
from .. import choice
from ..convolutions import why_not_pointwise
from ..editing import EditedGraph
from ..graphs import CONVOLUTIONS, arguments, is_sum, name_of, operands, site_of
from ..steps import cache_of, convolved_step, shift_before, shifted_map, why_cache_is_read
from .place import Convolved

__all__ = ["ShiftConv1x1"]


class ShiftConv1x1(Convolved):
    """`act(norm(conv1x1(shift(x))) + identity)` as one op, with what there is of it.

    Attributes:
        shift: in front of the convolution, where nothing else needs what it makes, or None.
        cache: what the shift of one frame reads beside its map, or None.
    """

    takes_sum = True

    def __init__(self, graph: EditedGraph, node: Node) -> None:
        super().__init__(graph, node)
        shift = shift_before(self.x)
        self.shift = None if shift is None or _why_not_absorbed(graph, shift) is not None else shift
        self.cache = None if self.shift is None else cache_of(self.shift)
        if self.shift is not None:
            self.x = arguments(self.shift)["x"]
        names = ("shift" * (self.shift is not None), "conv1x1", "residual" * (self.identity is not None))
        self.kind = " + ".join(filter(None, names))

    @property
    def site(self) -> str:
        return super().site if self.shift is None else site_of(self.shift, self.node)

    @property
    def parts(self) -> tuple[Node, ...]:
        return super().parts if self.shift is None else (self.shift, *super().parts)

    @property
    def reads(self) -> set[Node | None]:
        return super().reads | {self.cache}

    def why_not(self) -> str | None:
        # a bias alone is worth the op where it would be a pass of its own
        alone = self.bare or not choice.rewrites_convolutions(self.node.meta["val"])
        if self.kind == "conv1x1" and self.activation == "none" and alone:
            return "the convolution stands alone"
        return why_not_pointwise(self.node)

    def call(self, weight: Node | None, bias: Node | None, identity: Node | None) -> Node:
        if self.shift is not None and self.cache is not None:
            return convolved_step(self.graph.graph, self.shift, weight, bias, identity, self.activation)
        counts = UNSHIFTED if self.shift is None else self.shift.args[1:5]
        return self.graph.call(ops.shift_conv1x1, self.x, weight, bias, identity, *counts, self.activation)

    @staticmethod
    def why_no_part(graph: EditedGraph, node: Node) -> str | None:
        if is_sum(node):
            return f"no 1x1 convolution ends in {' + '.join(map(name_of, operands(node)))}"
        return _why_not_absorbed(graph, node)


def _why_not_absorbed(graph: EditedGraph, shift: Node) -> str | None:
    """Why the convolution behind a shift cannot read shifted, None where it can."""
    if (channel_dim := arguments(shift)["channel_dim"]) != 1:
        return f"channels on axis {channel_dim}"
    if shift.args[0] in graph.written:
        return "input written in place"
    shifted = shifted_map(shift)
    if shifted is None or len(shifted.users) != 1:
        return f"shift has {0 if shifted is None else len(shifted.users)} users"
    (user,) = shifted.users
    if user.target not in CONVOLUTIONS or arguments(user)["input"] is not shifted:
        return f"{name_of(user)} follows"
    return why_not_pointwise(user) or why_cache_is_read(shift)
