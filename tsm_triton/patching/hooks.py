"""The hooks that hold a shift, and what acts on those of a patched model."""

import inspect
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Proxy

from .. import ops
from ..arguments import as_count
from ..functional import clip_boundaries, fold_counts, shift_clips, shift_plain, temporal_shift
from ..modules.clip_layer import ClipLayer, CutsClips
from ..ops.direct import is_plain
from ..threads import OfThread
from ..torch_private import backward_number, in_backward, pre_hooks
from .hook_guards import guard_hooks
from .unshifted import keeps_unshifted, remember_unshifted

__all__ = [
    "FrameCounter",
    "ShiftHook",
    "Unscripted",
    "check_no_clip_layers",
    "clip_length_of",
    "clip_lengths_in",
    "first_parameter",
    "frames_out",
    "is_patched",
    "packed_clips",
    "set_num_segments",
    "shift_disabled",
    "shift_hooks",
]

Model = TypeVar("Model", bound=nn.Module)

guard_hooks()


class _OfHooks:
    """What graphs shall take as an input, an attribute for each hook.

    Here and not in the hooks, because Dynamo takes the size of every tensor that it finds by way of a module for a
    constant, and every number wherever it finds it: each packing and each clip length would be compiled anew.
    """


_boundaries = _OfHooks()
_lengths = _OfHooks()  # of clips: the size of a tensor that holds nothing
_numbers = itertools.count()


class Unscripted:
    """What TorchScript cannot hold, and says so where it asks a hook for its name."""

    @property
    def __name__(self) -> str:
        raise AttributeError(
            "expected a model that TorchScript can hold, got a patched one, whose hooks are Python. Use "
            "torch.jit.trace, whose graph takes any number of clips, torch.export or torch.compile."
        )


