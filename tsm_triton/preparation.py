"""How a model wants its frames: what it, or the model inside of it, says of the weights it was trained with.

A module says it as timm's models do, in a dictionary `pretrained_cfg` with `input_size`, `mean` and `std`; a
`short_side` may stand beside them.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .dataflow.tracing import input_shape
from .integrations.origin import fits_default_size, image_size, lookalikes
from .torch_private import COMPILED

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Preparation",
    "frame_shape",
    "module_of",
    "preparation_of",
    "sampling_of",
    "set_preparation",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# what holds a model without being an nn.Module: Streaming, timm's first ModelEma, a bound method
HOLDERS = ("model", "module", "ema", COMPILED, "__self__")


@dataclass(frozen=True)
class Preparation:
    """From a decoded frame to a model's input.

    Attributes:
        size: side of the picture in pixels.
        short_side: what a frame's short side is resized to before the crop.
        mean, std: of the channels R, G, B, on a scale from 0 to 1.
    """

    size: int = 224
    short_side: int = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def preparation_of(
    model: Any,
    *,
    size: int | None = None,
    short_side: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Preparation:
    """What a model says, in whatever it is wrapped; where given, the arguments instead.

    Args:
        model: a model of timm's, torchvision's or one's own, or what holds one.
        size, short_side, mean, std: what is known better. Of another size than the model's own the short side keeps
            its ratio, which is 256/224 where none is said.

    Raises:
        TypeError: nothing that holds a model.
        ValueError: a model of other pictures than square RGB; several models inside that want other frames; one
            that lost what it said, or does not tell its size.

    Example:
        >>> import timm
        >>> from tsm_triton import VideoClassifier
        >>> preparation_of(VideoClassifier(timm.create_model("test_vit"))).mean
        (0.5, 0.5, 0.5)
        >>> preparation_of(nn.Identity()) == Preparation()
        True
    """
    given = {"size": size, "short_side": short_side, "mean": mean and tuple(mean), "std": std and tuple(std)}
    known: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    said: dict[str, Any] | None = None
    if len(known) < len(given):
        # what tells nothing, or no model at all, has the usual short side
        spared = suppress(TypeError, ValueError) if known.keys() >= {"size", "mean", "std"} else nullcontext()
        with spared:
            said = _said(module_of(model), known)
    if said is None:
        said = {"short_side": _usual_short_side(known.get("size", Preparation.size))}
    return Preparation(**said | known)


def sampling_of(model: nn.Module) -> str | None:
    """The frames that a model, or the one inside of it, says it was trained with, as `sample_frames` names them."""
    with suppress(ValueError):  # of no normalised frames
        said = [config.get("sampling") for _, _, config in _speakers(model)]
        if said and all(other == said[0] for other in said):
            return said[0]
    return None


def frame_shape(model: nn.Module, example_input: Tensor | None = None) -> tuple[int, ...]:
    """[C, H, W] of frames to run a model on: the example's, or of the size that the model says."""
    channels, *sides = input_shape(model, example_input)[1:]
    if example_input is None:
        with suppress(ValueError):  # frames that are not square RGB, say
            said = _said(model, {})
            sides = sides if said is None else 2 * [said["size"]]
    return (channels, *sides)


def set_preparation(model: nn.Module, preparation: Preparation, sampling: str | None = None) -> None:
    """Let a model say how its frames are prepared, as `save_checkpoint` writes it and `transform_for` reads it."""
    config = dict(_config(model) or {})
    config |= {
        "input_size": (3, preparation.size, preparation.size),
        "short_side": preparation.short_side,
        "mean": tuple(preparation.mean),
        "std": tuple(preparation.std),
        **({} if sampling is None else {"sampling": sampling}),
    }
    model.pretrained_cfg = config  # pyright: ignore[reportArgumentType]


def module_of(model: Any) -> nn.Module:
    """The module that something is, or holds as `Streaming` does.

    Raises:
        TypeError: it is and holds none.
    """
    held = model
    for _ in range(4):
        if isinstance(held, nn.Module):
            return held
        held = next((getattr(held, name) for name in HOLDERS if hasattr(held, name)), None)
    raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}: pass the model itself")


