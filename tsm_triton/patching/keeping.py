"""What keeps a patch whole when modules are replaced after it: shifts move to the new module, or the model refuses.

A site is a place: what the module of that name receives is shifted, whichever module stands there.
`convert_sync_batchnorm`, PEFT's adapters and their merging, quantisation and plain assignments put new modules into
old places, and the hooks of the old ones would go with them, or stay behind inside of a wrapper that reads its input
first. torch tells of each registration; what goes around it (`_modules[name] = ...`, `del`) the next call finds.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from operator import is_
from typing import Any

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling

from ..torch_private import (
    MODULES,
    PRE_HOOKS,
    REPLICA,
    modules_of,
    pre_hooks,
    register_module_module_registration_hook,
    take_pre_hook,
)
from .copying import forget_copies, keep_in_copies
from .description import describe, forget_description
from .frame_counter import FrameCounter
from .hook_calls import PatchHook
from .shift_hook import ShiftHook
from .traced_shift import TracedShift, forget_trace

__all__ = ["PatchRecord", "check_whole", "remove_hooks"]


class _Links:
    """What each dictionary held at a key when it was looked up."""

    def __init__(self, holders: Sequence[Any], keys: Sequence[Any], held: Sequence[Any]) -> None:
        self.holders, self.keys, self.held = holders, keys, held
        # others have a `get` of their own
        are_plain = all(type(holder) in (dict, OrderedDict) for holder in holders)
        self.get = dict.get if are_plain else lambda holder, key: holder.get(key)


class PatchRecord(PatchHook):
    """The forward pre-hook of a patched model that refuses to run without one of its shifts.

    A call of eager costs a dictionary look-up for each module on the way to a site; graphs hold what was there
    when they were made.

    Attributes:
        hooks: the shifts and frame counters by the names of the modules that they were put at.
    """

    def __init__(self, hooks: list[tuple[str, ShiftHook | FrameCounter]]) -> None:
        self.hooks = hooks
        self._links: _Links | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"hooks": self.hooks, "_links": None}

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        if is_dynamo_compiling():
            return
        links = self._links
        # no loop of Python: half of its time
        intact = links and all(map(is_, map(links.get, links.holders, links.keys), links.held))
        # a replica of DataParallel has modules of its own, one call long
        if not intact and not torch.compiler.is_compiling() and REPLICA not in vars(module):
            self.find(module)

    def find(self, model: nn.Module) -> None:
        """Look the hooks up, wherever they stand by now."""
        paths = {
            id(hook): (name, module, key)
            for name, module in model.named_modules()
            for key, hook in pre_hooks(module).items()
        }
        kept = [(name, hook) for name, hook in self.hooks if not hook.removed]
        # its own, or one like it that came with what took the place
        there = [hook if id(hook) in paths else _like(model, name, hook) for name, hook in kept]
        lost = [name for (name, _), hook in zip(kept, there, strict=True) if hook is None]
        if lost:
            raise _gone(model, f"its {len(kept)} shifts", "a model that was changed", lost)
        links: dict[tuple[int, Any], tuple[dict[Any, Any], Any, Any]] = {}
        for hook in there:
            name, module, key = paths[id(hook)]
            keep_in_copies(module)  # torch.ao puts its layers there itself, and no registration tells of it
            outer = model
            for part in name.split(".") if name else ():
                inner = modules_of(outer)[part]
                links[id(outer), part] = (modules_of(outer), part, inner)
                # whole dictionaries may be replaced
                links[id(outer), MODULES] = (vars(outer), MODULES, modules_of(outer))
                assert inner is not None
                outer = inner
            links[id(module), key] = (pre_hooks(module), key, hook)
            links[id(module), PRE_HOOKS] = (vars(module), PRE_HOOKS, pre_hooks(module))
        self._links = _Links(*zip(*links.values(), strict=True)) if links else _Links((), (), ())


class LostShift(PatchHook):
    """The forward pre-hook of what took a shifted module's place without a place for its shift: it refuses to run.

    The model's record would find that too, but only in a call of the model, in eager: this one stands in the way of
    compilers, exporters, tracers and calls of a part.
    """

    def __init__(self, path: str, hook: ShiftHook | FrameCounter) -> None:
        self.path = path
        self.hook = hook

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        if self.hook.removed or any(hook is self.hook for *_, hook in _hooks_in(module)):
            return
        raise _gone(module, "a shift", "one that took a shifted module's place", [self.path])


def check_whole(model: nn.Module) -> None:
    """Raise `RuntimeError` where a patched model, or one in it, has lost a shift."""
    for _, module, _, hook in list(_hooks_in(model)):
        if isinstance(hook, PatchRecord):
            hook.find(module)


def remove_hooks(model: nn.Module) -> None:
    """Take all that a patch has put into a model, or into a part of one, out of it."""
    for module in model.modules():
        forget_description(module)
        forget_copies(module)
        forget_trace(module)
        if isinstance(module, TracedShift):
            module.take_off()
    for _, module, key, hook in list(_hooks_in(model)):
        take_pre_hook(module, key)
        hook = hook.hook if isinstance(hook, LostShift) else hook
        if not isinstance(hook, PatchRecord):
            hook.removed = True  # on purpose: a record further up need not miss it


def _carry(parent: nn.Module, name: str, new: Any) -> None:
    """Hand the shifts of the module that `new` replaces on to the same places in it."""
    if torch.compiler.is_dynamo_compiling():  # a graph of autograd's, whose modules are its own
        return
    modules = modules_of(parent)
    old = modules.get(name) if isinstance(modules, dict) else None  # a scripted module's are no dict
    if old is None or not isinstance(new, nn.Module) or new is old:
        return
    moving = list(_hooks_in(old))
    if not moving or any(isinstance(hook, PatchRecord) for *_, hook in moving):
        return  # a whole model takes the place of another: the patch is that one's own
    places = dict(new.named_modules())
    inside = {id(module) for module in places.values()}
    # what stays where it is: a wrapper around a block holds its sites
    moving = [each for each in moving if not (each[0] and id(each[1]) in inside)]
    _check_alike(moving, places)
    for path, _, _, hook in moving:
        if isinstance(hook, LostShift):
            path, hook = ".".join(filter(None, (path, hook.path))), hook.hook
        place = places.get(path)
        if place is None:
            if not hook.removed:
                new.register_forward_pre_hook(LostShift(path, hook), with_kwargs=True)
                keep_in_copies(new)
            continue
        if not isinstance(hook, ShiftHook) or not _takes_over(place, hook):
            # it stays on an old module that is not inside, too, which may stand in other places
            place.register_forward_pre_hook(hook, with_kwargs=True)
        keep_in_copies(place)


def _takes_over(place: nn.Module, hook: ShiftHook) -> bool:
    """Whether a place has a shift already, which is a copy of this one.

    A wrapper may read the input of what it wraps first: it is shifted itself, and what it holds of the site, or a
    copy of that, would shift once more.
    """
    for _, inner, key, other in list(_hooks_in(place)):
        if inner is not place and isinstance(other, ShiftHook):
            take_pre_hook(inner, key)
            forget_description(inner)
    there = _shift_of(place)
    if there is None:
        describe(place, hook)
        return False
    there.counter = hook.counter  # a copy brought one along that stands nowhere
    return True


def _check_alike(moving: list[tuple[str, nn.Module, int, Any]], places: dict[str, nn.Module]) -> None:
    """Raise where what takes a shifted place is shifted in another way."""
    for path, _, _, hook in moving:
        there = _shift_of(places[path]) if path in places else None
        if there is not None and isinstance(hook, ShiftHook) and repr(there) != repr(hook):
            raise RuntimeError(
                f"expected a module that is shifted as the one whose place it takes, {hook}, got {there}: call "
                "tsm_triton.unpatch on it first"
            )


def _hooks_in(module: nn.Module) -> Iterator[tuple[str, nn.Module, int, Any]]:
    for path, inner in list(module.named_modules()):
        for key, hook in list(pre_hooks(inner).items()):
            if isinstance(hook, PatchHook):
                yield path, inner, key, hook


def _gone(holder: nn.Module, expected: str, got: str, places: list[str]) -> RuntimeError:
    """What to raise where a shift is missed."""
    return RuntimeError(
        f"expected {type(holder).__name__} to hold {expected}, got {got} after tsm_triton.patch: what stood at "
        f"{', '.join(map(repr, places))} is gone, and the shift with it. Call tsm_triton.unpatch(model), then patch it "
        "again: first replace modules, then patch, then compile."
    )


def _shift_of(module: nn.Module) -> ShiftHook | None:
    return next((hook for hook in pre_hooks(module).values() if isinstance(hook, ShiftHook)), None)


def _like(model: nn.Module, name: str, hook: ShiftHook | FrameCounter) -> ShiftHook | None:
    """The shift of the place that moves the same, of clips of whatever length."""
    place = dict(model.named_modules()).get(name)
    there = None if place is None else _shift_of(place)
    return there if there is None or not isinstance(hook, ShiftHook) or there.moves == hook.moves else None


register_module_module_registration_hook(_carry)
