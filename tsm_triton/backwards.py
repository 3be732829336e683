"""What belongs to a backward: the call that it goes back through, some of which gradient checkpointing runs again.

A shift, or a layer that mixes clips in other ways, must then be told what it was in that call, whatever it has been
told since. The gradient of what the call returned arrives before any inside of it: there the backward takes over.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet, WeakValueDictionary

import torch
from torch import Tensor

from .torch_private import backward_number, in_backward, queue_callback

__all__ = ["Layer", "Told", "record_call", "told_again"]


class Told(NamedTuple):
    """The frames of a clip; where clips of several lengths begin, if they are; whether the layer acts."""

    length: int
    boundaries: Tensor | None = None
    enabled: bool = True

    def says(self, other: "Told") -> bool:
        lengths = self.boundaries is not None or self.length == other.length
        return lengths and self.boundaries is other.boundaries and self.enabled == other.enabled


class Layer(Protocol):
    """What is told of clips: a `ShiftHook` or a `ClipLayer`."""

    again: Told | None  # while a backward goes back through a call

    @property
    def told(self) -> Told: ...

    def go_back(self, told: Told) -> Callable[[], None]:
        """Be as in a call, also for the graphs of compiled blocks, which all threads share; what undoes it."""
        ...


class _Call:
    """One that autograd recorded."""

    def __init__(self, told: Iterable[tuple[Layer, Told]]) -> None:
        self.told = dict(told)
        self.is_awaited = True

    def go_back(self, _: Tensor) -> None:
        """What its results call with their gradient."""
        if torch.compiler.is_dynamo_compiling():  # compiled autograd, which has no end to wait for
            return
        self.is_awaited = (
            torch.is_grad_enabled()
        )  # the graph of this backward may come back here by another way
        number = backward_number()
        backward = _backwards.get(number)
        if backward is None:
            backward = _backwards[number] = _Backward()
            queue_callback(backward.end)
        backward.go_back(self.told)


class _Backward:
    """One that runs. Only the engine holds it, which drops it where the backward fails, too."""

    def __init__(self) -> None:
        self.undo: dict[Layer, Callable[[], None]] = {}

    def go_back(self, told: dict[Layer, Told]) -> None:
        for layer, one in told.items():
            undo = layer.go_back(one)
            self.undo.setdefault(layer, undo)

    def end(self) -> None:
        while self.undo:
            self.undo.popitem()[1]()

    __del__ = end


_backwards: WeakValueDictionary[int, _Backward] = WeakValueDictionary()
_calls: WeakSet[_Call] = WeakSet()  # whose results, or what was made of them, somebody holds


def record_call(told: Iterable[tuple[Layer, Told]], results: Any) -> None:
    """Have backwards through the results of a call tell its layers again what it told them."""
    recorded = [tensor for tensor in _tensors_in(results) if tensor.requires_grad]
    if recorded:
        call = _Call(told)
        _calls.add(call)
        for tensor in recorded:
            tensor.register_hook(call.go_back)


def told_again(layer: Layer) -> Told | None:
    """What a layer was told in the call that this thread's backward goes back through, None outside of any.

    Raises:
        RuntimeError: a backward that came by other ways than a call's results, while one is still to come through
            the results of a call that was told otherwise.
    """
    if (layer.again is None and not _calls) or not in_backward():
        return None
    if layer.again is None:
        for call in list(_calls):
            if call.is_awaited and layer in call.told and not call.told[layer].says(layer.told):
                raise RuntimeError(
                    "expected a backward through what a VideoClassifier returned, or without gradient checkpointing, "
                    f"got one by another way that runs a block again, while the backward of clips of "
                    f"{call.told[layer].length} frames is to come: whose block it is cannot be told. Call backward() "
                    "on those scores first, or make them under torch.no_grad()."
                )
    return layer.again


def _tensors_in(results: Any) -> Iterator[Tensor]:
    if isinstance(results, Tensor):
        yield results
    elif isinstance(results, Mapping):
        for one in results.values():
            yield from _tensors_in(one)
    elif isinstance(results, Sequence) and not isinstance(results, str):
        for one in results:
            yield from _tensors_in(one)
