"""Shifted models, as the command line names them: by a library's name, or in a checkpoint."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import create_backbone
from ..checkpoints.load import open_checkpoint
from ..checkpoints.native import Checkpoint, built, labels_of, load_into
from ..checkpoints.patches import apply_patch
from ..checkpoints.published import Published
from ..checkpoints.published.build import build_published, full_name
from ..patching.hooks import clip_length_of, is_patched
from ..patching.patch import patch
from ..preparation import preparation_of
from .exported import exported_clips, exported_file
from .options import option_of

__all__ = ["Said", "Trained", "check_runs", "load_trained_model"]


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


@dataclass(frozen=True)
class Said:
    """What the command line says of weights: all of a bare state dict, of others what they do not say themselves.

    Attributes:
        model: the name of a library's model.
        num_segments: frames of a clip.
        place, shift_div, direction: of the shift that they were trained with.
        non_local: the mode of published weights' non-local blocks.
    """

    model: str | None = None
    num_segments: int | None = None
    place: str | None = None
    shift_div: int | None = None
    direction: str | None = None
    non_local: str | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Said":
        return cls(**{field.name: getattr(args, field.name, None) for field in fields(cls)})

    @property
    def shift(self) -> dict[str, Any]:
        """What decides the numbers, where it is said."""
        names = ("place", "shift_div", "direction", "non_local")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


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


def load_trained_model(source: str | Path | None, said: Said, *, streamed: bool = False) -> Trained:
    """What `--checkpoint` and `--model` name, loaded strictly; no code of a file is run.

    Args:
        source: a file or an address; weights of ours and published ones say what they are. None for a library's model
            with its weights of images, unshifted: a picture at a time; or for the exported file that `--model` names.
        said: of weights, what they do not say; of the clips, how many frames they have.
        streamed: weights that read the next frame, or were never shifted, are refused.

    Raises:
        FileNotFoundError, ValueError: neither, or what cannot be loaded; what the weights contradict; a bare state
            dict of which not all is said.
    """
    if exported := exported_file(said.model, source, "--checkpoint"):
        clips = exported_clips(exported, said.num_segments, said.shift)
        length = said.num_segments or clips.said["num_segments"]
        return Trained(clips, exported.stem, length, clips.said["labels"])
    if source is None:
        return _of_images(said)
    checkpoint, published = open_checkpoint(source, options=said.shift, asks=False)
    if published is not None and any(choice.value is None for choice in published.choices):
        # T where the file does not say it, and only there: PaddleVideo's shift_div follows from it
        options = {} if said.num_segments is None else {"num_segments": said.num_segments}
        checkpoint, published = open_checkpoint(source, options={**said.shift, **options})
    if streamed:
        _check_causal(checkpoint, published)
    if published is not None:
        model, name, labels = _of_published(checkpoint, published, said)
    elif checkpoint.ours:
        _check_said(checkpoint, said)
        model, name, labels = _of_ours(checkpoint, said.model)
    else:
        model, name, labels = _of_state_dict(checkpoint, said, streamed)
    trained_on = clip_length_of(model) if is_patched(model) else 8
    return Trained(model.eval(), name, said.num_segments or trained_on, labels or labels_of(model))


_Loaded = tuple[nn.Module, str, Sequence[str] | None]


def _of_images(said: Said) -> Trained:
    if said.model is None:
        raise ValueError(
            "expected a model, got none: pass --checkpoint FILE, or --model NAME for weights of images"
        )
    if said.shift:
        option = option_of(next(iter(said.shift)))
        raise ValueError(
            f"expected no {option} with weights of images, which have no shift, got one: drop it, or pass --checkpoint"
        )
    model = create_backbone(said.model, pretrained=True).eval()
    return Trained(model, said.model, said.num_segments or 8, labels_of(model))


def _check_causal(checkpoint: Checkpoint, published: Published | None) -> None:
    """Raise for weights of which it is known that they read the next frame, or none."""
    if published is not None:
        kind = published.shifts["direction"].value if published.sites else "unshifted"
        whose = f" of {published.layout}"
    elif checkpoint.ours:
        kind, whose = "unshifted" if checkpoint.patch is None else checkpoint.patch["direction"], ""
    else:
        return
    if kind != "causal":
        raise ValueError(
            f"expected causal weights, which read the past only, got {kind} ones{whose} in {checkpoint.source}: a "
            "stream has no next frame. Train a causal model, as `tsm-triton train --direction causal` does, or use "
            "those of the authors' online demo."
        )


def _of_published(checkpoint: Checkpoint, published: Published, said: Said) -> _Loaded:
    libraries = {full_name(library, known): library for library, (known, _) in published.networks.items()}
    if said.model not in (None, *libraries):
        raise ValueError(
            f"expected weights of {said.model!r}, got weights of {' or '.join(libraries)} in {checkpoint.source}: drop "
            "--model"
        )
    name = said.model or next(iter(libraries))
    return build_published(published, checkpoint.source, libraries[name]), name, published.labels


def _check_said(checkpoint: Checkpoint, said: Said) -> None:
    """Raise for what a checkpoint of ours contradicts."""
    own = checkpoint.patch or {}
    for key, value in said.shift.items():
        if own.get(key) == value:
            continue
        option = option_of(key)
        expected = f"no {option}" if key not in own else f"{option} {own[key]}"
        kind = " of an unshifted network" if checkpoint.patch is None else ""
        raise ValueError(
            f"expected {expected}, as {checkpoint.source}{kind} says, got {value}: drop {option}"
        )


def _of_ours(checkpoint: Checkpoint, name: str | None) -> _Loaded:
    origin = checkpoint.origin
    if origin is not None:
        if name not in (None, origin.full_name):
            raise ValueError(
                f"expected weights of {name!r}, got weights of {origin.full_name!r} in {checkpoint.source}: drop "
                "--model"
            )
        return built(checkpoint), origin.full_name, checkpoint.labels
    if name is None:
        raise ValueError(
            f"expected weights that name their model, got none named in {checkpoint.source} ({checkpoint.why_not}): "
            "pass --model, or make the model in Python, patch it, and call tsm_triton.load_checkpoint(model, path)"
        )
    if f"differs from {name} " in checkpoint.why_not:
        raise ValueError(
            f"expected weights of {name!r} as its builder makes it, got others in {checkpoint.source} "
            f"({checkpoint.why_not}): make the model in Python, and call tsm_triton.load_checkpoint(model, path)"
        )
    model = create_backbone(name, **_head_in(name, checkpoint.state))
    if checkpoint.patch is not None:
        apply_patch(model, checkpoint.patch)
    load_into(model, checkpoint, ", or check --model")
    return model, name, checkpoint.labels


def _of_state_dict(checkpoint: Checkpoint, said: Said, streamed: bool) -> _Loaded:
    needed = ["model", "direction", "place", "shift_div", *([] if streamed else ["num_segments"])]
    missing = [option_of(name) for name in needed if getattr(said, name) is None]
    if missing or said.model is None:
        raise ValueError(
            f"expected weights that say what they are, got a bare state dict in {checkpoint.source}: pass "
            f"{', '.join(missing)} as it was trained, or use tsm_triton.save_checkpoint, which writes that down"
        )
    if said.non_local is not None:
        raise ValueError(
            "expected no --non-local with a bare state dict, got one: make the model in Python, load the weights, and "
            "call tsm_triton.save_checkpoint"
        )
    model = create_backbone(said.model, **_head_in(said.model, checkpoint.state))
    patch(model, said.num_segments or 8, **said.shift)
    load_into(model, checkpoint, ", or check --model")
    frames = preparation_of(model)
    print(
        f"tsm-triton: {checkpoint.source} says nothing of its frames: they are taken as {said.model} takes them, "
        f"{frames.size} pixels of a short side of {frames.short_side}, mean {frames.mean}, std {frames.std}",
        file=sys.stderr,
    )
    return model, said.model, None


def _head_in(name: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """`num_classes` of the weights, where the last linear layer tells it, behind whichever prefix."""
    with torch.device("meta"):
        model = create_backbone(name)
    layers = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        return {}
    wanted = f"{layers[-1]}.weight"
    found = [value for key, value in state.items() if f".{key}".endswith(f".{wanted}") and value.dim()]
    return {"num_classes": found[0].shape[0]} if found else {}
