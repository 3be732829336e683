"""Where any traceable model is shifted: residual merges in its dataflow, and the modules that begin branches.

The site is the outermost module call inside the branch that receives the branch's root, or what is made of it
alone; past the norm and activation of a pre-activation block.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from torch import Tensor, nn

from ..sites import ShiftSite
from .axes import channel_axis, frame_counter, frames_outermost
from .kinds import ACTIVATIONS, BATCH_NORMS, NORMS, PARTS, PROJECTIONS, SCALES, VIEWS
from .merges import Lineage, Merge, Skipped, concatenations, place_of, residual_merges
from .tracing import BATCH, Call, Trace, Value, input_shape, trace

__all__ = ["Analysis", "analyse"]

HEADS = ("classifier", "head")


@dataclass
class Analysis:
    """What was found in a model: the sites in the order they run, and what was left out with the reasons."""

    graph: Trace
    sites: list[ShiftSite] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)


def analyse(
    model: nn.Module,
    place: str = "blockres",
    *,
    example_input: Tensor | None = None,
    graph: Trace | None = None,
) -> Analysis:
    """The sites of a model, and what gets no shift for which reason.

    Args:
        model: any module that takes one tensor, patched or not; it is not run nor changed.
        place: `"blockres"` or `"block"`.
        example_input: gives the input's shape where the model does not say it.
        graph: the model's trace, where there is one already.

    Raises:
        ValueError: the model cannot be traced.

    Example:
        >>> import timm
        >>> analyse(timm.create_model("test_vit")).sites[0]
        ShiftSite('blocks.0.norm1', LayerNorm, channels=64, channel_dim=-1)
    """
    graph = graph or trace(model, input_shape(model, example_input), shifted=False)
    found = Analysis(graph)
    lineage = Lineage(graph.values)
    found.merges = residual_merges(graph.values, lineage, found.skipped)
    entries: dict[Call, Value] = {}
    for merge in [*found.merges, *concatenations(graph.values, lineage, found.merges)]:
        begin = _blocks(merge) if place == "block" else _entries(merge, graph)
        if not begin:
            found.skipped.append(Skipped(place_of(merge.value), "no module call receives the branch's input"))
        elif merge.value.op != "cat":
            entries = {**begin, **entries}
        elif not any(_overlap(call, other) for call in begin for other in entries if other not in begin):
            entries = {**begin, **entries}
            found.merges.append(merge)
    if place == "block" and not entries:
        entries = _stages(model, graph)
    _make_sites(model, entries, found)
    return found


def _overlap(one: Call, other: Call) -> bool:
    return one in other.enclosing() or other in one.enclosing()


def _entries(merge: Merge, graph: Trace) -> dict[Call, Value]:
    """The module calls that begin the branch, with the values they receive."""
    dense = merge.value.op == "cat"
    outside = set(merge.value.call.enclosing())
    found: dict[Call, Value] = {}
    pending, seen = [merge.root], {merge.root.index}
    while pending:
        value = pending.pop(0)
        for child in _children(value, merge):
            call = _receiver(child, value, outside)
            if call is not None:
                found.setdefault(call, value)
            elif child.index not in seen and _of_one(child, dense):
                seen.add(child.index)
                pending.append(child)
    if merge.sliced:
        # Res2Net and its like add one slice to what another went through: those are no residuals.
        found = {call: value for call, value in found.items() if value is merge.root}
    else:
        found = found or _dominator(merge, graph, outside)
    # What a gate pools from the root is no beginning where the root itself goes into another module.
    whole = {call: value for call, value in found.items() if prod(value.shape) >= prod(merge.root.shape)}
    found = whole or found
    return dict(_past_activation(call, value, merge, outside, graph) for call, value in found.items())


def _children(value: Value, merge: Merge) -> list[Value]:
    """What the branch makes of a value."""
    return [child for child in value.children if child.index in merge.within]


def _receiver(child: Value, value: Value, outside: set[Call]) -> Call | None:
    """The outermost module call around `child` that began with `value`."""
    inside = [call for call in child.call.enclosing() if call not in outside and call.first is value]
    return inside[-1] if inside else None


def _of_one(value: Value, dense: bool = False) -> bool:
    """Whether a value is made of all of one other alone, without weights that mix channels."""
    if value.op in PROJECTIONS | NORMS or (value.op in PARTS and not dense):
        return False
    return len(value.parents) == 1 or (dense and value.op == "cat")


def _dominator(merge: Merge, graph: Trace, outside: set[Call]) -> dict[Call, Value]:
    """The first module call behind the root through whose input all of the branch runs."""
    reach = max((child.index for child in _children(merge.root, merge)), default=0)
    for index in sorted(merge.within):
        value = graph.values[index]
        children = _children(value, merge)
        if reach <= index and children:
            calls = {_receiver(child, value, outside) for child in children}
            call = calls.pop()
            if call is not None and not calls:
                return {call: value}
        reach = max([reach, *(child.index for child in children)])
    return {}


def _past_activation(
    call: Call, value: Value, merge: Merge, outside: set[Call], graph: Trace
) -> tuple[Call, Value]:
    """Step over a batch norm, or another norm with its activation, to the convolution they prepare.

    Downsample blocks share the pre-activation with their shortcut: there the branch begins behind it.
    """
    first = call, value
    while call.output is not None and _prepares(call, graph):
        value = call.output
        children = _children(value, merge)
        while len(children) == 1 and _receiver(children[0], value, outside) is None and _of_one(children[0]):
            value = children[0]
            children = _children(value, merge)
        calls = {_receiver(child, value, outside) for child in children}
        following = calls.pop() if calls else None
        if following is None or calls:
            break
        call = following
        weighted = (inner.op for inner in graph.values[call.start : call.end] if inner.weights)
        if next(weighted, None) == "convolution":
            return call, value
    return first


def _prepares(call: Call, graph: Trace) -> bool:
    made = {inner.op for inner in graph.values[call.start : call.end]}
    norms = BATCH_NORMS | {"native_group_norm"} if hasattr(call.module, "act") else BATCH_NORMS
    return bool(made) and made <= ACTIVATIONS | SCALES | VIEWS | norms


def _blocks(merge: Merge) -> dict[Call, Value]:
    """The module call whose own input the merge's root is."""
    for call in merge.value.call.enclosing():
        if call.parent is not None and call.first is merge.root:
            return {call: merge.root}
    return {}


