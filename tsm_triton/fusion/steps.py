"""The shift of one streamed frame in a graph: `shift_step`, which returns the shifted map and what it kept."""

import operator

from torch.fx import Graph, Node

from .. import ops
from .graphs import name_of

__all__ = ["SHIFTS", "cache_of", "convolved_step", "shift_before", "shifted_map", "why_cache_is_read"]

SHIFTS = (ops.temporal_shift, ops.shift_step)


def shifted_map(shift: Node) -> Node | None:
    """The node of the map that a shift makes: a step's first output, None where nothing reads it.

    Example:
        >>> graph = Graph()
        >>> x, cache = graph.placeholder("x"), graph.placeholder("cache")
        >>> step = graph.call_function(ops.shift_step, (x, cache, 1))
        >>> y = graph.call_function(operator.getitem, (step, 0))
        >>> shifted_map(step) is y, shift_before(y) is step, shift_before(x)
        (True, True, None)
    """
    return shift if shift.target is not ops.shift_step else _output(shift, 0)


def shift_before(x: Node) -> Node | None:
    """The shift that made a map, of a clip or of one frame; None for any other map."""
    if x.target is ops.temporal_shift:
        return x
    source = x.args[0] if x.target is operator.getitem and x.args[1] == 0 else None
    return source if isinstance(source, Node) and source.target is ops.shift_step else None


def cache_of(shift: Node) -> Node | None:
    """What a step reads beside its map, None for the shift of a clip."""
    cache = shift.args[1] if shift.target is ops.shift_step else None
    return cache if isinstance(cache, Node) else None


def why_cache_is_read(shift: Node) -> str | None:
    """Why what a step keeps cannot come out of a later node, None where nothing but the graph's end reads it."""
    kept = _output(shift, 1) if shift.target is ops.shift_step else None
    reader = next((user for user in kept.users if user.op != "output"), None) if kept is not None else None
    return None if reader is None else f"cache goes to {name_of(reader)}"


def convolved_step(
    graph: Graph,
    step: Node,
    weight: Node | None,
    bias: Node | None,
    identity: Node | None,
    activation: str,
) -> Node:
    """Insert the step and the convolution behind it as one op, whose cache takes the place of the step's.

    Returns:
        The convolution's output; the step itself is still there.
    """
    x, cache = step.args[:2]
    both = graph.call_function(ops.shift_step_conv1x1, (x, cache, weight, bias, identity, activation))
    out, kept = [graph.call_function(operator.getitem, (both, i)) for i in (0, 1)]
    old = _output(step, 1)
    if old is not None:
        kept.meta = dict(old.meta)
        old.replace_all_uses_with(kept)
        graph.erase_node(old)
    return out


def _output(step: Node, index: int) -> Node | None:
    return next((user for user in step.users if user.args[1] == index), None)
