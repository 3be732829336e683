"""What a training starts from: weights of a file, and what that file says of the model and its frames."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ...backbones import head_of
from ...checkpoints.load import open_checkpoint
from ...checkpoints.native import Checkpoint, load_into
from ...checkpoints.published import Published
from ...checkpoints.published.build import full_name, load_published
from ...preparation import preparation_of
from ..options import option_of
from . import SAMPLINGS

__all__ = ["Start", "read_start"]

SHIFT = ("direction", "place", "shift_div")
# of an origin's options, those that every training chooses for itself
CHOSEN = {"num_classes", "img_size"}


@dataclass(frozen=True)
class Start:
    """Weights that a training starts from.

    Attributes:
        checkpoint: what was read.
        published: what it is, where others published it.
    """

    checkpoint: Checkpoint
    published: Published | None

    @property
    def source(self) -> str:
        return self.checkpoint.source

    @property
    def name(self) -> str:
        """Of the file, wherever it lies."""
        return os.path.basename(self.source.strip("'\""))

    @property
    def shift(self) -> dict[str, Any]:
        """How the weights were shifted, with their num_segments; nothing of those that do not say it, or were not."""
        names = (*SHIFT, "num_segments", "fold_order")
        if self.published is not None:
            return {key: self.published.shifts[key].value for key in names} if self.published.sites else {}
        return {key: self.checkpoint.patch[key] for key in names} if self.checkpoint.patch else {}

    @property
    def models(self) -> list[str]:
        """The names that the weights' model has in the libraries; none of a bare state dict."""
        if self.published is not None:
            return [full_name(library, name) for library, (name, _) in self.published.networks.items()]
        return [] if self.checkpoint.origin is None else [self.checkpoint.origin.full_name]

    def options(self) -> dict[str, Any]:
        """What a training that says nothing else takes over."""
        shift = {key: value for key, value in self.shift.items() if key != "fold_order"}
        sampling = (self.checkpoint.besides or {}).get("sampling")
        return {
            **({"model": self.models[0]} if self.models else {}),
            **({"sampling": sampling} if sampling in SAMPLINGS else {}),
            **shift,
        }

    def check(self, options: dict[str, Any]) -> None:
        """Raise for a training of another model than the weights', or with another shift."""
        self._check_plain()
        model = options["model"]
        if self.models and model.partition(".")[0] not in self.models:
            raise ValueError(
                f"expected --model {' or '.join(self.models)}, which {self.source} is of, got {model}: pass it, or "
                "start from other weights"
            )
        for key in SHIFT:
            own = self.shift.get(key, options[key])
            if own != options[key]:
                raise ValueError(
                    f"expected {option_of(key)} {own}, as {self.source} was trained, got {options[key]}: drop "
                    "it, or start from other weights"
                )

    def load(self, model: nn.Module, classes: Sequence[str], num_segments: int) -> list[str]:
        """Load the weights into a model of these classes, whose head stays new where the weights know others.

        Returns:
            What the user should know of it.

        Raises:
            ValueError: weights of another network.
        """
        before = preparation_of(model)
        kept = self._load(model, list(classes))
        notes = [f"Starting from {self.source}, with {'its' if kept else 'a new'} head."]
        length = self.shift.get("num_segments", num_segments)
        if not self.shift:
            notes.append("It says of no shift: the training has to teach one, as it does weights of images.")
        if length != num_segments:
            notes.append(f"It was trained on clips of {length} frames, here they have {num_segments}.")
        after = preparation_of(model)
        if (after.mean, after.std) != (before.mean, before.std):
            notes.append(f"Frames are normalised as it was trained: mean {after.mean}, std {after.std}.")
        return notes

    def _load(self, model: nn.Module, classes: list[str]) -> bool:
        """Whether the weights' own head was taken."""
        own = self.checkpoint.labels if self.published is None else self.published.labels
        head = _head_name(model)
        count = self._outputs(head) if self.published is None else self.published.classes
        kept = count == len(classes) and own in (None, classes)
        if self.published is not None:
            load_published(model, self.published, self.source, None if kept else head)
            return kept
        checkpoint = self.checkpoint
        if checkpoint.patch is None:  # as a bare state dict, which goes into a model of any shift
            checkpoint = replace(checkpoint, ours=False)
        advice = ", or pass the --model that they are of"
        load_into(model, checkpoint, advice, own_head=None if kept else head)
        return kept

    def _outputs(self, head: str) -> int | None:
        """Of the weights' head, behind whichever prefix."""
        wanted = f".{head}.weight"
        found = [value for key, value in self.checkpoint.state.items() if f".{key}".endswith(wanted)]
        return found[0].shape[0] if found and found[0].dim() else None

    def _check_plain(self) -> None:
        """Raise for a network that a name alone does not build, which no other command could load afterwards."""
        odd = ""
        if self.published is not None:
            held, options = self.published, next(iter(self.published.networks.values()))[1]
            extras = {
                "a temporal pool": held.pooled,
                "non-local blocks": held.non_local,
                "a GRU": held.recurrent is not None,
            }
            odd = ", ".join(
                [name for name, has in extras.items() if has] + [f"{k}={v}" for k, v in options.items()]
            )
        elif self.checkpoint.ours:
            origin = self.checkpoint.origin
            options = {} if origin is None else origin.options
            odd = self.checkpoint.why_not if origin is None else ", ".join(sorted(options.keys() - CHOSEN))
        if self.shift.get("fold_order", "future_first") != "future_first":
            odd = ", ".join(filter(None, [odd, f"fold_order={self.shift['fold_order']}"]))
        if odd:
            raise ValueError(
                f"expected weights of a network that its name alone tells, got one of {odd} in {self.source}: "
                "train it in Python, by tsm_triton.load_checkpoint and tsm_triton.training.fit"
            )


def read_start(source: str | Path) -> Start:
    """What `--weights` names.

    Raises:
        FileNotFoundError, ValueError: no weights; published ones that do not say how they were trained.
    """
    checkpoint, published = open_checkpoint(source, asks=False)
    missing = [] if published is None else [k for k, c in published.shifts.items() if c.value is None]
    if missing:
        raise ValueError(
            f"expected weights that say their {', '.join(missing)}, got none in {checkpoint.source}: load them with "
            "tsm_triton.load_checkpoint, which takes it, call save_checkpoint, and start from that file"
        )
    return Start(checkpoint, published)


def _head_name(model: Any) -> str:
    """The layer of the logits, of timm's models as they say it: some end in a convolution."""
    tell = getattr(model, "get_classifier", None)
    head = tell() if callable(tell) else None
    named = [name for name, module in model.named_modules() if module is head and name]
    return named[0] if named else head_of(model)