def _stages(model: nn.Module, graph: Trace) -> dict[Call, Value]:
    """For models without residuals: each block of the outermost containers but the stem, and not the head."""
    names = set(_flat_children(model))
    mixing = [
        call
        for call in graph.calls
        if call.name in names
        and any(value.op in PROJECTIONS and value.weights for value in graph.values[call.start : call.end])
    ]
    blocks = [call for call in mixing[1:] if call.name.partition(".")[0] not in HEADS]
    # where most stand in containers, the others are layers of the stem and the head
    inside = [call for call in blocks if "." in call.name]
    blocks = inside if 2 * len(inside) > len(blocks) else blocks
    return {call: call.first for call in blocks if call.first and prod(call.first.shape[2:]) > 1}


def _flat_children(module: nn.Module, prefix: str = "") -> Iterator[str]:
    for name, child in module.named_children():
        if isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            yield from _flat_children(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            yield f"{prefix}{name}"


def _make_sites(model: nn.Module, entries: dict[Call, Value], found: Analysis) -> None:
    counts = Counter(call.name for call in found.graph.calls)
    planned = Counter(call.name for call in entries)
    done: set[str] = set()
    for call, value in sorted(entries.items(), key=lambda entry: entry[0].start):
        if call.name in done:
            continue
        done.add(call.name)
        axis = channel_axis(call, value, found.graph)
        reason = None
        if planned[call.name] != counts[call.name]:
            reason = f"of its {counts[call.name]} calls only {planned[call.name]} begin a branch"
        elif value.shape[0] % BATCH or not frames_outermost(value):
            reason = (
                f"its input's first axis does not hold the frames: shape {value.shape} for {BATCH} frames"
            )
        if reason is not None:
            found.skipped.append(Skipped(call.name, reason))
            continue
        folded = value.shape[0] != BATCH
        found.sites.append(
            ShiftSite(
                call.name,
                model.get_submodule(call.name),
                value.shape[axis],
                axis,
                frame_counter(call, found.graph) if folded else None,
            )
        )
