"""What goes into an exported graph and comes out of it, by name: clips, frames, or a frame and a stream's caches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..fusion.fuse import MOST_ROWS, FusedModel
from ..modules.clip_layer import ClipLayer, fixed_length_in
from ..patching.hooks import clip_length_of, clip_lengths_in
from ..preparation import frame_shape
from ..streaming.step import StreamStep
from ..streaming.stream import Streaming
from ..video.classifier import VideoClassifier
from ..video.clips import fixed_length

__all__ = ["Interface", "interface_of"]

MULTIPLE = 32  # of free heights and widths: what the strides of the usual networks divide
MOST_PIXELS = 4096


@dataclass(frozen=True)
class Interface:
    """A module of flat tensors, and their names.

    Attributes:
        module: takes the inputs in their order.
        inputs: name -> an example.
        dynamic_shapes: as `torch.export.export` takes them.
        axes: of each input, a name where a size is free.
        outputs: names; None where what comes out shows only in the graph.
        num_segments: T; where any is taken the one that the model is made for; None where a frame comes alone.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic_shapes: tuple[Any, ...]
    axes: dict[str, tuple[int | str, ...]]
    outputs: tuple[str, ...] | None
    num_segments: int | None


def interface_of(model: Any, example_input: Tensor | None, dynamic_size: bool) -> Interface:
    """The interface of a model that `check_exportable` let pass.

    Raises:
        ValueError: an example of another shape, or a free size where the model is made for one.
    """
    if isinstance(model, (Streaming, StreamStep)):
        return _of_a_step(model.step if isinstance(model, Streaming) else model, example_input, dynamic_size)
    if isinstance(model, VideoClassifier):
        return _of_clips(model, example_input, dynamic_size)
    return _of_frames(model, example_input, dynamic_size)


def _of_clips(model: VideoClassifier, example: Tensor | None, dynamic_size: bool) -> Interface:
    fixed = fixed_length(model.model)
    _check_rank(example, 5, "video [N, T, C, H, W]")
    if fixed and example is not None and example.shape[1] != fixed:
        raise ValueError(
            f"example_input must be clips of {fixed} frames, which this model was fused for, got {example.shape[1]}. "
            "Call tsm_triton.set_num_segments(model, T) on the patched model and fuse it again."
        )
    length = fixed or (model.num_segments if example is None else example.shape[1])
    clip_lengths_in(model.model, length)  # raises where a pool cannot halve them
    if any(isinstance(module, ClipLayer) and module.pools > 1 for module in model.modules()):
        fixed = length  # torch takes a free number that is halved for another one
    size = _frame_size(model.model, None if example is None else example.flatten(0, 1))
    video = _zeros(model, 2, fixed or max(2, length), *size)
    shapes, axes = _free_sizes(model.model, size, dynamic_size, first=2)
    shapes[0] = torch.export.Dim("clips", min=1, max=MOST_ROWS)
    if fixed is None:
        shapes[1] = torch.export.Dim("frames", min=1, max=MOST_ROWS)
    named = ("clips", fixed or "frames", *axes)
    return Interface(
        model, {"video": video}, (shapes,), {"video": named}, ("logits",), fixed or model.num_segments
    )


