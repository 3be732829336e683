"""What an exported file says of itself: all that its user needs to prepare frames and to read what comes out."""

import json
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from .. import ops
from ..checkpoints.native import labels_of
from ..fusion.fuse import FusedModel
from ..patching.hooks import is_patched, shift_hooks
from ..preparation import preparation_of
from ..streaming.step import StreamStep
from ..streaming.stream import Streaming
from ..version import __version__
from ..video.classifier import VideoClassifier
from .interface import Interface

__all__ = ["KEY", "as_text", "described"]

# of ONNX's metadata_props and AOTInductor's metadata; and, with .json behind it, of the extra file of a .pt2
KEY = "tsm_triton"


def described(model: Any, interface: Interface, outputs: list[str], native: bool) -> dict[str, Any]:
    """Plain values, for JSON.

    Returns:
        `inputs`, name -> shape, a name or a multiple of one where a size is free; `outputs`, names; `num_segments`,
        None where any is taken; `direction`; `labels`, or None; `size`, `short_side`, `mean` and `std` of frames, None
        where the model does not say them; `needs`, which package beside torch; `versions`.
    """
    first, *_ = interface.inputs.values()
    height, width = first.shape[-2:]
    frames: dict[str, Any] = dict.fromkeys(("size", "short_side", "mean", "std"))
    inner = model.model if isinstance(model, (Streaming, StreamStep, VideoClassifier)) else model
    with suppress(ValueError):  # models inside that want other frames, or a size that is not square
        if height == width:
            frames = asdict(preparation_of(inner, size=height))
    labels = labels_of(inner)
    return {
        "inputs": {name: list(axes) for name, axes in interface.axes.items()},
        "outputs": outputs,
        "num_segments": interface.num_segments,
        "direction": _direction(inner),
        "labels": None if labels is None else list(labels),
        **frames,
        "needs": ops.NAMESPACE if native else None,
        "versions": {"tsm_triton": __version__, "torch": torch.__version__},
    }


def as_text(description: dict[str, Any]) -> str:
    return json.dumps(description)


def _direction(model: nn.Module) -> str | None:
    if isinstance(model, FusedModel):
        return model.direction
    return shift_hooks(model)[0].direction if is_patched(model) else None
