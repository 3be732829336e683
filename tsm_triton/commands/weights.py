"""Trained weights in a file: those of the demo, which say what they are, and plain state dicts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from ..patching import patch
from ..video.transforms import eval_transform, transform_for
from .common import create_model, printable, replacing

__all__ = ["Trained", "load_trained", "save_trained"]

NAMED = 6  # keys in an error
MAX_SIZE = 4096  # of a picture's side


@dataclass(frozen=True)
class Trained:
    """A causal model, and what belongs to it.

    Attributes:
        model: patched with `direction="causal"`, in evaluation mode.
        name: the model's name, see `create_model`.
        classes: the labels the file names; None if it names none.
        size: side of the pictures it was trained with; None for the model's own.
    """

    model: nn.Module
    name: str
    classes: list[str] | None
    size: int | None

    def transform(self) -> v2.Compose:
        """From uint8 frames `[..., 3, H, W]` to the model's input."""
        if self.size is None:
            return transform_for(self.model)
        return eval_transform(self.size, short_side=self.size)


def save_trained(path: Path, model: nn.Module, name: str, classes: tuple[str, ...], size: int) -> None:
    """Write weights with what `load_trained` needs to know of them."""
    state = {key: value.cpu() for key, value in model.state_dict().items()}
    with replacing(path) as temporary:
        torch.save({"state_dict": state, "model": name, "classes": list(classes), "size": size}, temporary)


def load_trained(path: Path, name: str | None) -> Trained:
    """Build a model and load weights into it, strictly; no code in the file is run.

    Args:
        path: what `save_trained` wrote, or a state dict, on its own or under the key `state_dict`.
        name: of the model; may be None where the file names it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not weights, weights of another model, or no model named.
    """
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"expected weights at {str(path)!r}, which does not exist: check the path"
        ) from None
    except Exception as error:  # a damaged pickle fails in any way
        reason = printable(f"{type(error).__name__}: {error}".partition("\n")[0])
        raise ValueError(
            f"expected weights that torch.load(weights_only=True) reads, got {str(path)!r} ({reason}). "
            "Save a plain model.state_dict()."
        ) from error
    about = held if isinstance(held, dict) and isinstance(held.get("state_dict"), dict) else {}
    state = about.get("state_dict", held)
    if not isinstance(state, dict) or not state or not all(_is_entry(*item) for item in state.items()):
        raise ValueError(
            f"expected a state dict of dense tensors in {str(path)!r}, got {type(state).__name__}: "
            "save model.state_dict()"
        )
    named, classes, size = _about(about, path)
    if None not in (name, named) and name != named:
        raise ValueError(
            f"expected weights of {name!r}, got weights of {named!r} in {str(path)!r}: drop --model"
        )
    name = name or named
    if name is None:
        raise ValueError(
            f"expected weights that name their model, got none named in {str(path)!r}: pass --model"
        )
    head = _head(name, state)
    if classes is not None and len(classes) != head.get("num_classes", len(classes)):
        raise ValueError(
            f"expected {head['num_classes']} classes, as many as outputs, got {len(classes)} in {str(path)!r}: "
            "save them again, one a class"
        )
    model = create_model(name, **head)
    _load(model, state, name, path)
    patch(model.eval(), direction="causal")
    return Trained(model, name, classes, size)


def _is_entry(key: object, value: object) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout is torch.strided
    )


def _about(about: dict[str, Any], path: Path) -> tuple[str | None, list[str] | None, int | None]:
    """The model, the classes and the size that a file names, each None where it names none."""
    kinds = {
        "model": ("a string", lambda value: isinstance(value, str)),
        "classes": (
            "a list of strings",
            lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
        ),
        "size": (f"from 1 to {MAX_SIZE} pixels", lambda value: type(value) is int and 1 <= value <= MAX_SIZE),
    }
    for key, (kind, holds) in kinds.items():
        value = about.get(key)
        if value is not None and not holds(value):
            raise ValueError(
                f"expected {key} to be {kind} in {str(path)!r}, got {value!r:.40}: "
                "save the weights again, or a plain model.state_dict()"
            )
    classes = about.get("classes")
    return about.get("model"), classes and [printable(name) for name in classes], about.get("size")


def _head(name: str, state: dict[str, Tensor]) -> dict[str, int]:
    """`num_classes` of the weights, where the last linear layer tells it."""
    with torch.device("meta"):
        model = create_model(name)
    layers = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)]
    weight = state.get(f"{layers[-1]}.weight") if layers else None
    return {} if weight is None or not weight.dim() else {"num_classes": weight.shape[0]}


def _load(model: nn.Module, state: dict[str, Tensor], name: str, path: Path) -> None:
    expected = model.state_dict()
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    wrong = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [printable(key) for key in state if key not in expected],
        "of another shape": shapes,
    }
    if any(wrong.values()):
        listed = "; ".join(
            f"{what}: {', '.join(keys[:NAMED])}{f' and {len(keys) - NAMED} more' if len(keys) > NAMED else ''}"
            for what, keys in wrong.items()
            if keys
        )
        raise ValueError(
            f"expected the state dict of {name}, got one with keys {listed} in {str(path)!r}. Check --model."
        )
    model.load_state_dict(state)
