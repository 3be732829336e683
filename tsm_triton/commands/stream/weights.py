"""Causal weights for a stream: checkpoints of ours, which say what they are, and state dicts, of which it is said."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torchvision.transforms import v2

from ...backbones import create_backbone
from ...checkpoints.load import open_checkpoint
from ...checkpoints.native import Checkpoint, built, load_into
from ...checkpoints.patches import apply_patch
from ...checkpoints.published import Published
from ...checkpoints.published.build import build_published, full_name
from ...patching.patch import patch
from ...video.transforms import transform_for
from ..models import head_in

__all__ = ["Trained", "load_trained"]


@dataclass(frozen=True)
class Trained:
    """A causal model, and what belongs to it.

    Attributes:
        model: patched with `direction="causal"`, in evaluation mode.
        name: the model's name, see `create_model`.
        classes: the labels the file names; None if it names none.
    """

    model: nn.Module
    name: str
    classes: list[str] | None

    def transform(self) -> v2.Compose:
        """From uint8 frames `[..., 3, H, W]` to the model's input."""
        return transform_for(self.model)


def load_trained(path: Path, name: str | None, direction: str | None = None) -> Trained:
    """Build a model and load causal weights into it, strictly; no code in the file is run.

    Args:
        path: what `save_checkpoint` wrote; causal weights of a published layout; or a state dict, on its own or inside
            of what others wrap around it.
        name: of the model; may be None where the file names it.
        direction: how a bare state dict was trained, which it does not say; `"causal"`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no weights; weights of another model, or without a shift, or with one that reads the next frame;
            no model named; a bare state dict of which nobody said that it is causal.
    """
    checkpoint, published = open_checkpoint(
        path, options={} if direction is None else {"direction": direction}
    )
    if published is not None:
        return _of_published(checkpoint, published, name)
    return _of_ours(checkpoint, name) if checkpoint.ours else _of_state_dict(checkpoint, name, direction)


def _of_published(checkpoint: Checkpoint, published: Published, name: str | None) -> Trained:
    direction = published.shifts["direction"].value if published.sites else "unshifted"
    if direction != "causal":
        raise ValueError(
            f"expected causal weights, which read the past only, got {direction} ones of {published.layout} in "
            f"{checkpoint.source}: a stream has no next frame. Use those of the authors' online demo, or train a "
            "causal model."
        )
    libraries = {full_name(library, known): library for library, (known, _) in published.networks.items()}
    if name not in (None, *libraries):
        raise ValueError(
            f"expected weights of {name!r}, got weights of {' or '.join(libraries)} in {checkpoint.source}: drop "
            "--model"
        )
    name = next(iter(libraries)) if name is None else name
    model = build_published(published, checkpoint.source, libraries[name])
    return Trained(model, name, published.labels)


def _of_ours(checkpoint: Checkpoint, name: str | None) -> Trained:
    record, origin = checkpoint.patch, checkpoint.origin
    if record is None or record["direction"] != "causal":
        kind = "unshifted" if record is None else record["direction"]
        raise ValueError(
            f"expected causal weights, which read the past only, got {kind} ones in {checkpoint.source}: a stream has "
            "no next frame. Train a causal model, as `tsm-triton demo --direction causal` does."
        )
    if origin is None:
        if name is None:
            raise ValueError(
                f"expected weights that name their model, got none named in {checkpoint.source} "
                f"({checkpoint.why_not}): pass --model"
            )
        if f"differs from {name} " in checkpoint.why_not:
            raise ValueError(
                f"expected weights of {name!r} as its builder makes it, got others in {checkpoint.source} "
                f"({checkpoint.why_not}): make the model in Python, and call tsm_triton.load_checkpoint(model, path)"
            )
        model = create_backbone(name, **head_in(name, checkpoint.state))
        apply_patch(model, record)
        load_into(model, checkpoint, ", or check --model")
        return Trained(model.eval(), name, checkpoint.labels)
    if name not in (None, origin.full_name):
        raise ValueError(
            f"expected weights of {name!r}, got weights of {origin.full_name!r} in {checkpoint.source}: drop --model"
        )
    return Trained(built(checkpoint), origin.full_name, checkpoint.labels)


def _of_state_dict(checkpoint: Checkpoint, name: str | None, direction: str | None) -> Trained:
    if name is None:
        raise ValueError(
            f"expected weights that name their model, got none named in {checkpoint.source}: pass --model"
        )
    if direction != "causal":
        raise ValueError(
            f"expected weights that say how they are shifted, got a bare state dict in {checkpoint.source}: pass "
            "--direction causal if it was trained so, or use tsm_triton.save_checkpoint, which writes that down"
        )
    model = patch(create_backbone(name, **head_in(name, checkpoint.state)), direction=direction)
    load_into(model, checkpoint, ", or check --model")
    return Trained(model.eval(), name, None)