def _of_frames(model: nn.Module, example: Tensor | None, dynamic_size: bool) -> Interface:
    _check_rank(example, 4, "frames [N*T, C, H, W]")
    num_segments = fixed_length_in(model) or clip_length_of(model)
    if example is not None and len(example) not in (0, 1) and len(example) % num_segments:
        again = "fuse it again" if isinstance(model, FusedModel) else "call export again"
        raise ValueError(
            f"example_input must hold whole clips of {num_segments} frames, which this model has now, got "
            f"{len(example)} rows. Call tsm_triton.set_num_segments(model, T) and {again} for another T, which a "
            "VideoClassifier around it sets too, or pass whole clips."
        )
    size = _frame_size(model, example)
    shapes, axes = _free_sizes(model, size, dynamic_size, first=1)
    clips = torch.export.Dim("clips", min=1, max=max(1, MOST_ROWS // num_segments))
    shapes[0] = clips if num_segments == 1 else num_segments * clips
    rows = "clips" if num_segments == 1 else f"{num_segments}*clips"
    frames = _zeros(model, 2 * num_segments, *size)
    return Interface(model, {"frames": frames}, (shapes,), {"frames": (rows, *axes)}, None, num_segments)


class _FlatStep(nn.Module):
    """A step whose caches are arguments and results of their own; sites that never run have none."""

    def __init__(self, step: StreamStep, held: Sequence[bool]) -> None:
        super().__init__()
        self.step = step
        self.held = list(held)

    def forward(self, frame: Tensor, *caches: Tensor) -> tuple[Any, ...]:
        given = iter(caches)
        state = [next(given) if held else frame.new_zeros(0) for held in self.held]
        output, new = self.step(frame, state)
        outputs = output if self.step.features else (output,)
        kept = [cache for cache, held in zip(new, self.held, strict=True) if held]
        # contiguous() would leave no node where shift_step says that it is so, whose form in files has x's strides
        return (*outputs, *(cache.clone(memory_format=torch.contiguous_format) for cache in kept))


def _of_a_step(step: StreamStep, example: Tensor | None, dynamic_size: bool) -> Interface:
    if dynamic_size:
        raise ValueError(
            "expected frames of one size for a stream, whose caches have its shape, got dynamic_size=True: pass "
            "example_input, and export a file for each size"
        )
    _check_rank(example, 4, "a frame of each stream [B, C, H, W]")
    frame = _zeros(step.model, 2, *_frame_size(step.model, example))
    # an AOTInductor package takes every input for laid out as its example was, and does not look
    state = [cache.contiguous() for cache in step.init_state(frame)]
    names = [name for name, cache in zip(step.names, state, strict=True) if cache.numel()]
    caches = [cache for cache in state if cache.numel()]
    streams = torch.export.Dim("streams", min=1, max=MOST_ROWS)
    rows = [len(cache) // len(frame) for cache in caches]
    axes: dict[str, tuple[int | str, ...]] = {"frame": ("streams", *frame.shape[1:])}
    for name, cache, k in zip(names, caches, rows, strict=True):
        axes[f"cache.{name}"] = ("streams" if k == 1 else f"{k}*streams", *cache.shape[1:])
    inputs = dict(zip(axes, [frame, *caches], strict=True))
    of_caches = tuple({0: streams if k == 1 else k * streams} for k in rows)
    outputs = ("logits", *(["features"] if step.features else []), *(f"next.{name}" for name in names))
    module = _FlatStep(step, [bool(cache.numel()) for cache in state]).eval()
    return Interface(module, inputs, ({0: streams}, of_caches), axes, outputs, None)


def _check_rank(example: Tensor | None, rank: int, wanted: str) -> None:
    if example is not None and example.dim() != rank:
        raise ValueError(
            f"example_input must have shape {wanted} for this model, got {tuple(example.shape)}: pass zeros of "
            "that shape, only the size is read"
        )


def _frame_size(model: nn.Module, example: Tensor | None) -> tuple[int, ...]:
    made_for = getattr(model, "input_size", None) if isinstance(model, FusedModel) else None
    if made_for is None:
        return frame_shape(model, example)
    if example is not None and tuple(example.shape[1:]) != tuple(made_for):
        raise ValueError(
            f"expected frames of {list(made_for)}, which this model was fused for, got {list(example.shape[1:])}. "
            "Fuse it again with tsm_triton.fuse(model, example_input=...)."
        )
    return tuple(made_for)


def _free_sizes(
    model: nn.Module, size: Sequence[int], dynamic_size: bool, first: int
) -> tuple[dict[int, Any], tuple[int | str, ...]]:
    """Which of C, H and W are free: the dynamic shapes of the axes from `first` on, and names."""
    if not dynamic_size:
        return {}, tuple(size)
    if isinstance(model, FusedModel):
        raise ValueError(
            f"expected a size for a fused model, whose graph is made for {list(size)}, got dynamic_size=True: export "
            "the patched model, or leave dynamic_size out"
        )
    if any(side % MULTIPLE or side < 2 * MULTIPLE for side in size[1:]):
        raise ValueError(
            f"expected sides that are multiples of {MULTIPLE} and at least {2 * MULTIPLE} with dynamic_size, got "
            f"{list(size[1:])}: pass example_input of such a size"
        )
    most = MOST_PIXELS // MULTIPLE
    sides = (torch.export.Dim(name, min=2, max=most) for name in ("height", "width"))
    shapes = {first + 1 + i: MULTIPLE * side for i, side in enumerate(sides)}
    return shapes, (size[0], f"{MULTIPLE}*height", f"{MULTIPLE}*width")


def _zeros(model: nn.Module, *shape: int) -> Tensor:
    template = next(p for p in model.parameters() if p.is_floating_point())
    return torch.zeros(shape, dtype=template.dtype, device=template.device)
