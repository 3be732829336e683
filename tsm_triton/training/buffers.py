"""Buffers that stay as they are where a backward computes a block again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..torch_private import (
    buffers_of,
    forward_hooks,
    in_backward,
    pre_hooks,
    take_forward_hook,
    take_pre_hook,
)

__all__ = ["keep_buffers", "leaving_buffers", "move_buffers"]


class _Buffers:
    """The buffers of some modules, to be put back as they were."""

    def __init__(self) -> None:
        self.held: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]] = []

    def hold(self, *modules: nn.Module) -> None:
        self.held = [
            (buffers, name, buffer, buffer.clone())
            for buffers in map(buffers_of, modules)
            for name, buffer in buffers.items()
            if buffer is not None
        ]

    def put_back(self) -> None:
        for buffers, name, buffer, value in self.held:
            buffers[name] = buffer
            if 0 not in buffer.stride():  # expanded, it cannot have been written
                buffer.data.copy_(value)  # no change that autograd would see
        self.held = []


@contextmanager
def leaving_buffers(module: nn.Module) -> Iterator[None]:
    """A context in which a module, and all in it, may move its buffers: they are put back."""
    buffers = _Buffers()
    buffers.hold(*module.modules())
    try:
        yield
    finally:  # torch leaves a block by an exception, as soon as all that it misses is there again
        buffers.put_back()


class _Hooks:
    """The same for one module that others run again."""

    def __init__(self) -> None:
        self.buffers = _Buffers()

    def before(self, module: nn.Module, _: Any) -> None:
        if not torch.compiler.is_compiling() and module.training and in_backward():
            self.buffers.hold(module)

    def behind(self, *_: Any) -> None:
        if not torch.compiler.is_compiling():
            self.buffers.put_back()


def keep_buffers(model: nn.Module) -> None:
    """Have all modules of a model leave their buffers where a backward runs them again, until `move_buffers`."""
    move_buffers(model)
    for module in model.modules():
        if buffers_of(module):
            hooks = _Hooks()
            module.register_forward_pre_hook(hooks.before, prepend=True)
            module.register_forward_hook(hooks.behind, always_call=True)


def move_buffers(model: nn.Module) -> None:
    """Take that off again."""
    for module in model.modules():
        for hooks, take in ((pre_hooks, take_pre_hook), (forward_hooks, take_forward_hook)):
            for key, hook in list(hooks(module).items()):
                if isinstance(getattr(hook, "__self__", None), _Hooks):
                    take(module, key)
