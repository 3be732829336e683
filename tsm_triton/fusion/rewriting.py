"""Rewriting of a model's graph on the fused ops.

The graph is of ATen calls, as `torch.export` and `torch.compile` trace them ahead of autograd. No class of a
model is known here: what counts is which operator follows which.
"""

from collections.abc import Sequence

from torch.fx import Graph, Node

from .editing import EditedGraph
from .graphs import is_sum, site_of
from .patterns import OF_CONVOLUTIONS, OF_SHIFTS, Place
from .report import Fusion, FusionReport
from .steps import SHIFTS

__all__ = ["rewrite"]


def rewrite(graph: Graph, *, training: bool = False) -> FusionReport:
    """Rewrite a graph in place, whose nodes carry their values' shapes in `meta["val"]`.

    Args:
        graph: of ATen calls, batch-norm and convolution not taken apart.
        training: only `residual + shift`, which a gradient goes through at no pass of its own; a
            batch-norm's statistics are computed and updated as ever.

    Example:
        >>> import torch, tsm_triton
        >>> class Branch(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv = torch.nn.Conv2d(16, 8, 1)
        ...
        ...     def forward(self, x):
        ...         return self.conv(tsm_triton.temporal_shift(x, 4)).relu()
        >>> x = torch.randn(8, 16, 3, 3).contiguous(memory_format=torch.channels_last)
        >>> program = torch.export.export(Branch(), (x,))
        >>> print(rewrite(program.module().graph))
        1 fused, 0 left, 0 batch-norms folded
        fused  conv  shift + conv1x1  relu
    """
    edited = EditedGraph(graph, FusionReport(), training=training)
    of_shifts, of_convolutions = (
        [pattern for pattern in patterns if pattern.trains or not training]
        for patterns in (OF_SHIFTS, OF_CONVOLUTIONS)
    )
    refused = _apply(of_shifts, edited)
    left = _left(of_shifts, edited, refused)
    _apply(of_convolutions, edited)
    there = set(graph.nodes)
    edited.report.left += [entry for node, entry in left.items() if node in there]
    graph.lint()
    return edited.report


def _apply(patterns: Sequence[type[Place]], graph: EditedGraph) -> dict[Node, str]:
    """Rewrite every place of the patterns; the shifts and sums of those better left, and why."""
    refused: dict[Node, str] = {}
    for pattern in patterns:
        for node in list(graph.graph.nodes):
            if node.target not in pattern.starts:
                continue
            place = pattern(graph, node)
            if place.why_not() is not None:
                continue
            reason = place.why_left()
            if reason is None:
                graph.report.fused.append(place.apply())
            else:
                refused.update(dict.fromkeys(place.parts, reason))
    return refused


def _left(
    patterns: Sequence[type[Place]], graph: EditedGraph, refused: dict[Node, str]
) -> dict[Node, Fusion]:
    """Each shift and each sum of two equal shapes that is still there, and why it is."""
    found = {}
    for node in graph.graph.nodes:
        if node.target not in SHIFTS and not is_sum(node):
            continue
        reasons = (pattern.why_no_part(graph, node) for pattern in patterns)
        reason = refused.get(node) or ", ".join(filter(None, reasons))
        if reason:  # no pattern in use takes it otherwise
            found[node] = Fusion(site_of(node), "residual" if is_sum(node) else "shift", reason)
    return found
