"""Shifts stay with the copies and pickles of modules whose classes make these themselves, without hooks.

torch.ao's quantised layers do, and graphs of torch.fx, and what torch.compile wraps.
"""

import copy
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from ..torch_private import pre_hooks
from .hook_calls import PatchHook

__all__ = ["forget_copies", "keep_in_copies"]

# Not `__setstate__`: convolutions have one, are given their hooks, and may be part of what they hold (accelerate's
# forwards), which no argument of `_rebuilt` may be.
_OWN_WAYS = ("__deepcopy__", "__getstate__", "__reduce__", "__reduce_ex__")
# attributes of the module, where `copy` and `pickle` look before they ask its class
_COPY, _REDUCE = "__deepcopy__", "__reduce_ex__"


def keep_in_copies(module: nn.Module) -> None:
    """Have a module's copies hold its shift, and theirs."""
    kind = type(module)
    if all(getattr(kind, way, None) is getattr(nn.Module, way, None) for way in _OWN_WAYS):
        return
    vars(module)[_REDUCE] = _Way(_reduced, module)
    if hasattr(kind, _COPY):
        vars(module)[_COPY] = _Way(_copied, module)


def forget_copies(module: nn.Module) -> None:
    """Leave a module's copies to its class again."""
    vars(module).pop(_COPY, None)
    vars(module).pop(_REDUCE, None)


class _Way:
    """A function of the module whose attribute it is, which its copies do not take along: they get their own."""

    def __init__(self, function: Callable[..., Any], module: nn.Module) -> None:
        self.function = function
        self.module = weakref.ref(module)

    def __call__(self, *arguments: Any) -> Any:
        return self.function(self.module(), *arguments)

    def __reduce__(self) -> tuple[type[str], tuple[()]]:
        return str, ()


def _hooks_of(module: nn.Module) -> list[PatchHook]:
    return [hook for hook in pre_hooks(module).values() if isinstance(hook, PatchHook)]


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    own: Any = getattr(type(module), _COPY, None)
    if own is None:  # it is of another class again: a parametrisation was taken off
        forget_copies(module)
        return copy.deepcopy(module, memo)
    new = memo[id(module)] = own(module, memo)
    return _with_hooks(new, [copy.deepcopy(hook, memo) for hook in _hooks_of(module)])


def _reduced(module: nn.Module, protocol: Any) -> tuple[Callable[..., nn.Module], tuple[Any, ...]]:
    make, arguments, *state = type(module).__reduce_ex__(module, protocol)[:3]
    return _rebuilt, (make, arguments, state, _hooks_of(module))


def _rebuilt(make: Callable[..., nn.Module], arguments: Any, state: list[Any], hooks: list[Any]) -> nn.Module:
    new = make(*arguments)
    if state and state[0] is not None:
        new.__setstate__(state[0])
    return _with_hooks(new, hooks)


def _with_hooks(new: nn.Module, hooks: list[Any]) -> nn.Module:
    there = {type(hook) for hook in _hooks_of(new)}
    for hook in hooks:
        if type(hook) not in there:
            new.register_forward_pre_hook(hook, with_kwargs=True)
    keep_in_copies(new)
    return new
