"""Where any traceable model is shifted: residual merges in its dataflow, and the modules that begin branches.

A residual merge is an `add` of two values of one shape, `shortcut` and `branch`, such that some `root` leads
to `branch` through weights, and to `shortcut` freely (views, sums, scales: an identity) or lightly (one
projection, pooling, norms, fewer weights than the branch: a downsample). The site is the outermost module call
inside the branch that receives the root, or what is made of it alone; past the norm and activation of a
pre-activation block. Where models concatenate instead (DenseNet, VoVNet, ShuffleNetV2), the merge is a `cat`
that holds the root, or a slice of it, beside the branch.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from ..sites import ShiftSite
from .tracing import BATCH, Call, Trace, Value, input_shape, trace

__all__ = ["Analysis", "Merge", "Skipped", "analyse", "verify_shifts"]

VIEWS = {
    "_reshape_alias", "_to_copy", "_unsafe_view", "alias", "clone", "contiguous", "detach", "dropout",
    "expand", "lift_fresh", "native_dropout", "permute", "reshape", "squeeze", "t", "transpose", "unflatten",
    "unsqueeze", "view",
}  # fmt: skip
PARTS = {
    "as_strided", "gather", "index", "index_select", "narrow", "select", "slice", "split", "split_with_sizes",
    "unbind",
}  # fmt: skip
SELECTIONS = PARTS | {"constant_pad_nd", "flip", "roll"}
SCALES = {"add", "cat", "copy", "div", "mul", "sub"}  # with one operand that depends on the input
POOLS = {
    "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "avg_pool2d", "max_pool2d", "max_pool2d_with_indices",
    "mean", "pixel_unshuffle", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d",
}  # fmt: skip
PROJECTIONS = {"addmm", "baddbmm", "bmm", "convolution", "linear", "mm"}
BATCH_NORMS = {
    "_batch_norm_no_update", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm", "native_batch_norm",
}  # fmt: skip
NORMS = BATCH_NORMS | {"native_group_norm", "native_layer_norm", "_fused_rms_norm", "rms_norm"}
ACTIVATIONS = {
    "celu", "clamp", "clamp_min", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish",
    "prelu", "_prelu_kernel", "relu", "relu6", "sigmoid", "silu", "softplus", "tanh",
}  # fmt: skip
LINEAR = VIEWS | SELECTIONS | SCALES | POOLS | PROJECTIONS | BATCH_NORMS


@dataclass(eq=False)
class Merge:
    """An `add` (or `cat`) of a shortcut and a branch that part at `root`.

    Attributes:
        value: the sum.
        root: where they part.
        branch: the end of the branch.
        shortcut: the values from the root's first child on the shortcut to its end; empty where the root
            itself is added.
        within: numbers of the values between root and branch.
        light: whether the shortcut projects or pools.
        sliced: whether the shortcut takes only a part of the root, as class attention does.
    """

    value: Value
    root: Value
    branch: Value
    shortcut: tuple[Value, ...]
    within: frozenset[int]
    light: bool = False
    sliced: bool = False


@dataclass(frozen=True)
class Skipped:
    """A merge or a module that gets no shift, and why."""

    name: str
    reason: str


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
        model: any module that takes one tensor; it is not run nor changed.
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
    graph = graph or trace(model, input_shape(model, example_input))
    found = Analysis(graph)
    lineage = _Lineage(graph.values)
    found.merges = _without_inner(list(_residual_merges(graph.values, lineage, found.skipped)), found.skipped)
    entries: dict[Call, Value] = {}
    for merge in [*found.merges, *_concatenations(graph.values, lineage, found.merges)]:
        begin = _blocks(merge) if place == "block" else _entries(merge, graph)
        if not begin:
            found.skipped.append(Skipped(_place(merge.value), "no module call receives the branch's input"))
        elif merge.value.op != "cat":
            entries = {**begin, **entries}
        elif not any(_overlap(call, other) for call in begin for other in entries if other not in begin):
            entries = {**begin, **entries}
            found.merges.append(merge)
    if place == "block" and not entries:
        entries = _stages(model, graph)
    _make_sites(model, entries, found)
    return found


class _Lineage:
    """Which values a value depends on, as bit sets over their numbers."""

    def __init__(self, values: list[Value]) -> None:
        self._any: list[int] = []
        self._weighted: list[int] = []
        for value in values:
            known = weighted = 0
            for parent in value.parents:
                known |= self._any[parent.index] | 1 << parent.index
                weighted |= self._weighted[parent.index]
            self._any.append(known)
            self._weighted.append(known if value.weights else weighted)

    def leads(self, source: Value, target: Value) -> bool:
        return bool(self._any[target.index] >> source.index & 1)

    def leads_through_weights(self, source: Value, target: Value) -> bool:
        return bool(self._weighted[target.index] >> source.index & 1)

    def between(self, source: Value, target: Value) -> frozenset[int]:
        """Numbers of the values on the ways from `source` to `target`, without the source."""
        wanted, pending = {target.index}, [target]
        while pending:
            for parent in pending.pop().parents:
                if parent.index not in wanted and self.leads(source, parent):
                    wanted.add(parent.index)
                    pending.append(parent)
        return frozenset(wanted)


def _residual_merges(values: list[Value], lineage: _Lineage, skipped: list[Skipped]) -> Iterator[Merge]:
    for value in values:
        if value.op != "add" or len(value.parents) != 2 or value.parents[0].shape != value.parents[1].shape:
            continue
        one, other = value.parents
        ways = [(_shortcut(one, other, lineage), other), (_shortcut(other, one, lineage), one)]
        known = [(way, branch) for way, branch in ways if way is not None]
        if not known:
            continue
        way, branch = min(known, key=lambda option: option[0].cost)
        within = lineage.between(way.root, branch)
        merge = Merge(value, way.root, branch, way.values, within, way.light, way.sliced and not way.light)
        reason = _not_residual(merge, [values[index] for index in sorted(within)])
        if reason:
            skipped.append(Skipped(_place(value), reason))
        else:
            yield merge


def _without_inner(merges: list[Merge], skipped: list[Skipped]) -> list[Merge]:
    """Leave out the one sum in a submodule of another's branch: attention adds up inside, too.

    Several there are the blocks of a stage that has a shortcut of its own, and stay.
    """
    inner: set[Merge] = set()
    for outer in merges:
        inside = [
            merge
            for merge in merges
            if merge.value.index in outer.within
            and merge.value.call is not outer.value.call
            and outer.value.call in merge.value.call.enclosing()
        ]
        if len(inside) == 1:
            inner.update(inside)
    skipped += [Skipped(_place(merge.value), "its sum is inside another one's branch") for merge in inner]
    return [merge for merge in merges if merge not in inner]


@dataclass(frozen=True)
class _Way:
    """A way back from a merge's operand: to `root`, over `values`."""

    root: Value
    values: tuple[Value, ...] = ()
    weights: int = 0
    projections: int = 0
    resamplings: int = 0
    sums: int = 0
    sliced: bool = False

    @property
    def light(self) -> bool:
        return self.projections + self.resamplings > 0

    @property
    def cost(self) -> tuple[int, int, int, int]:
        return self.projections, self.resamplings, self.sums, self.weights


