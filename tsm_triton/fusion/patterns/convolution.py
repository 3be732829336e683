"""A convolution of any size, with what cuDNN does on the way: bias, sum and ReLU."""

from torch.fx import Node

from ... import ops
from ..convolutions import convolution_form, is_depthwise, is_stem
from ..editing import EditedGraph
from .place import Convolved

__all__ = ["Convolution"]


class Convolution(Convolved):
    """`relu(norm(conv(x)) + identity)` as one op of inference."""

    takes_sum = True

    def __init__(self, graph: EditedGraph, node: Node) -> None:
        super().__init__(graph, node)
        self.kind = "convolution" if self.identity is None else "convolution + residual"

    def why_not(self) -> str | None:
        if convolution_form(self.node) is None:
            return "cuDNN's kernels take no such form"
        if is_depthwise(self.node) or is_stem(self.node):
            return "an op of its own"
        return None if self.activation == "relu" else "cuDNN's kernels end in ReLU alone"

    def call(self, weight: Node | None, bias: Node | None, identity: Node | None) -> Node:
        form = convolution_form(self.node)
        assert form is not None
        return self.graph.call(ops.convolution, self.x, weight, bias, identity, *form, self.activation)
