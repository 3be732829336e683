"""Which maps of a graph lie in channels_last when it runs.

On a CPU a graph's meta data say it. On a GPU they do not: of a convolution with a symbolic batch they describe a
contiguous result, whatever cuDNN will return. There the layout is followed from what enters the graph: cuDNN
returns channels_last where its input or its weight is, and the other operators keep what they are given.
"""

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .. import ops
from .graphs import CONVOLUTIONS, FRESH, arguments, known

__all__ = ["channels_last_maps", "is_channels_last"]

aten = torch.ops.aten

# Beside the calls that return fresh memory: what keeps its operand's layout, or the operand itself.
_KEEPING = FRESH | {
    aten.alias.default,
    aten.cat.default,
    aten.clamp.default,
    aten.clone.default,
    aten.constant_pad_nd.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.div.Tensor,
    aten.dropout.default,
    aten.leaky_relu.default,
    aten.mish.default,
    aten.mul.Scalar,
    aten.pad.default,
    aten.sub.Tensor,
    aten.tanh.default,
    aten.to.dtype,
    aten.upsample_bilinear2d.vec,
    aten.upsample_nearest2d.vec,
}


def channels_last_maps(graph: Graph) -> set[Node]:
    """The nodes whose 4-D values lie in channels_last.

    Example:
        >>> x = torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
        >>> graph = torch.export.export(torch.nn.ReLU(), (x,)).graph
        >>> [node.op for node in graph.nodes if node in channels_last_maps(graph)]
        ['placeholder', 'call_function']
    """
    found: set[Node] = set()
    for node in graph.nodes:
        value = node.meta.get("val")
        if (
            isinstance(value, Tensor)
            and value.dim() == 4
            and (is_channels_last(value) or _keeps(node, found))
        ):
            found.add(node)
    return found


def is_channels_last(x: Tensor) -> bool:
    """The question of `is_contiguous`, of which symbolic sizes make no guard."""
    channels, width = x.shape[1], x.shape[3]
    strides = ((1, 1), (3, channels), (2, channels * width))
    return all(known(x.stride(axis) == stride) for axis, stride in strides)


def _keeps(node: Node, found: set[Node]) -> bool:
    """Whether a GPU's call returns channels_last because of what it reads."""
    if node.meta["val"].device.type == "cpu":
        return False
    if node.target is operator.getitem and node.args[0].target is ops.shift_step:  # type: ignore[union-attr]
        return node.args[0].args[0] in found  # type: ignore[union-attr]
    if node.target not in _KEEPING:
        return False
    if node.target in CONVOLUTIONS:
        values = arguments(node)
        return values["input"] in found or values["weight"] in found
    wanted: Any = arguments(node).get("memory_format")
    if wanted not in (None, torch.preserve_format):
        return wanted == torch.channels_last
    # maps before vectors a channel, which every layout takes; of several maps the first one's layout wins
    maps = [x for x in node.all_input_nodes if _is_map(x)]
    return bool(maps) and maps[0] in found


def _is_map(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() == 4 and not known(value.shape[2] * value.shape[3] == 1)