def _shortcut(end: Value, branch: Value, lineage: _Lineage, limit: int = 40) -> _Way | None:
    """The cheapest way back from `end` to a value that leads to `branch` through weights."""
    ways = [_Way(end)]
    for _ in range(limit):
        if not ways:
            break
        way = ways.pop(0)
        if lineage.leads_through_weights(way.root, branch):
            return way
        ways = sorted([*ways, *_steps_back(way)], key=lambda way: way.cost)
    return None


def _steps_back(way: _Way) -> Iterator[_Way]:
    value, values = way.root, (way.root, *way.values)
    weights = way.weights + _weight_count([value])
    if len(value.parents) == 2 and value.op == "add" and not way.light:
        for parent in value.parents:
            yield replace(way, root=parent, values=values, sums=way.sums + 1)
    elif len(value.parents) == 1:
        way = replace(way, root=value.parents[0], values=values, weights=weights)
        if value.op in VIEWS | SCALES:
            yield way
        elif value.op in SELECTIONS:
            yield replace(way, sliced=True)
        elif value.op in PROJECTIONS and not way.projections and not way.sums:
            yield replace(way, projections=1)
        elif value.op in POOLS | NORMS and not way.sums:
            yield replace(way, resamplings=way.resamplings + 1)


def _not_residual(merge: Merge, members: list[Value]) -> str | None:
    """Why an add that looks like a residual is none."""
    if merge.light and len(merge.value.shape) == 2:
        return "it adds up two heads"
    projections = sum(value.op in PROJECTIONS and bool(value.weights) for value in members)
    # grouped convolutions make a branch lighter than its downsample, but not shorter
    if merge.shortcut and projections < 2 and _weight_count(merge.shortcut) >= _weight_count(members):
        return "its shortcut holds as many weights as its branch"
    linear = all(
        value.op in LINEAR and (len(value.parents) == 1 or value.op in ("add", "cat", "sub"))
        for value in members
    )
    if linear and any(value.op in PROJECTIONS for value in members):
        return "its branch is linear: a positional convolution, or parallel ones that reparameterising fuses"
    return None


def _weight_count(values: Iterable[Value]) -> int:
    return sum(prod(shape) for value in values for shape in value.weights)


