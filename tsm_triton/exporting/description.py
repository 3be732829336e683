"""What an exported file says of itself: all that its user needs to prepare frames and to read what comes out."""

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints.native import labels_of
from ..fusion.fuse import FusedModel
from ..patching.hooks import is_patched, shift_hooks
from ..preparation import preparation_of, sampling_of
from ..streaming.step import StreamStep
from ..streaming.stream import Streaming
from ..version import __version__
from ..video.classifier import VideoClassifier
from .interface import Interface

__all__ = ["KEY", "as_text", "checked", "described"]

# of ONNX's metadata_props and AOTInductor's metadata; and, with .json behind it, of the extra file of a .pt2
KEY = "tsm_triton"
FRAMES = ("size", "short_side", "mean", "std")
# what a file must say to be run; each with the kinds of value that it may have
SAID: dict[str, tuple[type, ...]] = {
    "inputs": (dict,),
    "outputs": (list,),
    "dtypes": (dict,),
    "device": (str,),
    "num_segments": (int, type(None)),
    "direction": (str, type(None)),
    "labels": (list, type(None)),
    "size": (int, type(None)),
    "short_side": (int, type(None)),
    "mean": (list, type(None)),
    "std": (list, type(None)),
}


def described(
    model: Any, interface: Interface, outputs: list[str], needs: str | None, int8: bool
) -> dict[str, Any]:
    """Plain values, for JSON.

    Returns:
        `inputs`, name -> shape, a name or a multiple of one where a size is free; `dtypes` of these, which are
        contiguous, caches too (an AOTInductor package does not look), and the `device` they are taken on, `"cpu"` in
        ONNX; `outputs`, names; `num_segments` of a clip, where its length is free those that the model was made for,
        None in a stream; `direction`; `labels`, or None; `size`, `short_side`, `mean` and `std` of frames and their
        `sampling`, None where the model does not say them; `consensus` and `view_average` of a VideoClassifier, of
        which the file does the first, None of others; `needs`, what is imported before torch reads the file; `int8`,
        whether it computes in it; `versions`.
    """
    first, *_ = interface.inputs.values()
    height, width = first.shape[-2:]
    inner = model.model if isinstance(model, (Streaming, StreamStep, VideoClassifier)) else model
    frames: dict[str, Any] = dict.fromkeys(FRAMES)
    with suppress(ValueError):  # models inside that want other frames
        frames = asdict(preparation_of(inner, size=min(height, width)))
    free = any(isinstance(axes[-1], str) for axes in interface.axes.values())
    frames["size"] = min(height, width) if height == width or free else None
    labels = labels_of(inner)
    return {
        "inputs": {name: list(axes) for name, axes in interface.axes.items()},
        "dtypes": {name: str(x.dtype).removeprefix("torch.") for name, x in interface.inputs.items()},
        "device": first.device.type,
        "outputs": outputs,
        "num_segments": interface.num_segments,
        "direction": _direction(inner),
        "labels": None if labels is None else list(labels),
        **frames,
        "sampling": sampling_of(inner),
        "consensus": model.consensus if isinstance(model, VideoClassifier) else None,
        "view_average": model.view_average if isinstance(model, VideoClassifier) else None,
        "needs": needs,
        "int8": int8,
        "versions": {"tsm_triton": __version__, "torch": torch.__version__},
    }


def as_text(description: dict[str, Any]) -> str:
    return json.dumps(description)


def checked(text: str | None, path: Path) -> dict[str, Any]:
    """The description that stands in a file.

    Raises:
        ValueError: none stands there, or not all of it.
    """
    try:
        said = json.loads(text or "{}")
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise ValueError(
            f"expected JSON by the key {KEY!r} in {str(path)!r}, got other text: export it again"
        )
    missing = [key for key, kinds in SAID.items() if key not in said or not isinstance(said[key], kinds)]
    if missing:
        raise ValueError(
            f"expected a file that says how it is used, got {str(path)!r} without {', '.join(missing)} in its metadata "
            f"by the key {KEY!r}: write it with tsm_triton.export"
        )
    return said


def _direction(model: nn.Module) -> str | None:
    if isinstance(model, FusedModel):
        return model.direction
    return shift_hooks(model)[0].direction if is_patched(model) else None