def _said(model: nn.Module, known: Mapping[str, Any]) -> dict[str, Any] | None:
    """Size, short side, mean and std, as the models inside say them, but for what is known; None if none speaks."""
    found = {name: _resolved(config, module, known) for name, module, config in _speakers(model)}
    if not found:
        if any(isinstance(m, (torch.fx.GraphModule, torch.jit.ScriptModule)) for m in model.modules()):
            raise ValueError(
                f"expected a model that says how its frames are prepared, got {type(model).__name__}, a graph that "
                "has lost it. Pass the model it was made of, or size, mean and std."
            )
        return None
    first = next(iter(found.values()))
    if any(other[key] != first[key] for other in found.values() for key in first if key not in known):
        told = "; ".join(
            f"{name!r} {value['size']} pixels of a short side of {value['short_side']}, mean {value['mean']}, "
            f"std {value['std']}"
            for name, value in found.items()
        )
        raise ValueError(
            f"expected the models inside {type(model).__name__} to want the same frames, got {told}. Pass the one "
            "that the frames are for."
        )
    return first


def _resolved(config: Mapping[str, Any], module: nn.Module, known: Mapping[str, Any]) -> dict[str, Any]:
    channels, height, width = config.get("input_size") or (3, 224, 224)
    built_for = image_size(module)
    if "size" not in known:
        if built_for is not None and "short_side" not in config:
            height, width = built_for
        elif (
            config.get("fixed_input_size")
            and "short_side" not in config  # which set_preparation writes
            and built_for is None
            and not fits_default_size(module, dict(config))
        ):
            raise ValueError(
                f"expected {type(module).__name__} to be made for its configuration's {height} x {width} pixels, "
                "got one made for another size, which it does not tell. Pass size."
            )
        if channels != 3 or height != width:
            raise ValueError(
                f"expected a model of square RGB pictures (3, S, S), got input_size {(channels, height, width)}: "
                "compose a transform from torchvision.transforms.v2"
            )
    own, size = min(height, width), known.get("size", height)
    short_side = config.get("short_side") or _usual_short_side(own)
    if size != own:
        usual = short_side == _usual_short_side(own)
        short_side = _usual_short_side(size) if usual else short_side * size // own
    return {
        "size": size,
        "short_side": short_side,
        "mean": tuple(config.get("mean") or IMAGENET_MEAN),
        "std": tuple(config.get("std") or IMAGENET_STD),
    }


def _usual_short_side(size: int) -> int:
    return size * 256 // 224


def _speakers(model: nn.Module) -> Iterator[tuple[str, nn.Module, Mapping[str, Any]]]:
    """The outermost modules that say how their frames are prepared, with their names."""
    spoken: list[str] = []
    for name, module in model.named_modules():
        if any(not outer or f"{name}.".startswith(f"{outer}.") for outer in spoken):
            continue
        config = _config(module)
        if config:
            spoken.append(name)
            yield name, module, config


def _config(module: nn.Module) -> Mapping[str, Any] | None:
    """What a module itself says, or torchvision of it."""
    for name in ("pretrained_cfg", "default_cfg"):
        # not by getattr alone: compiled modules pass on what they hold
        config = vars(module).get(name, getattr(type(module), name, None))
        if config and not isinstance(config, Mapping):
            config = vars(config)
        if config and any(config.get(key) for key in ("input_size", "mean", "std")):
            return config
    if "torchvision" in sys.modules and any(
        cls.__module__.startswith("torchvision.models.") for cls in type(module).__mro__
    ):
        return _torchvision_config(module)
    return None


def _torchvision_config(module: nn.Module) -> Mapping[str, Any] | None:
    """What torchvision's weights for a model were trained with: it stands beside them, not in the model."""
    from torchvision import models

    from .integrations.torchvision import Rules

    if type(getattr(module, "transform", None)).__name__ == "GeneralizedRCNNTransform":
        raise ValueError(
            f"expected a model of normalised frames, got {type(module).__name__}, which resizes and normalises them "
            "itself. Pass it frames divided by 255."
        )
    if not Rules().is_model(module):
        return None
    for name in lookalikes(module):
        weights: Any = models.get_model_weights(name)
        transforms = (weights.DEFAULT if hasattr(weights, "DEFAULT") else next(iter(weights))).transforms()
        if hasattr(transforms, "crop_size") and hasattr(transforms, "mean"):
            side = transforms.crop_size[0]
            return {"input_size": (3, side, side), "mean": transforms.mean, "std": transforms.std}
    size = image_size(module)
    return {} if size is None else {"input_size": (3, *size)}
