"""A network's first convolution, of as few channels as an image has."""

from torch.fx import Node

from ... import ops
from ..convolutions import convolution_form, is_stem
from .place import Convolved

__all__ = ["Stem"]


class Stem(Convolved):
    """`act(norm(conv(x)))` as one op of inference."""

    kind = "stem"

    def why_not(self) -> str | None:
        if not is_stem(self.node):
            return "more channels than an image has"
        return "the convolution adds no bias" if self.bare else None

    def call(self, weight: Node | None, bias: Node | None, identity: Node | None) -> Node:
        form = convolution_form(self.node)
        assert form is not None
        return self.graph.call(ops.stem_convolution, self.x, weight, bias, *form[:2], self.activation)
