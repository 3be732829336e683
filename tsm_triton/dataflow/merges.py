"""Where branches and their shortcuts meet in a dataflow.

A residual merge is an `add` of two values of one shape, `shortcut` and `branch`, such that some `root` leads
to `branch` through weights, and to `shortcut` freely (views, sums, scales: an identity) or lightly (one
projection, pooling, norms, fewer weights than the branch: a downsample). Where models concatenate instead
(DenseNet, VoVNet, ShuffleNetV2), the merge is a `cat` that holds the root, or a slice of it, beside the branch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from .kinds import LINEAR, NORMS, POOLS, PROJECTIONS, SCALES, SELECTIONS, VIEWS
from .tracing import Value

__all__ = ["Lineage", "Merge", "Skipped", "concatenations", "place_of", "residual_merges"]


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


class Lineage:
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


def residual_merges(values: list[Value], lineage: Lineage, skipped: list[Skipped]) -> list[Merge]:
    """The residual merges among a trace's values; each other sum of its kind goes to `skipped`."""
    return _without_inner(list(_residual_adds(values, lineage, skipped)), skipped)


def _residual_adds(values: list[Value], lineage: Lineage, skipped: list[Skipped]) -> Iterator[Merge]:
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
            skipped.append(Skipped(place_of(value), reason))
        else:
            yield merge


def _without_inner(merges: list[Merge], skipped: list[Skipped]) -> list[Merge]:
    """Leave out the one sum in a submodule of another's branch: attention adds up inside, too.

    Several there are the blocks of a stage that has a shortcut of its own, and stay; but sums that take slices
    of the very value the outer branch begins with are heads of one attention (EfficientViT's cascade).
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
        sliced = [merge for merge in inside if merge.sliced and merge.root is outer.root]
        inner.update(inside if len(inside) == 1 else sliced)
    skipped += [Skipped(place_of(merge.value), "its sum is inside another one's branch") for merge in inner]
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


def _shortcut(end: Value, branch: Value, lineage: Lineage, limit: int = 40) -> _Way | None:
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


def concatenations(values: list[Value], lineage: Lineage, merges: Sequence[Merge]) -> Iterator[Merge]:
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


def place_of(value: Value) -> str:
    """Where a value is made, in words."""
    return value.call.name or "the model's own forward"
