"""What acts on the hooks of a patched model."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..arguments import as_count
from ..functional import clip_boundaries
from ..modules.clip_layer import ClipLayer, CutsClips
from ..torch_private import pre_hooks
from .keeping import records
from .shift_hook import ShiftHook
from .traced_shift import TracedShift, untraced_name
from .visits import Visit

__all__ = [
    "check_no_clip_layers",
    "clip_length_of",
    "clip_lengths_in",
    "frames_out",
    "going_by",
    "is_patched",
    "packed_clips",
    "set_num_segments",
    "shift_disabled",
    "shift_hooks",
    "shifts_in",
]

Model = TypeVar("Model", bound=nn.Module)


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
    """Tell a patched model, or one of layers over clips, that these now have `num_segments` frames; compiled graphs
    follow.

    Gradient checkpointing runs blocks of a model that was called itself again in the backward, with the number of that
    time: change it after the backward only. A VideoClassifier's call keeps its own.

    Raises:
        RuntimeError: the model is not patched, and no layer in it takes clips.
        TypeError, ValueError: not a positive int; an odd one before a TemporalPool.

    Example:
        >>> import timm, torch
        >>> from tsm_triton import patch
        >>> model = set_num_segments(patch(timm.create_model("resnet18")), 4)
        >>> model(torch.randn(4, 3, 64, 64)).shape
        torch.Size([4, 1000])
    """
    num_segments = as_count(num_segments, "num_segments")
    lengths = clip_lengths_in(model, num_segments)
    if not lengths:
        shift_hooks(model)  # says to patch
    for holder, frames in lengths:
        holder.num_segments = frames
    for module in model.modules():
        if isinstance(module, CutsClips):
            module.num_segments = num_segments
    _warn_of_sharers(model)
    return model


def _warn_of_sharers(model: nn.Module) -> None:
    """Say where another model, which shares some of the shifts, has shifts of two clip lengths now."""
    told = set(_iter_hooks(model))
    for record in records():
        other = record.model
        if other is None or told.issuperset(hooks := list(_iter_hooks(other))) or told.isdisjoint(hooks):
            continue
        if any(module is model for module in other.modules()):
            continue  # a part of it, which may be told what it likes
        if len(lengths := {holder.num_segments * pooled for holder, pooled in _clip_holders(other)}) > 1:
            warnings.warn(
                f"expected no other model to share shifted modules with {type(model).__name__}, got a "
                f"{type(other).__name__}, whose clips are now of {', '.join(map(str, sorted(lengths)))} frames: call "
                "set_num_segments on it before it runs, or give each its own modules by copy.deepcopy",
                stacklevel=3,
            )


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
            f"{what}: expected a model whose frames meet in patched shifts alone, got {type(layer[1]).__name__} at "
            f"{layer[0]!r}, which needs whole clips of one length. Call the model, or VideoClassifier, with such clips."
        )


@contextmanager
def shift_disabled(model: nn.Module) -> Iterator[None]:
    """Run a patched model as the 2D network it was, bit for bit; contexts nest, and those of threads and tasks overlap:
    it is that network for all of them until the last one leaves.

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
    if torch.compiler.is_dynamo_compiling():
        with _set(model, "enabled", False):
            yield
    else:
        with _visiting(model, Visit()):
            yield


@contextmanager
def packed_clips(model: nn.Module, clip_lengths: Sequence[int] | Tensor) -> Iterator[None]:
    """Run a patched model on clips of different lengths, packed along the frame axis without padding.

    The lengths are of this thread or asyncio task, and of those begun inside; but one at a time may enter, and a
    compiled model takes them for all. With gradient checkpointing the backward belongs inside too: it runs blocks
    again.

    Args:
        model: a patched model.
        clip_lengths: how many frames each clip has; they add up to the frames the model is called with.

    Raises:
        RuntimeError: the model is not patched, or holds another layer over clips; or another thread or task is inside.
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
    # autograd may save them inside
    with nullcontext() if torch.compiler.is_compiling() else torch.inference_mode(False):
        boundaries = clip_boundaries(clip_lengths, device=device)
    if any(hook.packed_elsewhere for hook in hooks):
        raise RuntimeError(
            f"expected no other thread inside packed_clips of this {type(model).__name__}, nor task, got one: pack the "
            "clips of one at a time, or give each a copy.deepcopy of the model"
        )
    with going_by(model, boundaries):
        yield


@contextmanager
def going_by(model: nn.Module, boundaries: Tensor) -> Iterator[None]:
    """Run a patched model on clips that begin where this says, also in a graph."""
    if torch.compiler.is_dynamo_compiling():
        with _set(model, "boundaries", boundaries):
            yield
    else:
        with _visiting(model, Visit(boundaries)):
            yield


@contextmanager
def _visiting(model: nn.Module, visit: Visit) -> Iterator[None]:
    try:
        visit.begin(shift_hooks(model))
        yield
    finally:
        visit.end()


@contextmanager
def _set(model: nn.Module, attribute: str, value: Any) -> Iterator[None]:
    """Have the hooks hold a value while a graph is traced, where nobody else is inside."""
    before = [(hook, getattr(hook, attribute)) for hook in shift_hooks(model)]
    try:
        for hook, _ in before:
            setattr(hook, attribute, value)
        yield
    finally:
        for hook, old in before:
            setattr(hook, attribute, old)


def _clip_holders(model: nn.Module) -> Iterator[tuple[ShiftHook | ClipLayer, int]]:
    """What holds the length of clips, each with how many of their frames are one where it stands."""
    pooled = 1
    for module in model.modules():
        yield from ((hook, pooled) for hook in _hooks_of(module))
        if isinstance(module, ClipLayer):
            yield module, pooled
            pooled *= module.pools


def shifts_in(model: nn.Module) -> Iterator[tuple[str, ShiftHook]]:
    """The shifts of a model, or of a graph of torch.fx that was made of one, with the names of their places."""
    for name, module in model.named_modules():
        name = untraced_name(name) if isinstance(module, TracedShift) else name
        yield from ((name, hook) for hook in _hooks_of(module))


def _iter_hooks(model: nn.Module) -> Iterator[ShiftHook]:
    for module in model.modules():
        yield from _hooks_of(module)


def _hooks_of(module: nn.Module) -> Iterator[ShiftHook]:
    for hook in pre_hooks(module).values():
        if isinstance(hook, ShiftHook) and not hook.removed:
            yield hook
    if isinstance(module, TracedShift) and module.hook is not None:
        yield module.hook
