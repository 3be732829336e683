"""The shift on a CPU: copies of parts of the map, each told as sizes, strides and an offset."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from .host_memory import empty_like

__all__ = ["Plan", "copied", "plan_copies", "shift_by_copies"]

# sizes, strides and offset, as `as_strided` takes them
_View = tuple[tuple[int, ...], tuple[int, ...], int]
# sizes, then the strides and offset that are written, then those that are read
_Copy = tuple[tuple[int, ...], tuple[int, ...], int, tuple[int, ...], int]
# elements: of fewer a copy of the whole map takes less time than of the part alone that does not move, and fewer views
_SMALL = 2**17


class Plan(NamedTuple):
    """What is copied and what is zero.

    Attributes:
        is_cloned: whether the whole map is copied first, as a small one is.
        copies: the parts that move, and of a large map what does not.
        zeros: the parts of the result whose frame lies outside of a clip.
    """

    is_cloned: bool
    copies: list[_Copy]
    zeros: list[_View]


def shift_by_copies(
    x: Tensor, num_segments: int, n_first: int, n_second: int, reverse: bool, channel_dim: int
) -> Tensor:
    """The shift of any strides and dtype: each fold moves by one frame, over all clips; then their ends are zeroed."""
    layout = x.shape, x.stride(), x.storage_offset()
    return copied(x, _plan(*layout, num_segments, n_first, n_second, reverse, channel_dim))


def copied(x: Tensor, plan: Plan) -> Tensor:
    """What a plan says, of an `x` on a CPU into new memory.

    A small map's time is that of the calls, which between a network's layers find their code in no cache: as few of
    torch as can be.
    """
    is_cloned, copies, zeros = plan
    out = torch.clone(x) if is_cloned else empty_like(x)
    start = out.storage_offset()
    for size, strides, offset, read_strides, read_offset in copies:
        out.as_strided(size, strides, start + offset).copy_(x.as_strided(size, read_strides, read_offset))
    for size, strides, offset in zeros:
        out.as_strided(size, strides, start + offset).zero_()
    return out


def plan_copies(
    shape: tuple[int, ...],
    read: tuple[int, ...],
    read_offset: int,
    num_segments: int,
    n_first: int,
    n_second: int,
    reverse: bool,
    channel_dim: int,
) -> Plan:
    """How a map is shifted whose shape, strides and offset are these, into memory as `torch.empty_like` lays it out."""
    is_cloned = math.prod(shape) <= _SMALL
    if math.prod(shape) == 0:
        return Plan(is_cloned, [], [])
    frames, dim = shape[0], channel_dim % len(shape)
    written = torch.empty_like(torch.empty_strided(shape, read, device="meta")).stride()

    def part(
        strides: tuple[int, ...], offset: int, frame: int, channel: int, count: int, channels: int
    ) -> _View:
        size = (count, *shape[1:dim], channels, *shape[dim + 1 :])
        return size, strides, offset + frame * strides[0] + channel * strides[dim]

    def copy(to_frame: int, from_frame: int, channel: int, *extent: int) -> None:
        size, _, start = part(written, 0, to_frame, channel, *extent)
        if math.prod(size):
            *_, read_start = part(read, read_offset, from_frame, channel, *extent)
            copies.append((size, written, start, read, read_start))

    copies: list[_Copy] = []
    zeros: list[_View] = []
    if not is_cloned:
        # in channels_last the folds lie between the other channels: the whole map is one copy without gaps
        still = 0 if read[dim] <= 1 else n_first + n_second
        copy(0, 0, still, frames, shape[dim] - still)
    clips = (num_segments * written[0], *written[1:])
    for channel, channels, reads_next in ((0, n_first, not reverse), (n_first, n_second, reverse)):
        copy(int(not reads_next), int(reads_next), channel, frames - 1, channels)
        end = num_segments - 1 if reads_next else 0
        size, _, offset = part(written, 0, end, channel, frames // num_segments, channels)
        if math.prod(size):
            zeros.append((size, clips, offset))
    return Plan(is_cloned, copies, _joined(zeros))


_plan = functools.lru_cache(maxsize=1024)(plan_copies)


def _joined(views: list[_View]) -> list[_View]:
    """Two views of one size and one set of strides as one, with an axis more; others as they are."""
    if len(views) != 2 or views[0][:2] != views[1][:2]:
        return views
    (size, strides, start), (*_, end) = sorted(views, key=lambda view: view[2])
    return [((2, *size), (end - start, *strides), start)]
