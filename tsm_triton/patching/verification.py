"""The check of a patch: the graph of the shifted model against that of the original."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from ..dataflow.kinds import VIEWS
from ..dataflow.merges import Merge, place_of
from ..dataflow.tracing import Call, Trace, Value
from ..sites import ShiftSite

__all__ = ["verify_shifts"]


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
    # value of `after` -> value of `before`, the shift it came by
    image: dict[int, tuple[Value, Call | None]] = {}
    position = 0
    for value in after.values:
        if value.op == "temporal_shift" and not _is_written(value, before.values[position : position + 1]):
            wrong = _wrong_shift(value, shifted, sites)
            if wrong is not None:
                return wrong
            shifted[value.call] = value.index
            image[value.index] = image[value.parents[0].index][0], value.call
            continue
        if value.call.name in folded and _in_hook(value, shifted, image):
            image[value.index] = image[value.parents[0].index]
            continue
        if position == len(before.values):
            return f"an op more than before: {value.op} in {place_of(value)}"
        original = before.values[position]
        position += 1
        parents = [image[parent.index] for parent in value.parents]
        same = (value.op, value.shape, value.call.name) == (original.op, original.shape, original.call.name)
        if not same or [parent.index for parent, _ in parents] != [
            parent.index for parent in original.parents
        ]:
            return f"expected {original.op} in {place_of(original)}, got {value.op} in {place_of(value)}"
        for parent, call in parents:
            merge = protected.get((parent.index, original.index))
            if call is not None and merge is not None:
                return f"the shift at {call.name!r} also reaches the shortcut of {place_of(merge.value)!r}"
        image[value.index] = original, None
    if position < len(before.values):
        return f"the op {before.values[position].op} in {place_of(before.values[position])} is missing"
    return _missed(after, shifted, sites)


def _is_written(value: Value, original: Sequence[Value]) -> bool:
    """Whether a shift is one of the network's own, as in a `modules.TemporalShift`."""
    return any((one.op, one.call.name) == (value.op, value.call.name) for one in original)


def _wrong_shift(value: Value, shifted: dict[Call, int], sites: Sequence[ShiftSite]) -> str | None:
    """What is wrong with a shift by itself: of a call that has one, of other channels, of rows that are no frames."""
    name = value.call.name
    site = next((site for site in sites if site.name == name), None)
    if value.call in shifted:
        return f"two shifts at one call of {name!r}"
    channels = value.shape[value.arguments[-1]]
    if site is not None and channels != site.channels:
        return f"expected {site.channels} channels at {name!r}, got {channels}"
    frames = value.arguments[0]  # one clip, the whole batch
    if (site is None or site.frames_from is None) and value.shape[0] != frames:
        return (
            f"the first axis at {name!r} holds {value.shape[0]} rows for {frames} frames: "
            "give frames_from, the name of a module around it whose input has a row for each frame"
        )
    return None


def _missed(after: Trace, shifted: dict[Call, int], sites: Sequence[ShiftSite]) -> str | None:
    """The sites that are called without a shift, or never."""
    wanted = Counter(call.name for call in after.calls if call.name in {site.name for site in sites})
    got = Counter(call.name for call in shifted)
    if wanted == got and len(wanted) == len(sites):
        return None
    names = [site.name for site in sites if wanted[site.name] != got[site.name] or not wanted[site.name]]
    return f"expected a shift at each call of {names or list(got - wanted)}"


def _in_hook(value: Value, shifted: dict[Call, int], image: dict[int, tuple[Value, Call | None]]) -> bool:
    """Whether a value is one of the views around a folded site's shift."""
    call = value.call
    if call.first is None or len(value.parents) != 1 or value.op not in VIEWS:
        return False
    if call not in shifted:
        return True
    parent = value.parents[0]
    return image[parent.index][1] is call and parent.shape != call.first.shape
