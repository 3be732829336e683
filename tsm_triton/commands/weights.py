"""Trained weights in a file: those of the demo, which say what they are, and plain state dicts."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from ..patching import patch
from ..video.transforms import eval_transform, transform_for
from .common import create_model, replacing

__all__ = ["Trained", "load_trained", "save_trained"]

NAMED = 6  # keys in an error


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
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"expected weights that torch.load(weights_only=True) reads, got {str(path)!r} "
            f"({str(error).partition(chr(10))[0]}). Save a plain model.state_dict()."
        ) from error
    about = held if isinstance(held, dict) and isinstance(held.get("state_dict"), dict) else {}
    state = about.get("state_dict", held)
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"expected a state dict in {str(path)!r}, got {type(state).__name__}: save model.state_dict()"
        )
    if name is not None and name != about.get("model", name):
        raise ValueError(
            f"expected weights of {name!r}, got weights of {about['model']!r} in {str(path)!r}: drop --model"
        )
    name = name or about.get("model")
    if name is None:
        raise ValueError(
            f"expected weights that name their model, got none named in {str(path)!r}: pass --model"
        )
    model = create_model(name, **_head(name, state))
    _load(model, state, name)
    patch(model.eval(), direction="causal")
    return Trained(model, name, about.get("classes"), about.get("size"))


def _head(name: str, state: dict[str, Tensor]) -> dict[str, int]:
    """`num_classes` of the weights, where the last linear layer tells it."""
    with torch.device("meta"):
        model = create_model(name)
    layers = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)]
    weight = state.get(f"{layers[-1]}.weight") if layers else None
    return {} if weight is None else {"num_classes": weight.shape[0]}


def _load(model: nn.Module, state: dict[str, Tensor], name: str) -> None:
    expected = model.state_dict()
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    wrong = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": shapes,
    }
    if any(wrong.values()):
        listed = "; ".join(
            f"{what}: {', '.join(keys[:NAMED])}{f' and {len(keys) - NAMED} more' if len(keys) > NAMED else ''}"
            for what, keys in wrong.items()
            if keys
        )
        raise ValueError(f"expected the state dict of {name}, got one with keys {listed}. Check --model.")
    model.load_state_dict(state)
