"""Weights that others published: a file a layout says how to recognise it by its keys, and how these map.

layout is what is found of a file, build makes a model of it; resnet, mobilenet and wrapped are what layouts share.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from ...torch_private import COMPILED
from ..keys import without_count
from .authors import AUTHORS
from .authors_online import AUTHORS_ONLINE
from .layout import Given, Layout, Published
from .mmaction2 import MMACTION2
from .opensportslib import OPENSPORTSLIB
from .paddlevideo import PADDLEVIDEO
from .spot import SPOT

__all__ = ["LAYOUTS", "Given", "Layout", "Published", "read_published"]

# the first that recognises the keys: mmaction2's and PaddleVideo's begin alike, and tell themselves by their norms
LAYOUTS = (AUTHORS, AUTHORS_ONLINE, MMACTION2, PADDLEVIDEO, OPENSPORTSLIB, SPOT)
# what is put around a whole model
WRAPPERS = ("module", "model", "_model", "student", COMPILED)


def read_published(state: Mapping[str, Tensor], given: Given) -> Published | None:
    """What published weights are; None of all others.

    Raises:
        ValueError: of a layout that is known, but not to be used, or with options that it contradicts or misses.
    """
    for keys in _unwrapped(without_count(state)):
        for layout in LAYOUTS:
            if layout.recognises(keys):
                return layout.read(keys, given)
    return None


def _unwrapped(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """As they are, and without the wrappers around all of them."""
    while True:
        yield state
        first = next(iter(state), "").partition(".")[0]
        if first not in WRAPPERS or not all(key.startswith(f"{first}.") for key in state):
            return
        state = {key.removeprefix(f"{first}."): value for key, value in state.items()}
