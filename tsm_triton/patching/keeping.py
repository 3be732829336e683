"""What keeps a patch whole when modules are replaced after it: shifts move to the new module, or the model refuses.

A site is a place: what the module of that name receives is shifted, whichever module stands there.
`convert_sync_batchnorm`, PEFT's adapters and their merging, quantisation and plain assignments put new modules into
old places, and the hooks of the old ones would go with them, or stay behind inside of a wrapper that reads its input
first. torch tells of each registration; what goes around it (`_modules[name] = ...`, `del`) the next call finds, or the
next compilation.
"""

import copy
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from operator import is_
from typing import Any
from weakref import WeakValueDictionary, ref

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling

from ..torch_private import (
    MODULES,
    PRE_HOOKS,
    REPLICA,
    constant_in_graphs,
    modules_of,
    pre_hooks,
    register_module_module_registration_hook,
    run_uncompiled,
    take_pre_hook,
)
from .copying import forget_copies, keep_in_copies
from .description import describe, forget_description
from .frame_counter import FrameCounter
from .hook_calls import PatchHook
from .shift_hook import ShiftHook
from .traced_shift import TracedShift, forget_trace

__all__ = ["Links", "PatchRecord", "check_whole", "records", "remove_hooks"]

_numbers = itertools.count()
_records: WeakValueDictionary[int, "PatchRecord"] = WeakValueDictionary()


class Links:
    """What each dictionary held at a key when it was looked up."""

    def __init__(self, holders: Sequence[Any], keys: Sequence[Any], held: Sequence[Any]) -> None:
        self.holders, self.keys, self.held = holders, keys, held
        # others have a `get` of their own
        are_plain = all(type(holder) in (dict, OrderedDict) for holder in holders)
        self.get = dict.get if are_plain else lambda holder, key: holder.get(key)

    def hold(self) -> bool:
        """Whether it is all there still."""
        return all(map(is_, map(self.get, self.holders, self.keys), self.held))