class ShiftHook(Unscripted):
    """The forward pre-hook that shifts a module's first argument, and the record that it is shifted.

    Its attributes are plain values: they survive `copy.deepcopy` and pickle, and `torch.compile` guards
    them, so changing one on an installed hook recompiles correctly. What belongs to a call that runs, `step`,
    `boundaries` and `length`, is not copied. Where the argument has several rows a frame, sorted by frame
    (windows), `counter` knows how many frames there are.
    """

    # the frames of a clip in the call that is being traced, a symbol
    length: int | None = None
    # whether `unpatch` took it off a part of a model whose record still knows it
    removed = False
    # whether a thread ever gave it a step or a length of its own: without, no call looks for one
    told_by_threads = False
    # the first parameter of the site's forward, for calls by keywords in another order
    argument: str | None = None
    # of the site and the patch that it came from, for `save_checkpoint`
    channels = 0
    place = "blockres"

    def __init__(
        self,
        num_segments: int,
        shift_div: int,
        direction: str,
        channel_dim: int,
        counter: "FrameCounter | None" = None,
        fold_order: str = "future_first",
    ) -> None:
        self._number_itself()
        self.num_segments = num_segments
        self.shift_div = shift_div
        self.direction = direction
        self.channel_dim = channel_dim
        self.counter = counter
        self.fold_order = fold_order
        self.enabled = True
        self._step = OfThread()
        self._own_length = OfThread()

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
        self._key = f"of_{next(_numbers)}"
        self.boundaries = None

    @property
    def num_segments(self) -> int:
        """The frames of a clip."""
        if torch.compiler.is_dynamo_compiling():
            length = getattr(_lengths, self._key)
            if length is not None:
                return length.shape[0]
            return self._num_segments
        own = self._own_length.value
        return self._num_segments if own is None else own

    @num_segments.setter
    def num_segments(self, num_segments: int) -> None:
        self.leave_at(num_segments)
        self.told = num_segments

    def leave_at(self, num_segments: int) -> None:
        """Set it to that of a call, which a backward may run again; `told` is what it was set to."""
        self._num_segments = num_segments
        length = torch.empty(num_segments, 0, device="cpu")
        # a fake one would be of the mode that the model is patched under
        setattr(_lengths, self._key, length if type(length) is Tensor else None)

    @property
    def boundaries(self) -> Tensor | None:
        """Where clips of different lengths begin, inside `packed_clips`, and for the thread that is inside of it.

        A GPU's backward, which runs again what gradient checkpointing wraps, has a thread of its own.
        """
        boundaries = getattr(_boundaries, self._key)
        if boundaries is None or torch.compiler.is_dynamo_compiling():
            return boundaries
        return boundaries if self._packed_by == threading.get_ident() or in_backward() else None

    @boundaries.setter
    def boundaries(self, boundaries: Tensor | None) -> None:
        if not torch.compiler.is_dynamo_compiling():
            self._packed_by = threading.get_ident()
        setattr(_boundaries, self._key, boundaries)
        self._is_packed = boundaries is not None  # by any thread

    @property
    def packed_elsewhere(self) -> bool:
        """Whether another thread is inside `packed_clips`."""
        return self._is_packed and self._packed_by != threading.get_ident()

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value for key, value in vars(self).items() if key not in ("length", "_key", "_packed_by")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._number_itself()
        self.leave_at(self._num_segments)

    def __del__(self) -> None:
        for values in (_boundaries, _lengths):
            if values is not None:  # at the interpreter's end
                vars(values).pop(vars(self).get("_key", ""), None)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> tuple[Any, ...] | None:
        if not self.enabled:
            return None
        if kwargs is None:
            # torch.ao's fused module, which took the hook of the first of its parts along but not that it takes
            # these; where a batch-norm was folded, that part is a copy and holds one still
            hooks = (hook for part in module.modules() for hook in pre_hooks(part).values())
            if any(isinstance(hook, ShiftHook) and hook is not self for hook in hooks):
                return None
            return (self._shift_for(module, args[0]), *args[1:])
        if args:
            x = args[0]
            shifted = self._shift_for(module, x) if torch.is_grad_enabled() else self.shift(x)
            return (shifted, *args[1:]), kwargs
        name = _name_of(self.argument, kwargs)
        return args, {**kwargs, name: self._shift_for(module, kwargs[name])}

    def _shift_for(self, module: nn.Module, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not keeps_unshifted(x) or self.step is not None:
            return self.shift(x)
        if next(reversed(pre_hooks(module).values()), None) is not self:
            return self.shift(x)  # the next one may write it where autograd does not see that
        shift = self._as_of_now(x)
        shifted = shift(x)
        remember_unshifted(module, x, shifted, shift)
        return shifted

    def shift(self, x: Tensor) -> Tensor:
        if is_plain(x) and self.counter is None and not self.told_by_threads and not self._is_packed:
            # what follows, in half of the time: between a network's layers the code is in no cache
            return shift_plain(
                x, self._num_segments, self.shift_div, self.direction, self.channel_dim, self.fold_order
            )
        if isinstance(x, Proxy):
            frames = None if self.counter is None else self.counter.frames
            arguments = (x, frames) if isinstance(frames, Proxy) else (x,)
            return x.tracer.create_proxy("call_function", self.traced_shift, arguments, {})  # type: ignore[return-value]
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

    def traced_shift(self, x: Tensor, frames: int | None = None) -> Tensor:
        """What a graph of torch.fx calls, which traced through the module and its hook: the hook goes on to say how.

        Args:
            x: the module's argument.
            frames: where it has several rows a frame and the graph counts them itself.
        """
        if not self.enabled:
            return x
        return self.shift(x) if frames is None or self.step is not None else self._as_of_now(x, frames)(x)

    def _as_of_now(self, x: Tensor, frames: int | None = None) -> Callable[[Tensor], Tensor]:
        """The shift itself, of values: a backward may shift again when the hook has been told others."""
        if frames is None and self.counter is not None:
            frames = self.counter.frames_of(x.shape[0])
        shift_div, direction, fold_order = self.shift_div, self.direction, self.fold_order
        channel_dim, boundaries = self.channel_dim, self.boundaries
        length = self._length_now() if boundaries is None else None

        def shift(x: Tensor, channel_dim: int) -> Tensor:
            if boundaries is not None:
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


def _name_of(argument: str | None, kwargs: dict[str, Any]) -> str:
    """The keyword of a module's first parameter."""
    return argument if argument is not None and argument in kwargs else next(iter(kwargs))


def first_parameter(module: nn.Module) -> str | None:
    """The name of a forward's first parameter, None where it has none."""
    try:
        names = [
            each.name for each in inspect.signature(module.forward).parameters.values() if each.kind in _NAMED
        ]
    except (TypeError, ValueError):  # no function of Python's
        return None
    return names[0] if names else None


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _by_rows(x: Tensor, frames: int, channel_dim: int, shift: Callable[[Tensor, int], Tensor]) -> Tensor:
    # [N*T*k, ...] as [N*T, k, ...]: the shift moves whole frames of k rows
    rows = x.reshape(frames, x.shape[0] // frames, *x.shape[1:])
    channel_dim = channel_dim if channel_dim < 0 else channel_dim + 1
    if rows.dim() > 4:  # no axis that could be taken for frames
        rows = rows.flatten(1, -2) if channel_dim < 0 else rows.flatten(3)
    return shift(rows, channel_dim).reshape(x.shape)


class FrameCounter(Unscripted):
    """The forward pre-hook that notes how many frames a module receives, for the shifts behind it.

    Threads may run one model side by side, each with a batch of its own size. A backward runs again what gradient
    checkpointing wraps, on a GPU on a thread of its own, and the counter may stand outside of that: there the rows of
    a map tell how many frames they were.
    """

    removed = False
    # as `ShiftHook.argument`
    argument: str | None = None

    def __init__(self) -> None:
        self._eager = OfThread()
        self._counted_in = OfThread()
        self._latest = 1
        # rows of a map -> frames, 0 where they were several numbers of frames, and how many backwards were before
        self._frames_of_rows: dict[int, tuple[int, int]] = {}
        self._backwards, self._last_backward = 0, -1
        self._traced = 1  # a graph knows its own number, and cannot hold what belongs to a thread

    @property
    def frames(self) -> int:
        if torch.compiler.is_compiling():
            return self._traced
        return self._latest if self._eager.value is None else self._eager.value

    def frames_of(self, rows: int) -> int:
        """The frames in a map of so many rows.

        Raises:
            RuntimeError: a backward runs a forward again, and maps of as many rows had several numbers of frames.
        """
        if torch.compiler.is_compiling():
            return self._traced
        backward = backward_number()
        if backward == -1 or self._counted_in.value == backward:
            frames = self.frames
            noted, since = self._frames_of_rows.get(rows, (frames, -1))
            is_clear = noted == frames or since != self._backwards
            self._frames_of_rows[rows] = (frames if is_clear else 0, self._backwards)
            return frames
        if backward != self._last_backward:
            self._backwards, self._last_backward = self._backwards + 1, backward
        frames, _ = self._frames_of_rows.get(rows, (self.frames, 0))
        if frames == 0:
            del self._frames_of_rows[rows]
            raise RuntimeError(
                f"expected to know the frames of {rows} rows in a backward that runs a forward again, got several "
                "numbers: frames of two sizes came before it. Call backward() behind each size, or checkpoint the part "
                "that splits frames into windows too."
            )
        return frames

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        x = args[0] if args else (kwargs or {})[_name_of(self.argument, kwargs or {})]
        if torch.compiler.is_compiling():
            self._traced = x.shape[0]
        else:
            self._eager.value = self._latest = x.shape[0]
            self._counted_in.value = backward_number()


def is_patched(model: nn.Module) -> bool:
    """Whether any module of the model is shifted."""
    return next(_iter_hooks(model), None) is not None


def shift_hooks(model: nn.Module) -> list[ShiftHook]:
    """The hooks of a patched model, in the model's own order.

    Raises:
        RuntimeError: the model is not patched.
    """
    hooks = list(_iter_hooks(model))
    if not hooks:
        raise RuntimeError(
            f"expected a patched model, got {type(model).__name__} without a shift. "
            "Call tsm_triton.patch(model) first."
        )
    return hooks


def set_num_segments(model: Model, num_segments: int) -> Model:
    """Tell a patched model that clips now have `num_segments` frames; compiled graphs follow.

    Gradient checkpointing runs blocks again in the backward, with the number of that time: change it after
    the backward only.

    Raises:
        RuntimeError: the model is not patched.
        TypeError, ValueError: not a positive int; an odd one before a TemporalPool.

    Example:
        >>> import timm, torch
        >>> from tsm_triton import patch
        >>> model = set_num_segments(patch(timm.create_model("resnet18")), 4)
        >>> model(torch.randn(4, 3, 64, 64)).shape
        torch.Size([4, 1000])
    """
    num_segments = as_count(num_segments, "num_segments")
    shift_hooks(model)
    for holder, frames in clip_lengths_in(model, num_segments):
        holder.num_segments = frames
    for module in model.modules():
        if isinstance(module, CutsClips):
            module.num_segments = num_segments
    return model


def clip_lengths_in(model: nn.Module, num_segments: int) -> list[tuple[ShiftHook | ClipLayer, int]]:
    """Each shift and clip layer of a model with the frames that a clip of `num_segments` has where it stands.

    Behind a `TemporalPool` these are half as many; what is behind it is told by the order of the model's modules.

    Raises:
        ValueError: a pool that would receive an odd number.
    """
    found: list[tuple[ShiftHook | ClipLayer, int]] = []
    for holder, pooled in _clip_holders(model):
        frames = num_segments // pooled
        if isinstance(holder, ClipLayer) and frames % holder.pools:
            raise ValueError(
                f"expected clips whose frames {type(holder).__name__} can halve, got {frames} where it stands, of "
                f"num_segments={num_segments}. Pass a multiple of twice as many."
            )
        found.append((holder, frames))
    return found


def clip_length_of(model: nn.Module) -> int:
    """The frames that a clip has where it enters a patched model, by what its shifts and clip layers are set to: their
    least common multiple where they differ.

    Raises:
        RuntimeError: neither a shift nor a clip layer is there.
    """
    lengths = [holder.num_segments * pooled for holder, pooled in _clip_holders(model)]
    if not lengths:
        shift_hooks(model)  # says to patch
    return math.lcm(*lengths)


def frames_out(model: nn.Module, num_segments: int) -> int:
    """The rows that a model gives for a clip: fewer than its frames where it pools them."""
    for module in model.modules():
        if isinstance(module, ClipLayer):
            num_segments //= module.pools
    return num_segments


def check_no_clip_layers(model: nn.Module, what: str) -> None:
    """Raise where a model mixes the frames of a clip in other ways than the shift, of which `what` knows nothing."""
    layer = next(((name, m) for name, m in model.named_modules() if isinstance(m, ClipLayer)), None)
    if layer is not None:
        raise RuntimeError(
            f"{what}: expected a model whose frames meet in shifts alone, got {type(layer[1]).__name__} at "
            f"{layer[0]!r}, which needs whole clips of one length. Call the model, or VideoClassifier, with such clips."
        )


@contextmanager
def shift_disabled(model: nn.Module) -> Iterator[None]:
    """Run a patched model as the 2D network it was, bit for bit; contexts nest.

    With gradient checkpointing the backward belongs inside too: it runs blocks again.

    Raises:
        RuntimeError: the model is not patched.

    Example:
        >>> import timm, torch
        >>> from tsm_triton import patch
        >>> model, images = patch(timm.create_model("resnet18").eval()), torch.randn(3, 3, 64, 64)
        >>> with shift_disabled(model):
        ...     model(images).shape  # any number of images
        torch.Size([3, 1000])
    """
    before = [(hook, hook.enabled) for hook in shift_hooks(model)]
    try:
        for hook, _ in before:
            hook.enabled = False
        yield
    finally:
        for hook, enabled in before:
            hook.enabled = enabled


@contextmanager
def packed_clips(model: nn.Module, clip_lengths: Sequence[int] | Tensor) -> Iterator[None]:
    """Run a patched model on clips of different lengths, packed along the frame axis without padding.

    The lengths are this thread's; but one thread at a time may be inside, and a compiled model takes them for every
    thread. With gradient checkpointing the backward belongs inside too: it runs blocks again.

    Args:
        model: a patched model.
        clip_lengths: how many frames each clip has; they add up to the frames the model is called with.

    Raises:
        RuntimeError: the model is not patched, or holds a TemporalPool, a NonLocal or a RecurrentHead; or another
            thread is inside.
        TypeError, ValueError: lengths that are not non-negative integers, or (in the model's forward) do not
            add up to its frames.

    Example:
        >>> import timm, torch
        >>> from tsm_triton import patch
        >>> model = patch(timm.create_model("resnet18").eval())
        >>> with packed_clips(model, [3, 5]):
        ...     model(torch.randn(3 + 5, 3, 64, 64)).shape
        torch.Size([8, 1000])
    """
    hooks = shift_hooks(model)
    check_no_clip_layers(model, "packed_clips")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    boundaries = clip_boundaries(clip_lengths, device=device)
    if any(hook.packed_elsewhere for hook in hooks):
        raise RuntimeError(
            f"expected no other thread inside packed_clips of this {type(model).__name__}, got one: pack one "
            "thread's clips at a time, or give each thread a copy.deepcopy of the model"
        )
    before = [(hook, hook.boundaries) for hook in hooks]
    try:
        for hook in hooks:
            hook.boundaries = boundaries
        yield
    finally:
        for hook, earlier in before:
            hook.boundaries = earlier


def _clip_holders(model: nn.Module) -> Iterator[tuple[ShiftHook | ClipLayer, int]]:
    """What holds the length of clips, each with how many of their frames are one where it stands."""
    pooled = 1
    for module in model.modules():
        yield from ((hook, pooled) for hook in _hooks_of(module))
        if isinstance(module, ClipLayer):
            yield module, pooled
            pooled *= module.pools


def _iter_hooks(model: nn.Module) -> Iterator[ShiftHook]:
    for module in model.modules():
        yield from _hooks_of(module)


def _hooks_of(module: nn.Module) -> Iterator[ShiftHook]:
    for hook in pre_hooks(module).values():
        if isinstance(hook, ShiftHook):
            yield hook
    if isinstance(module, GraphModule):
        for node in module.graph.nodes:
            hook = getattr(node.target, "__self__", None)
            if isinstance(hook, ShiftHook):
                yield hook
