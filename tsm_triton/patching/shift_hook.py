"""The hook that shifts what a module is given."""

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, is_grad_enabled, nn
from torch.fx import Proxy

from .. import ops
from ..backwards import CALLS, Recorded, Told, told_again
from ..functional import fold_counts, plan_shift, shift_clips, temporal_shift
from ..ops.copies import Plan, copied
from ..ops.direct import is_plain
from ..threads import OfThread
from ..torch_private import in_backward, pre_hooks
from .frame_counter import FrameCounter
from .hook_calls import PatchHook, keyword_of
from .hook_guards import guard_hooks
from .traced_shift import put_into_graph
from .unshifted import keeps_unshifted, remember_unshifted
from .visits import Visit

__all__ = ["ShiftHook"]

guard_hooks()


class _OfHooks:
    """What graphs shall take as an input, an attribute for each hook.

    Here and not in the hooks, because Dynamo takes the size of every tensor that it finds by way of a module for a
    constant, and every number wherever it finds it: each packing and each clip length would be compiled anew.
    """


_boundaries = _OfHooks()
_lengths = _OfHooks()  # of clips: the size of a tensor that holds nothing
_numbers = itertools.count()
_LAYOUTS = 16  # that a hook has plans of: more are those of a caller whose sizes never come again


class ShiftHook(PatchHook):
    """The forward pre-hook that shifts a module's first argument, and the record that it is shifted.

    Its attributes are plain values: they survive `copy.deepcopy` and pickle, and `torch.compile` guards
    them, so changing one on an installed hook recompiles correctly. What belongs to a call that runs, `step`,
    `boundaries` and `length`, is not copied. Where the argument has several rows a frame, sorted by frame
    (windows), `counter` knows how many frames there are.
    """

    # the frames of a clip in the call that is being traced, a symbol
    length: int | None = None
    # whether `unpatch` took it off: what it still stands at, outside of the model, is shifted no more
    removed = False
    # how many rows the frames of streams had that autograd recorded, which no backward can run again
    stepped_rows: frozenset[int] = frozenset()
    # what runs and tells compiled blocks of its clips, the last one last
    tellings: tuple[tuple[object, Told], ...] = ()
    # whether a thread ever gave it a step or a length of its own: without, no call looks for one
    told_by_threads = False
    # the first parameter of the site's forward, for calls by keywords in another order
    argument: str | None = None
    # how maps of some layouts are shifted while nothing of the hook changes, see `__setattr__`
    _plans: dict[tuple[Any, ...], Plan]
    # of the site and the patch that it came from, for `save_checkpoint`
    channels = 0
    place = "blockres"

    def __init__(
        self,
        num_segments: int,
        shift_div: int,
        direction: str,
        channel_dim: int,
        counter: FrameCounter | None = None,
        fold_order: str = "future_first",
    ) -> None:
        self._number_itself()
        self.num_segments = num_segments
        self.shift_div = shift_div
        self.direction = direction
        self.channel_dim = channel_dim
        self.counter = counter
        self.fold_order = fold_order
        self._step = OfThread()
        self._own_length = OfThread()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # behind the value: a thread that has planned with the one before puts its plan where none looks any more
        vars(self)["_plans"] = {}

    @property
    def step(self) -> Callable[[Tensor], Tensor] | None:
        """What stands in for the shift while `tsm_triton.streaming.step` runs the model on this thread."""
        return self._step.value

    @step.setter
    def step(self, step: Callable[[Tensor], Tensor] | None) -> None:
        self._step.value = step
        self.told_by_threads = True

    def set_own_length(self, length: int | None) -> None:
        """The frames of a clip in the calls of this thread alone, None for the model's."""
        self._own_length.value = length
        self.told_by_threads = True

    @property
    def moves(self) -> tuple[int, str, int, str]:
        """Which channels, from where, on which axis."""
        return self.shift_div, self.direction, self.channel_dim, self.fold_order

    def _number_itself(self) -> None:
        """And nobody is inside of its contexts."""
        self._key = f"of_{next(_numbers)}"
        self.enabled = True
        self._off: tuple[Visit, ...] = ()
        self._packings: tuple[Visit, ...] = ()
        self.calls: deque[Recorded] = deque(maxlen=CALLS)
        setattr(_boundaries, self._key, None)

    @property
    def num_segments(self) -> int:
        """The frames of a clip."""
        if torch.compiler.is_dynamo_compiling():
            length = getattr(_lengths, self._key)
            if length is not None:
                return length.shape[0]
            return self._num_segments
        if (own := self._own_length.value) is not None:
            return own
        again = told_again(self)
        return self._num_segments if again is None else again.length

    @num_segments.setter
    def num_segments(self, num_segments: int) -> None:
        self._num_segments = num_segments
        self.tell_graphs()

    @property
    def told(self) -> Told:
        return Told(self._num_segments, self._packed())

    def tell_graphs(self) -> None:
        if self.tellings:
            num_segments, boundaries = self.tellings[-1][1]
        else:
            num_segments, boundaries = self._num_segments, None
            if self._packings:
                boundaries = self._packings[-1].boundaries
        setattr(_boundaries, self._key, boundaries)
        length = getattr(_lengths, self._key, None)
        if length is not None and length.shape[0] == num_segments:
            return
        length = torch.empty(num_segments, 0, device="cpu")
        # a fake one would be of the mode that the model is patched under
        setattr(_lengths, self._key, length if type(length) is Tensor else None)

    @property
    def boundaries(self) -> Tensor | None:
        """Where clips of different lengths begin, for the thread or the task that is inside of `packed_clips`, and in
        graphs; None in a call over clips of one length.

        A GPU's backward, which runs again what gradient checkpointing wraps, has a thread of its own.
        """
        if torch.compiler.is_dynamo_compiling():
            return getattr(_boundaries, self._key) if self.length is None else None
        if self._own_length.value is not None:
            return None
        if (again := told_again(self)) is not None:
            return again.boundaries
        return self._packed()

    @boundaries.setter
    def boundaries(self, boundaries: Tensor | None) -> None:
        """Of graphs."""
        setattr(_boundaries, self._key, boundaries)

    def _packed(self) -> Tensor | None:
        """The boundaries of the packing that this thread or task is inside of."""
        for visit in reversed(self._packings):
            if visit.is_here:
                return visit.boundaries
        return self._packings[-1].boundaries if self._packings and in_backward() else None

    @property
    def packed_elsewhere(self) -> bool:
        """Whether another thread or task is inside of `packed_clips`."""
        return not all(visit.is_here for visit in self._packings)

    def enter(self, visit: Visit) -> None:
        if visit.boundaries is None:
            self._off = (*self._off, visit)
            self.enabled = False
        else:
            self._packings = (*self._packings, visit)
            self.tell_graphs()

    def leave(self, visit: Visit) -> None:
        if visit.boundaries is None:
            self._off = tuple(other for other in self._off if other is not visit)
            self.enabled = not self._off
        else:
            self._packings = tuple(other for other in self._packings if other is not visit)
            self.tell_graphs()

    def take_over(self, hook: "ShiftHook") -> None:
        """Be inside of what another is inside of, whose place this one takes."""
        for visit in (*hook._off, *hook._packings):
            visit.take_in(self)

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value
            for key, value in vars(self).items()
            if key
            not in (
                "length",
                "enabled",
                "calls",
                "tellings",
                "stepped_rows",
                "_key",
                "_off",
                "_packings",
                "_plans",
            )
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._number_itself()
        self.tell_graphs()

    def __del__(self) -> None:
        for values in (_boundaries, _lengths):
            if values is not None:  # at the interpreter's end
                vars(values).pop(vars(self).get("_key", ""), None)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> tuple[Any, ...] | None:
        # what follows, in less than half of the time: between a network's layers the code is in no cache. There is a
        # plan only where nothing asks for more: no step, no packing, no counter, and the shift is on.
        if args and kwargs is not None and is_plain(x := args[0]) and not is_grad_enabled():
            plan = self._plans.get((x.shape, x.stride(), x.storage_offset()))
            if plan is not None:
                return (copied(x, plan), *args[1:]), kwargs
        if not self.enabled or self.removed:
            return None
        if kwargs is None:
            # torch.ao's fused module, which took the hook of the first of its parts along but not that it takes
            # these; where a batch-norm was folded, that part is a copy and holds one still
            hooks = (hook for part in module.modules() for hook in pre_hooks(part).values())
            if any(isinstance(hook, ShiftHook) and hook is not self for hook in hooks):
                return None
            return (self._shift_for(module, args[0]), *args[1:])
        if args:
            x: Any = args[0]
            if torch.is_grad_enabled() or isinstance(x, Proxy):
                return (self._shift_for(module, x), *args[1:]), kwargs
            return (self.shift(x), *args[1:]), kwargs
        name = keyword_of(self.argument, kwargs)
        return args, {**kwargs, name: self._shift_for(module, kwargs[name])}

    def _shift_for(self, module: nn.Module, x: Any) -> Tensor:
        if isinstance(x, Proxy):
            return put_into_graph(module, x, None if self.counter is None else self.counter.frames)
        if not torch.compiler.is_compiling() and self.stepped_rows:  # which Dynamo would guard
            self._check_no_stream(x)
        if torch.compiler.is_compiling() or not keeps_unshifted(x) or self.step is not None:
            return self.shift(x)
        if next(reversed(pre_hooks(module).values()), None) is not self:
            return self.shift(x)  # the next one may write it where autograd does not see that
        shift = self._as_of_now(x)
        shifted = shift(x)
        remember_unshifted(module, x, shifted, shift)
        return shifted

    def _check_no_stream(self, x: Tensor) -> None:
        """Raise where a backward runs a frame of streams again, whose caches are no longer here."""
        if self.step is None and x.shape[0] in self.stepped_rows and in_backward():
            raise RuntimeError(
                f"expected a backward that runs no frame of a stream again, got {x.shape[0]} rows, as streams had: a "
                "step's caches are gone by then. Call model.set_grad_checkpointing(False) to go backwards through "
                "steps, and train on clips with another copy.deepcopy of the model."
            )

    def shift(self, x: Tensor) -> Tensor:
        if is_plain(x):
            plans = self._plans  # before all that a plan is made of
            if self.counter is None and not (self.told_by_threads or self._packings or self.calls):
                plan = plan_shift(
                    x, self._num_segments, self.shift_div, self.direction, self.channel_dim, self.fold_order
                )
                if len(plans) >= _LAYOUTS:  # threads may have been here side by side
                    plans.clear()
                if self.enabled and not self.removed:
                    plans[x.shape, x.stride(), x.storage_offset()] = plan
                return copied(x, plan)
        if self.step is not None:
            return self.step(x)
        if self.boundaries is None and self.counter is None:
            length = self._length_now()
            return shift_clips(x, length, self.shift_div, self.direction, self.channel_dim, self.fold_order)
        return self._as_of_now(x)(x)

    def _length_now(self) -> int:
        """The frames of a clip, in a trace those of its call: another thread's trace is none of ours."""
        if self.length is not None and torch.compiler.is_compiling():
            return self.length
        return self.num_segments

    def shift_in_graph(self, x: Tensor, frames: int | None = None) -> Tensor:
        """What a graph of torch.fx is given, and `frames` where it counts them itself."""
        if not self.enabled:
            return x
        return self.shift(x) if frames is None or self.step is not None else self._as_of_now(x, frames)(x)

    def _as_of_now(self, x: Tensor, frames: int | None = None) -> Callable[[Tensor], Tensor]:
        """The shift itself, of values: a backward may shift again when the hook has been told others."""
        if frames is None and self.counter is not None:
            frames = self.counter.frames_of(x.shape[0], self)
        shift_div, direction, fold_order = self.shift_div, self.direction, self.fold_order
        channel_dim, boundaries = self.channel_dim, self.boundaries
        length = self._length_now() if boundaries is None else None

        def shift(x: Tensor, channel_dim: int) -> Tensor:
            if boundaries is not None:
                if not torch.compiler.is_compiling() and len(boundaries) != x.shape[0] + 1:
                    raise ValueError(
                        f"expected clip_lengths that add up to the frames, got {len(boundaries) - 1} with "
                        f"{x.shape[0]} frames: pass the length of each clip to packed_clips"
                    )
                counts = fold_counts(x.shape[channel_dim], shift_div, direction, fold_order)
                return ops.temporal_shift_packed(x, boundaries, *counts, channel_dim)
            return temporal_shift(
                x,
                length,
                shift_div=shift_div,
                direction=direction,
                channel_dim=channel_dim,
                fold_order=fold_order,
            )

        return lambda x: shift(x, channel_dim) if frames is None else _by_rows(x, frames, channel_dim, shift)

    def __repr__(self) -> str:
        order = "" if self.fold_order == "future_first" else f"fold_order={self.fold_order!r}, "
        return (
            f"ShiftHook(num_segments={self.num_segments}, shift_div={self.shift_div}, "
            f"direction={self.direction!r}, channel_dim={self.channel_dim}, {order}enabled={self.enabled})"
        )


def _by_rows(x: Tensor, frames: int, channel_dim: int, shift: Callable[[Tensor, int], Tensor]) -> Tensor:
    # [N*T*k, ...] as [N*T, k, ...]: the shift moves whole frames of k rows
    rows = x.reshape(frames, x.shape[0] // frames, *x.shape[1:])
    channel_dim = channel_dim if channel_dim < 0 else channel_dim + 1
    if rows.dim() > 4:  # no axis that could be taken for frames
        rows = rows.flatten(1, -2) if channel_dim < 0 else rows.flatten(3)
    return shift(rows, channel_dim).reshape(x.shape)