class PatchRecord(PatchHook):
    """The forward pre-hook of a patched model that refuses to run without one of its shifts.

    A call of eager costs a dictionary look-up for each module on the way to a site; a graph is asked when it is made.

    Attributes:
        hooks: the shifts and frame counters by the names of the modules that they were put at.
    """

    def __init__(self, model: nn.Module | None, hooks: list[tuple[str, ShiftHook | FrameCounter]]) -> None:
        self.hooks = hooks
        self._begin(model)

    def _begin(self, model: nn.Module | None) -> None:
        self._links: Links | None = None
        self._model = None if model is None else ref(model)
        self._number = next(_numbers)
        _records[self._number] = self

    def __getstate__(self) -> dict[str, Any]:
        return {"hooks": self.hooks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.hooks = state["hooks"]
        self._begin(None)  # it is told by the first call

    def __deepcopy__(self, memo: dict[int, Any]) -> "PatchRecord":
        new = memo[id(self)] = PatchRecord(memo.get(id(self.model)), [])
        new.hooks = copy.deepcopy(self.hooks, memo)
        return new

    @property
    def model(self) -> nn.Module | None:
        """The patched model, None where it is gone, or was not called since it came out of a file."""
        return None if self._model is None else self._model()

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        if is_dynamo_compiling():
            _find_by_number(self._number)
            return
        links = self._links
        # no loop of Python: half of its time; nor a call of `hold`
        intact = links and all(map(is_, map(links.get, links.holders, links.keys), links.held))
        # a replica of DataParallel has modules of its own, one call long
        if not intact and REPLICA not in vars(module):
            self.find(module)

    def find(self, model: nn.Module) -> None:
        """Look the hooks up, wherever they stand by now; raise `RuntimeError` where one is missed."""
        if self.model is None:
            self._model = ref(model)
        paths = {
            id(hook): (name, module, key)
            for name, module in model.named_modules()
            for key, hook in pre_hooks(module).items()
        }
        # its own, or one like it that came with what took the place
        there = [
            hook if id(hook) in paths and not hook.removed else _like(model, name, hook)
            for name, hook in self.hooks
        ]
        lost = [name for (name, _), hook in zip(self.hooks, there, strict=True) if hook is None]
        if lost:
            raise _gone(model, f"its {len(self.hooks)} shifts", "a model that was changed", lost)
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
        self._links = Links(*zip(*links.values(), strict=True)) if links else Links((), (), ())

    def forget(self, part: nn.Module) -> None:
        """Miss no shift of a part of the model that was unpatched on purpose, and none where all were."""
        model = self.model
        if model is None or not any(isinstance(hook, ShiftHook) for *_, hook in _hooks_in(model)):
            self.hooks = [(name, hook) for name, hook in self.hooks if not hook.removed]
            return
        for path, module in model.named_modules(remove_duplicate=False):
            if module is part:
                self.hooks = [each for each in self.hooks if not f"{each[0]}.".startswith(f"{path}.")]
        self._links = None


@constant_in_graphs
def _find_by_number(number: int) -> bool:
    """Have a record look its hooks up while a graph is made: Dynamo runs this as it stands."""
    record = _records.get(number)
    model = None if record is None else record.model
    if record is not None and model is not None:
        record.find(model)
    return True


def records() -> list[PatchRecord]:
    """Those of all patched models that there are."""
    # values() is a loop of Python, in which another thread may patch
    return [record for each in _records.valuerefs() if (record := each()) is not None]


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
    taken = list(_hooks_in(model))
    inside = {id(module) for module in model.modules()}
    beside = [
        other
        for other in _models()
        if id(other) not in inside and all(m is not model for m in other.modules())
    ]
    for _, module, key, _ in taken:
        take_pre_hook(module, key)
    standing = {id(hook) for other in beside for *_, hook in _hooks_in(other)}
    for *_, hook in taken:
        hook = hook.hook if isinstance(hook, LostShift) else hook
        # what left the model before, and is put back, shifts no more; what another model holds is that one's
        if not isinstance(hook, PatchRecord) and id(hook) not in standing:
            hook.removed = True
    for record in records():
        record.forget(model)


def _carry(parent: nn.Module, name: str, new: Any) -> None:
    """Hand the shifts of the module that `new` replaces on to the same places in it."""
    if torch.compiler.is_dynamo_compiling():  # a graph of autograd's, whose modules are its own
        return
    modules = modules_of(parent)
    old = modules.get(name) if isinstance(modules, dict) else None  # a scripted module's are no dict
    if old is None or not isinstance(new, nn.Module) or new is old:
        return
    moving = [each for each in _hooks_in(old) if not getattr(each[3], "removed", False)]
    if not moving or any(isinstance(hook, PatchRecord) for *_, hook in moving):
        return  # a whole model takes the place of another: the patch is that one's own
    models = _models_with([hook for *_, hook in moving])
    is_part = not models or any(module is parent for model in models for module in model.modules())
    is_site = any(not path for path, *_ in moving)
    if not is_part and not is_site:
        return  # what holds a stage for a while; but a graph holds sites in modules of its own
    places = dict(new.named_modules())
    inside = {id(module) for module in places.values()}
    # what stays where it is: a wrapper around a block holds its sites
    moving = [each for each in moving if not (each[0] and id(each[1]) in inside)]
    _check_alike(moving, places)
    for path, module, key, hook in moving:
        if isinstance(hook, LostShift):
            path, hook = ".".join(filter(None, (path, hook.path))), hook.hook
        place = places.get(path)
        if place is None:
            if not hook.removed:
                new.register_forward_pre_hook(LostShift(path, hook), with_kwargs=True)
                keep_in_copies(new)
            continue
        comes_back = any(there is hook for there in pre_hooks(place).values())
        if comes_back:  # what stood there meanwhile goes without
            take_pre_hook(module, key)
            forget_description(module)
        elif not isinstance(hook, ShiftHook) or not _takes_over(place, hook):
            # it stays on an old module that is not inside, too, which may stand in other places
            place.register_forward_pre_hook(hook, with_kwargs=True)
        keep_in_copies(place)


def _models() -> list[nn.Module]:
    """The patched models, as far as their records know them."""
    return [model for record in records() if (model := record.model) is not None]


def _models_with(hooks: list[Any]) -> list[nn.Module]:
    """The patched models that hold one of these hooks by now."""
    return [model for model in _models() if any(hook in hooks for *_, hook in _hooks_in(model))]


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
    there.take_over(hook)
    return True


def _check_alike(moving: list[tuple[str, nn.Module, int, Any]], places: dict[str, nn.Module]) -> None:
    """Raise where what takes a shifted place is shifted in another way."""
    for path, _, _, hook in moving:
        there = _shift_of(places[path]) if path in places else None
        if there is None or not isinstance(hook, ShiftHook):
            continue
        if (there.moves, there.num_segments) != (hook.moves, hook.num_segments):
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
    hooks = (hook for hook in pre_hooks(module).values() if isinstance(hook, ShiftHook))
    return next((hook for hook in hooks if not hook.removed), None)


def _like(model: nn.Module, name: str, hook: ShiftHook | FrameCounter) -> ShiftHook | None:
    """The shift of the place that moves the same, of clips of whatever length."""
    place = dict(model.named_modules()).get(name)
    there = None if place is None else _shift_of(place)
    return there if there is None or not isinstance(hook, ShiftHook) or there.moves == hook.moves else None


register_module_module_registration_hook(_carry)
run_uncompiled(PatchRecord.__call__)
