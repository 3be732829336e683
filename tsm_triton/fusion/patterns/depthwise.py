"""A convolution of each channel with a kernel of its own."""

from torch.fx import Node

from ... import ops
from ..convolutions import convolution_form, is_depthwise
from .place import Convolved

__all__ = ["Depthwise"]


class Depthwise(Convolved):
    """`act(norm(conv(x)))` as one op of inference."""

    kind = "depthwise"

    def why_not(self) -> str | None:
        if convolution_form(self.node) is None or not is_depthwise(self.node):
            return "channels are summed"
        return "the convolution stands alone" if self.bare and self.activation == "none" else None

    def call(self, weight: Node | None, bias: Node | None, identity: Node | None) -> Node:
        form = convolution_form(self.node)
        assert form is not None
        return self.graph.call(ops.depthwise_convolution, self.x, weight, bias, *form[:3], self.activation)
