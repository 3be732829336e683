"""What the models over clips check alike, and the length that they tell the model of frames."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..arguments import check_frames
from ..backwards import Telling, Told, record_call
from ..modules.clip_layer import ClipLayer, fixed_length_in
from ..patching.hooks import clip_lengths_in, is_patched, packed_clips, shift_hooks
from ..patching.shift_hook import ShiftHook
from ..torch_private import is_tracing, next_number

__all__ = [
    "check_fixed_length",
    "check_frame_model",
    "check_video",
    "clips_of_length",
    "fixed_length",
    "of_traced_length",
    "packing_of",
]

Holder = ShiftHook | ClipLayer
Results = TypeVar("Results")


def check_frame_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got {type(model).__name__}. Pass timm.create_model(name)."
        )


def check_video(video: Tensor, model: nn.Module) -> None:
    """Raise for what is no tensor of normalised frames, and for clips without a frame or a view."""
    if not isinstance(video, Tensor):
        raise TypeError(
            f"video must be a torch.Tensor, got {type(video).__name__}. Convert an array with "
            "torch.from_numpy, read a file with tsm_triton.video.read_clip."
        )
    if any(size == 0 for size in video.shape[1:-3]):
        raise ValueError(
            f"video must have at least one frame and view, got {tuple(video.shape)}. Leave empty videos out."
        )
    check_frames(video, model, "video")


def of_traced_length(video: Tensor, model: nn.Module) -> tuple[Tensor, int]:
    """A video `[N, T, C, H, W]` and its T; where the older tracer looks on, one whose graph fails for another T.

    `torch.jit.trace`, and by it `torch.onnx.export(dynamo=False)`, keep T as a constant of the shift, and a graph of it
    would mix the clips of another T without a word: the reshape fails there.
    """
    if torch.compiler.is_compiling() or not is_tracing():  # torch 2.11 has no graph of the second
        return video, video.shape[1]
    frames = int(video.shape[1])
    fixed = fixed_length(model)
    if fixed is None and not clip_lengths_in(model, frames):
        return video, video.shape[1]  # frames that never meet but in the mean
    warnings.warn(
        f"the traced graph takes clips of {frames} frames alone, and fails for others: tsm_triton.export, or "
        "torch.export, of a VideoClassifier keeps their number free",
        stacklevel=3,
    )
    return video.reshape(video.shape[0], frames, *video.shape[2:]), frames


@contextmanager
def clips_of_length(model: nn.Module, num_segments: int) -> Iterator[Callable[[Results], Results]]:
    """Run a model of frames on clips of this length; raise where a fused one is fixed to another.

    Its own length is as before when the call ends, and other threads may call it with other lengths at the same time.
    What it returns goes through the function that this context gives: a backward through that, which may run blocks
    again, runs them with this length.
    """
    check_fixed_length(model, [num_segments])
    lengths = clip_lengths_in(model, num_segments)
    if not lengths:
        yield _unrecorded
    elif torch.compiler.is_compiling():
        try:
            for holder, frames in lengths:
                holder.length = frames
            yield _unrecorded
        finally:
            for holder, _ in lengths:
                holder.length = None
    else:
        told = [(holder, Told(frames)) for holder, frames in lengths]
        telling, first = Telling(), next_number()
        try:
            telling.begin(told)
            for holder, one in told:
                holder.set_own_length(one.length)
            yield _unrecorded if is_tracing() else lambda results: _recorded(told, first, results)
        finally:
            for holder, _ in told:
                holder.set_own_length(None)
            telling.end()


@contextmanager
def packing_of(model: nn.Module, clip_lengths: list[int]) -> Iterator[Callable[[Results], Results]]:
    """The same on clips of several lengths."""
    if not is_patched(model):
        yield _unrecorded
        return
    with packed_clips(model, clip_lengths):
        if torch.compiler.is_compiling() or is_tracing():
            yield _unrecorded
        else:
            told, first = [(hook, hook.told) for hook in shift_hooks(model)], next_number()
            yield lambda results: _recorded(told, first, results)


def _recorded(told: Sequence[tuple[Holder, Told]], first: int, results: Results) -> Results:
    record_call(told, first, results)
    return results


def _unrecorded(results: Results) -> Results:
    return results


def fixed_length(model: nn.Module) -> int | None:
    """T of a model, fused, captured or around one, that was made for clips of one length; None of others."""
    fixed = fixed_length_in(model)
    return getattr(model, "num_segments", None) if fixed is None and not is_patched(model) else fixed


def check_fixed_length(model: nn.Module, clip_lengths: list[int]) -> None:
    """Raise where a fused or captured model, whose clip length is fixed, would mix clips."""
    fixed = fixed_length(model)
    if fixed is not None and any(length != fixed for length in clip_lengths):
        got = clip_lengths[0] if len(clip_lengths) == 1 else clip_lengths
        raise ValueError(
            f"expected clips of {fixed} frames, the length {type(model).__name__} was fused or captured for, got "
            f"{got}. Call tsm_triton.set_num_segments on the patched model and fuse or capture it again."
        )
