"""What layers are told of a call that runs, and told again by its backward, which may run some of its blocks again.

Gradient checkpointing runs a block again for a node of autograd's that the call made: nodes are numbered, so the number
tells which call that was, whatever the layers were told since. Compiled blocks run no Python that could ask: what all
threads share tells them, from the moment that the gradient of what the call returned arrives until the backward ends.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor

from .threads import OfThread
from .torch_private import (
    backward_number,
    current_node,
    in_engine,
    next_number,
    queue_callback,
    sequence_number,
)

__all__ = ["CALLS", "Layer", "Recorded", "Telling", "Told", "record_call", "told_again"]

CALLS = 1024  # that a layer remembers: those whose backward is still to come are a few
_lock = threading.RLock()  # the end of a backward that fails may come anywhere, also in here


class Told(NamedTuple):
    """The frames of a clip, and where clips of several lengths begin, if they are."""

    length: int
    boundaries: Tensor | None = None


class Recorded(NamedTuple):
    """What a layer was told in a call, and the numbers of the nodes that the call made, which each thread counts."""

    first: int
    end: int
    told: Told
    thread: Callable[[], object | None]  # that made it, None once it is over
    held: Callable[[], object | None]  # by its results, None once they are gone


class Layer(Protocol):
    """What is told of clips: a `ShiftHook` or a `ClipLayer`."""

    calls: deque[Recorded]
    tellings: tuple[tuple[object, Told], ...]

    @property
    def told(self) -> Told:
        """What this thread goes by outside of calls over clips of one length."""
        ...

    def tell_graphs(self) -> None:
        """Have compiled blocks go by the last of the tellings; without one, by what the layer was told for good."""
        ...


class Telling:
    """That a call runs, or a backward: for compiled blocks, which all threads share."""

    def __init__(self) -> None:
        self.layers: dict[Layer, None] = {}
        self.name = object()  # what layers know it by: none of them keeps one that nobody ended

    def begin(self, told: Iterable[tuple[Layer, Told]]) -> None:
        with _lock:
            for layer, one in told:
                self.layers[layer] = None
                layer.tellings = (*layer.tellings, (self.name, one))
                layer.tell_graphs()

    def end(self) -> None:
        with _lock:
            while self.layers:
                layer, _ = self.layers.popitem()
                layer.tellings = tuple(each for each in layer.tellings if each[0] is not self.name)
                layer.tell_graphs()


class _Backward(Telling):
    """One that runs. Only the engine holds it, and drops it where the backward fails."""

    def __init__(self) -> None:
        super().__init__()
        self.first_node = next_number()  # of those that it makes itself, on this thread
        self.told: dict[Layer, Told] = {}

    def go_back(self, told: Sequence[tuple[Layer, Told]]) -> None:
        self.told.update(told)
        self.end()
        self.begin(self.told.items())

    def __del__(self) -> None:
        self.end()


class _Thread:
    """One that lives: its number is another's when it is over."""


_threads = OfThread()
_backwards: WeakValueDictionary[tuple[int, int], _Backward] = WeakValueDictionary()  # by thread and number


def record_call(told: Sequence[tuple[Layer, Told]], first: int, results: Any) -> None:
    """Remember what a call told its layers, whose nodes have the numbers from the first one on."""
    recorded = [tensor for tensor in _tensors_in(results) if tensor.requires_grad]
    if not recorded:
        return

    def go_back(_: Tensor) -> None:
        if torch.compiler.is_dynamo_compiling():  # compiled autograd, which has no end to wait for
            return
        key = threading.get_ident(), backward_number()
        with _lock:
            backward = _backwards.get(key)
            if backward is None:
                backward = _backwards[key] = _Backward()
                queue_callback(backward.end)
        backward.go_back(told)

    end, thread, held = next_number(), ref(_this_thread()), ref(go_back)
    for layer, one in told:
        layer.calls.append(Recorded(first, end, one, thread, held))
    for tensor in recorded:
        tensor.register_hook(go_back)


def told_again(layer: Layer) -> Told | None:
    """What a layer was told in the call whose block a backward runs again now; None of a plain call, and outside.

    Raises:
        RuntimeError: threads made calls side by side, in which it was told different things, or too many came since.
    """
    if not layer.calls or (node := current_node()) is None:
        return None
    number = sequence_number(node)
    calls = [call for call in list(layer.calls) if call.first <= number < call.end]
    engine, here = in_engine(), _this_thread()
    own = [call.told for call in calls if call.thread() is here or (engine and call.thread() is not None)]
    others = [call.told for call in calls if call.thread() is not here and call.held() is not None]
    found = [*own, *others]
    if others and not own and not engine:
        found.append(layer.told)  # a plain call of this thread may have such a node, too
    if not found:
        for (thread, _), backward in list(_backwards.items()):  # of a block inside of one that is run again
            if thread == threading.get_ident() and layer in backward.told and number >= backward.first_node:
                found.append(backward.told[layer])
    lost = len(layer.calls) == CALLS and number < layer.calls[0].first
    if lost or any(not _same(one, found[0]) for one in found):
        raise RuntimeError(
            "expected a backward whose call is known, got one that runs a block again "
            + (
                f"of before the last {CALLS} calls"
                if lost
                else "while threads have calls of other clips to go back"
            )
            + ": call backward() behind each call, give each thread a copy.deepcopy of the model, or train it without "
            "gradient checkpointing."
        )
    return found[0] if found else None


def _this_thread() -> "_Thread":
    if _threads.value is None:
        _threads.value = _Thread()
    return _threads.value


def _same(one: Told, other: Told) -> bool:
    return one.length == other.length and one.boundaries is other.boundaries


def _tensors_in(results: Any) -> Iterator[Tensor]:
    if isinstance(results, Tensor):
        yield results
    elif isinstance(results, Mapping):
        for one in results.values():
            yield from _tensors_in(one)
    elif isinstance(results, Sequence) and not isinstance(results, str):
        for one in results:
            yield from _tensors_in(one)
