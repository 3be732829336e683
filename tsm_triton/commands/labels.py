"""Names of classes: those of a file, or those that a model's weights say."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..checkpoints.labels import as_label
from ..files import read_text
from ..video.datasets.sides import normal

__all__ = ["check_distinct", "labels_for", "labels_of", "read_labels"]


def read_labels(path: Path) -> list[str]:
    """Class names, one on each line that is not empty: UTF-8 or UTF-16, of any system.

    Raises:
        ValueError: there is no such file, or it holds another encoding; the message names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "labels.txt")
        ...     _ = path.write_text("swipe left\\r\\nswipe right\\r\\n", "utf-16")
        ...     read_labels(path)
        ['swipe left', 'swipe right']
    """
    lines = (line.strip("\ufeff \t\f\v\xa0") for line in read_text(path, "labels").split("\n"))
    return [as_label(line) for line in lines if line]


def labels_for(path: Path | None, own: Sequence[str] | None) -> list[str] | None:
    """The names of a model's classes: of a file, which may rename those that the weights say, or their own.

    Raises:
        ValueError: as `read_labels`; a name of the weights' at another class, by which labels would be exchanged.
    """
    if path is None:
        return None if own is None else list(own)
    labels = read_labels(path)
    if own is None or len(labels) != len(own):  # the number is compared with the model's classes
        return labels
    number_of = {normal(name): number for number, name in enumerate(own)}
    renamed = []
    for number, label in enumerate(labels):
        elsewhere = number_of.get(normal(label), number)
        if normal(label) == normal(own[number]):
            continue
        if elsewhere != number:
            raise ValueError(
                f"expected --labels in the order of the weights' own, in which class {number} is {own[number]!r}, got "
                f"{label!r}, which is class {elsewhere} there, in {str(path)!r}: drop --labels, or order it so"
            )
        renamed.append((own[number], label))
    if renamed:
        old, new = renamed[0]
        print(
            f"--labels renames {len(renamed)} of the {len(own)} classes of the weights: {old!r} to {new!r}"
            f"{', ...' if len(renamed) > 1 else ''}",
            file=sys.stderr,
        )
    return labels


def check_distinct(labels: Sequence[str], source: str) -> None:
    """Raise for a name of two classes, where names number what is predicted."""
    number_of: dict[str, int] = {}
    for number, label in enumerate(labels):
        if number_of.setdefault(label, number) != number:
            raise ValueError(
                f"expected a name of its own for each class, got {label!r} for {number_of[label]} and {number} in "
                f"{source!r}: pass --labels with other names for these"
            )


def labels_of(args: argparse.Namespace, said: Sequence[str] | None, num_classes: int) -> list[str]:
    """A name for each class: of the file that is given, of the checkpoint, or its number.

    Raises:
        ValueError: of another number than classes, or in another order than the checkpoint says.
    """
    labels = labels_for(args.labels, said) or []
    if not labels:
        return [f"class {number}" for number in range(num_classes)]
    if len(labels) != num_classes:
        raise ValueError(
            f"expected {num_classes} labels, one a class, got {len(labels)} in "
            f"{str(args.labels or args.checkpoint or args.model)!r}: pass --labels with one on each line"
        )
    return labels
