"""On which axes of a site's input the frames and the channels stand."""

from math import prod

from torch import nn

from .kinds import BATCH_NORMS, NORMS, PROJECTIONS, VIEWS
from .tracing import BATCH, Call, Trace, Value

__all__ = ["channel_axis", "frame_counter", "frames_outermost"]


def frames_outermost(value: Value) -> bool:
    """Whether the rows of a folded batch axis are sorted by frame."""
    while value.shape[0] != BATCH:
        if not value.parents:
            return False
        if value.op in ("permute", "transpose", "t"):
            moved = value.arguments[0] if value.op == "permute" else value.arguments or (0, 1)
            if (value.op == "permute" and moved[0] != 0) or (value.op != "permute" and 0 in moved):
                return False
        value = value.parents[0]
    return True


def frame_counter(call: Call, graph: Trace) -> str:
    """The module nearest around a call whose input has a row for each frame, else the model's first."""
    around = [outer for outer in call.enclosing() if outer.parent is not None]
    for outer in [*around, *(other for other in graph.calls if other.parent is graph.calls[0])]:
        if outer.first is not None and outer.first.shape[0] == BATCH:
            return outer.name
    return ""


def channel_axis(call: Call, value: Value, graph: Trace) -> int:
    """1 or -1: the axis that the first weights of the call take for the channels, seen from its input."""
    last = len(value.shape) - 1
    known = {value.index: {axis: axis for axis in (1, last)}}
    for inner in graph.values[call.start : call.end]:
        for parent in inner.parents:
            axes = known.get(parent.index, {})
            wanted = _channels_of(inner, parent)
            for start, axis in axes.items():
                if axis == wanted:
                    return 1 if start == 1 else -1
            carried = {
                start: to for start, axis in axes.items() if (to := _carried(inner, parent, axis)) is not None
            }
            if carried:
                known.setdefault(inner.index, carried)
    return 1 if len(value.shape) == 4 and not isinstance(call.module, nn.LayerNorm) else -1


def _channels_of(value: Value, parent: Value) -> int | None:
    """The axis of its parent that an op's weights match."""
    if not value.weights and value.op not in NORMS:
        return None
    if value.op in BATCH_NORMS or value.op in ("convolution", "native_group_norm"):
        return 1
    if value.op in NORMS or value.op in ("addmm", "mm", "linear"):
        return len(parent.shape) - 1
    if value.op in ("mul", "add"):
        wide = [axis - len(value.weights[0]) for axis, size in enumerate(value.weights[0]) if size > 1]
        return len(parent.shape) + wide[0] if len(wide) == 1 else None
    return None


def _carried(value: Value, parent: Value, axis: int) -> int | None:
    """Where an axis of the parent stands in what an op makes of it."""
    dims = len(parent.shape)
    if value.op == "permute":
        return [dim % dims for dim in value.arguments[0]].index(axis)
    if value.op in ("transpose", "t"):
        one, other = (dim % dims for dim in value.arguments or (0, 1))
        return {one: other, other: one}.get(axis, axis)
    if value.op == "select":
        dim = value.arguments[0] % dims
        return None if axis == dim else axis - (axis > dim)
    if value.op in VIEWS:
        for to, size in enumerate(value.shape):
            if size == parent.shape[axis] and prod(value.shape[:to]) == prod(parent.shape[:axis]):
                return to
        return None
    return axis if len(value.shape) == dims and value.op not in PROJECTIONS else None
