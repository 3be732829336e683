"""Exported files, as the command line names them: `--model FILE`, where a library's model has a name."""

from pathlib import Path
from typing import Any

from ..exporting.export import FORMATS
from ..exporting.loading import ExportedClips, ExportedStep, load_exported
from .options import option_of

__all__ = ["exported_clips", "exported_file", "exported_step"]


def exported_file(name: str | None, checkpoint: str | Path | None, option: str) -> Path | None:
    """The file that `--model` names, if it names one.

    Args:
        name: of `--model`.
        checkpoint: of the other option that names a model, `option`.

    Raises:
        ValueError: two models, or an exported file where a checkpoint is meant.
    """
    if checkpoint is not None and Path(checkpoint).suffix.lower() in FORMATS.values():
        raise ValueError(
            f"expected a checkpoint, got the exported file {str(checkpoint)!r}: pass --model with it"
        )
    if name is None or Path(name).suffix.lower() not in FORMATS.values():
        return None
    if checkpoint is not None:
        raise ValueError(
            f"expected one model, got the exported file {name!r} and {option} {str(checkpoint)!r}: drop one"
        )
    return Path(name)


def exported_clips(path: Path, num_segments: int | None, shift: dict[str, Any]) -> ExportedClips:
    """A file's model of clips.

    Raises:
        FileNotFoundError, ValueError: no file of `export`, a stream's, or one of other clips than is asked for.
    """
    model = load_exported(path)
    if not isinstance(model, ExportedClips):
        raise ValueError(
            f"expected a model of clips, got {str(path)!r}, which takes a frame at a time: use tsm-triton stream, or "
            "export without --streaming"
        )
    if None not in (num_segments, model.fixed_segments) and num_segments != model.fixed_segments:
        raise ValueError(
            f"expected --num-segments {model.fixed_segments}, which {str(path)!r} is made for, got {num_segments}: "
            "drop it"
        )
    _check_said(model.said, path, shift)
    return model


def exported_step(path: Path, shift: dict[str, Any]) -> ExportedStep:
    """A file's step of a stream.

    Raises:
        FileNotFoundError, ValueError: no file of `export`, one of clips, or one of more than logits.
    """
    step = load_exported(path)
    if not isinstance(step, ExportedStep):
        raise ValueError(
            f"expected a stream's file, got {str(path)!r}, which takes whole clips: use tsm-triton classify, or export "
            "a causal model with --streaming"
        )
    if step.features:
        raise ValueError(
            f"expected a stream's file that gives logits, got {str(path)!r}, which gives features beside them: export "
            "Streaming(model) without features"
        )
    _check_said(step.said, path, shift)
    return step


def _check_said(said: dict[str, Any], path: Path, shift: dict[str, Any]) -> None:
    unknown = [key for key in ("size", "short_side", "mean", "std") if said[key] is None]
    if unknown:
        raise ValueError(
            f"expected a file that says how frames are prepared, got {str(path)!r} without {', '.join(unknown)}: "
            "export a model that says it"
        )
    own = {"direction": said["direction"] or "unshifted"}
    for key, value in shift.items():
        if own.get(key) != value:
            option = option_of(key)
            expected = (
                f"{option} {own[key]}, as {str(path)!r} says"
                if key in own
                else f"no {option} with {str(path)!r}"
            )
            raise ValueError(f"expected {expected}, got {value}: drop it")
