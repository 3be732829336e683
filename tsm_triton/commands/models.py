"""Shifted models, as the command line names them: by a library's name, or in a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import create_backbone
from ..checkpoints import load_checkpoint
from ..checkpoints.native import labels_of, load_into, read_checkpoint
from ..patching.hooks import is_patched, shift_hooks
from ..patching.patch import patch
from .exported import exported_clips, exported_file

__all__ = ["Trained", "check_runs", "head_in", "load_trained_model", "start_from"]


@torch.no_grad()
def check_runs(model: nn.Module, name: str, num_segments: int, size: int) -> None:
    """Raise `ValueError` now, and not after hours, if a model cannot run on frames of this size."""
    training = model.training
    try:
        model.eval()(torch.zeros(num_segments, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"expected a model that runs on frames of {size} x {size} pixels, got {name!r} "
            f"({type(error).__name__}: {reason}). Choose another --model or --size."
        ) from error
    finally:
        model.train(training)


def start_from(model: nn.Module, path: Path) -> None:
    """Load a checkpoint's weights, but for a head of other classes.

    Raises:
        ValueError: weights of another network.
    """
    checkpoint = read_checkpoint(path)
    given = load_checkpoint(path).state_dict() if checkpoint.ours else checkpoint.state
    own = model.state_dict()
    head = {
        key
        for key in own.keys() & given.keys()
        if own[key].shape != given[key].shape and own[key].shape[1:] == given[key].shape[1:]
    }
    other = (own.keys() ^ given.keys()) | {
        key for key in own.keys() & given.keys() if own[key].shape != given[key].shape and key not in head
    }
    if other or len(head) > 2:
        raise ValueError(
            f"expected weights of {type(model).__name__} in {checkpoint.source}, got others at "
            f"{', '.join(sorted(other | head)[:6])}: pass the --model that they are of"
        )
    model.load_state_dict({**own, **{key: value for key, value in given.items() if key not in head}})


@dataclass(frozen=True)
class Trained:
    """A model that predicts.

    Attributes:
        model: in evaluation mode; shifted, or not; or a file's, of clips.
        name: of it, for titles.
        num_segments: frames of a clip.
        labels: of the classes, or None.
    """

    model: nn.Module
    name: str
    num_segments: int
    labels: Sequence[str] | None


def load_trained_model(
    path: Path | None, name: str | None, num_segments: int | None, direction: str | None = None
) -> Trained:
    """What `--checkpoint` and `--model` name.

    Args:
        path: a checkpoint; ours and published ones say what they are, a bare state dict is of the model `name`.
        name: of a library's model; without `path` with its weights of images, unshifted: a picture at a time. Or an
            exported file.
        num_segments: frames of a clip; None for as many as the model was trained on, or 8.
        direction: of a bare state dict, which does not say it.

    Raises:
        FileNotFoundError, ValueError: neither, or what cannot be loaded.
    """
    if exported := exported_file(name, path, "--checkpoint"):
        clips = exported_clips(exported, num_segments, direction)
        length = num_segments or clips.said["num_segments"]
        return Trained(clips, exported.stem, length, clips.said["labels"])
    if path is None and name is None:
        raise ValueError(
            "expected a model, got none: pass --checkpoint FILE, or --model NAME for weights of images"
        )
    if path is None:
        assert name is not None
        model = create_backbone(name, pretrained=True).eval()
        return Trained(model, name, num_segments or 8, labels_of(model))
    checkpoint = read_checkpoint(path)
    if name is None or checkpoint.ours:
        model = load_checkpoint(path)
        said = checkpoint.origin.full_name if checkpoint.origin is not None else type(model).__name__
        own = shift_hooks(model)[0].direction if is_patched(model) else "unshifted"
        if direction not in (None, own):
            raise ValueError(
                f"expected --direction {own}, as {str(path)!r} says, got {direction}: drop --direction"
            )
        if name not in (None, said):
            raise ValueError(
                f"expected weights of {name!r}, got weights of {said!r} in {str(path)!r}: drop --model"
            )
    else:
        if direction is None:
            raise ValueError(
                f"expected weights that say how they are shifted, got a bare state dict in {checkpoint.source}: pass "
                "--direction as it was trained, or use tsm_triton.save_checkpoint, which writes that down"
            )
        model = patch(create_backbone(name, **head_in(name, checkpoint.state)), direction=direction)
        load_into(model, checkpoint, ", or check --model")
        said = name
    trained_on = shift_hooks(model)[0].num_segments if is_patched(model) else 8
    return Trained(model.eval(), said, num_segments or trained_on, labels_of(model))


def head_in(name: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """`num_classes` of the weights, where the last linear layer tells it, behind whichever prefix."""
    with torch.device("meta"):
        model = create_backbone(name)
    layers = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        return {}
    wanted = f"{layers[-1]}.weight"
    found = [value for key, value in state.items() if f".{key}".endswith(f".{wanted}") and value.dim()]
    return {"num_classes": found[0].shape[0]} if found else {}
