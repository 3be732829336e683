"""Clips that an int8 file's ranges are measured on, as the inputs of the graph that is exported."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .interface import Interface

__all__ = ["calibration_inputs", "check_clips"]


def check_clips(int8: Any) -> list[Tensor]:
    """Batches of clips, of the tensor or the iterable of them that is given.

    Raises:
        TypeError, ValueError: something else, no clip, or values that are no numbers.
    """
    batches = [int8] if isinstance(int8, Tensor) else list(int8) if isinstance(int8, Iterable) else [int8]
    for clips in batches:
        if not isinstance(clips, Tensor) or not clips.is_floating_point():
            got = clips.dtype if isinstance(clips, Tensor) else type(clips).__name__
            raise TypeError(
                "int8 must be normalised clips to measure ranges on, a float tensor [N, T, C, H, W] or several, got "
                f"{got}"
            )
        if clips.dim() != 5 or 0 in clips.shape:
            raise ValueError(
                f"int8 must be clips of shape [N, T, C, H, W] with N and T of at least 1, got {tuple(clips.shape)}"
            )
        if not clips.isfinite().all():
            raise ValueError(
                "int8 must be finite clips, got some that are not: their ranges would be no numbers"
            )
    if not batches:
        raise ValueError("int8 must be at least one clip, got none: pass some that the model was trained on")
    return batches


@torch.no_grad()
def calibration_inputs(interface: Interface, batches: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """The graph's inputs, one batch after the other; of a stream a frame after the other, with the caches it has then.

    Raises:
        ValueError: clips of another size or length than the graph's.
    """
    (name, example), *caches = interface.inputs.items()
    for clips in batches:
        clips = clips.to(example)
        _check_fits(interface, name, clips)
        if name == "video":
            yield (clips,)
        elif name == "frames":
            yield (clips.flatten(0, 1),)
        else:
            state = [x.new_zeros(len(x) // len(example) * len(clips), *x.shape[1:]) for _, x in caches]
            for frame in clips.unbind(1):
                yield (frame, *state)
                outputs = interface.module(frame, *state)
                state = list(outputs[len(outputs) - len(state) :])


def _check_fits(interface: Interface, name: str, clips: Tensor) -> None:
    wanted = interface.axes[name][-3:]
    length = None if name == "frame" or "frames" in interface.axes[name] else interface.num_segments
    sizes = [
        (size, axis) for size, axis in zip(clips.shape[2:], wanted, strict=True) if isinstance(axis, int)
    ]
    if length not in (None, clips.shape[1]) or any(size != axis for size, axis in sizes):
        raise ValueError(
            f"int8 must be clips [N, {length or 'T'}, {', '.join(map(str, wanted))}], as the file's own, got "
            f"{tuple(clips.shape)}"
        )