def _concatenations(values: list[Value], lineage: _Lineage, merges: Sequence[Merge]) -> Iterator[Merge]:
    """Each `cat` that holds some root, or a slice of it, and what was made of it.

    Beside residual merges only those outside their branches count that hold the whole root and two values
    more: the one-shot aggregation of VoVNet and HGNet, not Ghost modules nor cross-stage partial ones.
    """
    within = frozenset().union(*(merge.within for merge in merges))
    for value in values:
        if value.op != "cat" or (merges and (value.index in within or len(value.parents) < 3)):
            continue
        for operand in value.parents:
            root, others = operand, [other for other in value.parents if other is not operand]
            while not merges and len(root.parents) == 1 and root.op in VIEWS | SELECTIONS:
                root = root.parents[0]
            branches = [other for other in others if lineage.leads_through_weights(root, other)]
            if branches:
                yield Merge(value, root, branches[-1], (), lineage.between(root, branches[-1]))
                break


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
    calls = [call for call in graph.calls if call.name in names and call.first and len(call.first.shape) > 2]
    return {call: call.first for call in calls[1:] if call.first and prod(call.first.shape[2:]) > 1}


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
        axis = _channel_axis(call, value, found.graph)
        reason = None
        if planned[call.name] != counts[call.name]:
            reason = f"of its {counts[call.name]} calls only {planned[call.name]} begin a branch"
        elif value.shape[0] % BATCH or not _frames_outermost(value):
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
                _frame_counter(call, found.graph) if folded else None,
            )
        )


def _frames_outermost(value: Value) -> bool:
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


def _frame_counter(call: Call, graph: Trace) -> str:
    """The module nearest around a call whose input has a row for each frame, else the model's first."""
    around = [outer for outer in call.enclosing() if outer.parent is not None]
    for outer in [*around, *(other for other in graph.calls if other.parent is graph.calls[0])]:
        if outer.first is not None and outer.first.shape[0] == BATCH:
            return outer.name
    return ""


def _channel_axis(call: Call, value: Value, graph: Trace) -> int:
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


def _place(value: Value) -> str:
    return value.call.name or "the model's own forward"


def verify_shifts(
    before: Trace, after: Trace, sites: Sequence[ShiftSite], merges: Sequence[Merge] = ()
) -> str | None:
    """Whether a patched model's graph is the original's plus one shift at each call of each site.

    Args:
        before, after: traces of the model without and with the shift.
        sites: where the shifts should be.
        merges: residual merges whose shortcuts must stay unshifted.

    Returns:
        None if so, else the first difference in words.
    """
    edges = [(merge, (merge.root, *merge.shortcut, merge.value)) for merge in merges]
    protected = {(one.index, two.index): merge for merge, chain in edges for one, two in pairwise(chain)}
    folded = {site.name for site in sites if site.frames_from is not None}
    shifted: dict[Call, int] = {}
    image: dict[
        int, tuple[Value, Call | None]
    ] = {}  # value of `after` -> value of `before`, the shift it came by
    position = 0
    for value in after.values:
        if value.op == "temporal_shift":
            if value.call in shifted:
                return f"two shifts at one call of {value.call.name!r}"
            shifted[value.call] = value.index
            image[value.index] = image[value.parents[0].index][0], value.call
            continue
        if value.call.name in folded and _in_hook(value, shifted, image):
            image[value.index] = image[value.parents[0].index]
            continue
        if position == len(before.values):
            return f"an op more than before: {value.op} in {_place(value)}"
        original = before.values[position]
        position += 1
        parents = [image[parent.index] for parent in value.parents]
        same = (value.op, value.shape, value.call.name) == (original.op, original.shape, original.call.name)
        if not same or [parent.index for parent, _ in parents] != [
            parent.index for parent in original.parents
        ]:
            return f"expected {original.op} in {_place(original)}, got {value.op} in {_place(value)}"
        for parent, call in parents:
            merge = protected.get((parent.index, original.index))
            if call is not None and merge is not None:
                return f"the shift at {call.name!r} also reaches the shortcut of {_place(merge.value)!r}"
        image[value.index] = original, None
    if position < len(before.values):
        return f"the op {before.values[position].op} in {_place(before.values[position])} is missing"
    wanted = Counter(call.name for call in after.calls if call.name in {site.name for site in sites})
    got = Counter(call.name for call in shifted)
    if wanted != got or len(wanted) < len(sites):
        names = [site.name for site in sites if wanted[site.name] != got[site.name] or not wanted[site.name]]
        return f"expected a shift at each call of {names or list(got - wanted)}"
    return None


def _in_hook(value: Value, shifted: dict[Call, int], image: dict[int, tuple[Value, Call | None]]) -> bool:
    """Whether a value is one of the views around a folded site's shift."""
    call = value.call
    if call.first is None or len(value.parents) != 1 or value.op not in VIEWS:
        return False
    if call not in shifted:
        return True
    parent = value.parents[0]
    return image[parent.index][1] is call and parent.shape != call.first.shape
