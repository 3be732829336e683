"""Mirrored videos and their labels: left becomes right, in the picture and in the name of the class."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ...files import read_text
from .sides import named_pairs, normal, sided, tell

__all__ = ["PAIRS", "FlipPairs", "check_transform", "find_flips"]

FlipPairs: TypeAlias = str | os.PathLike[str] | Iterable[tuple[str | int, str | int]] | None

# Numbers of the classes that exchange, where a list gives numbers and no names. Source: the `flip_label_map` of
# mmaction2's configurations for Something-Something, in the order of its official lists of labels.
PAIRS = {
    "something-v1": ((2, 4), (30, 41), (52, 66)),
    "something-v2": ((86, 87), (93, 94), (166, 167)),
}
NUM_CLASSES = 174


def find_flips(flip_pairs: FlipPairs, classes: Sequence[str]) -> dict[int, int | None] | None:
    """What a label becomes when its video is mirrored.

    Args:
        flip_pairs: None, no video is mirrored; `"names"`, the classes whose names differ by left and right, or
            clockwise and counterclockwise, exchange (Something-Something's, Jester's; `SwipeLeft`, `turn_leftwards`,
            `Rotate CCW`, `kick L` too); `"something-v1"` or `"something-v2"`, the same, and where classes have numbers
            for names the published pairs of numbers, in the order of the official lists of labels (the authors' V1
            lists number the sorted names: pass those, or a file); a file with a pair of names or numbers `a,b` on each
            line; or pairs. What stands in none keeps its label.
        classes: the names in the order of their numbers.

    Returns:
        For the labels that change, the new one; None for those that must not be mirrored, since the name has a side
        and no class has the other. None if no video is mirrored.

    Raises:
        ValueError: `"names"` of classes that have but numbers, a name or a number that is no class, a class in two
            pairs, or a file that cannot be read.

    Example:
        >>> find_flips("names", ["Swiping Left", "Swiping Right", "Turning the camera left", "Waving"])
        {0: 1, 1: 0, 2: None}
        >>> find_flips([("up left", "up right")], ["up right", "up left", "up"])
        {0: 1, 1: 0}
    """
    if flip_pairs is None:
        return None
    if isinstance(flip_pairs, str) and flip_pairs in PAIRS:
        if len(classes) != NUM_CLASSES:
            raise ValueError(
                f"expected the {NUM_CLASSES} classes of Something-Something for {flip_pairs!r}, got {len(classes)}: "
                "pass flip_pairs='names', or a file of pairs"
            )
        pairs: Iterable[tuple[str | int, str | int]] = (
            named_pairs(classes) if tell(classes) else PAIRS[flip_pairs]
        )
    elif isinstance(flip_pairs, str) and flip_pairs == "names":
        if classes and not tell(classes):
            raise ValueError(
                f"expected names of classes that say what they are for flip_pairs='names', got {classes[0]!r} and the "
                "like: write names into the list, pass 'something-v1' or 'something-v2' for the numbers of those, or a "
                "file of pairs of numbers, an empty one if no classes exchange"
            )
        pairs = named_pairs(classes)
    elif isinstance(flip_pairs, (str, os.PathLike)):
        pairs = _read_pairs(Path(flip_pairs))
    else:
        pairs = flip_pairs
    return dict.fromkeys(sided(classes)) | _exchanged(pairs, classes)


def check_transform(
    transform: Callable[..., Any] | None, flips: dict[int, int | None] | None, classes: Sequence[str]
) -> None:
    """Raise for a transform that mirrors videos behind the back of their labels."""
    if transform is None or not _mirrors(transform):
        return
    pairs = [] if flips is not None else named_pairs(classes)
    if flips is not None or pairs:
        exchanged = (
            f"classes as {classes[pairs[0][0]]!r} and {classes[pairs[0][1]]!r}" if pairs else "flip_pairs"
        )
        raise ValueError(
            f"expected a transform that does not mirror, got RandomHorizontalFlip with {exchanged}: its labels would "
            "be wrong. Leave its flip out, and pass flip_pairs where videos shall be mirrored with their labels."
        )


def _mirrors(transform: Any) -> bool:
    from torchvision.transforms import RandomHorizontalFlip as OldRandomHorizontalFlip
    from torchvision.transforms.v2 import RandomHorizontalFlip

    parts = getattr(transform, "transforms", ())
    return isinstance(transform, (RandomHorizontalFlip, OldRandomHorizontalFlip)) or any(map(_mirrors, parts))


def _exchanged(pairs: Iterable[tuple[str | int, str | int]], classes: Sequence[str]) -> dict[int, int | None]:
    number_of = {normal(name): number for number, name in enumerate(classes)}
    number_of |= {name: number for number, name in enumerate(classes)}
    flips: dict[int, int | None] = {}
    for pair in pairs:
        a, b = (_number(label, number_of, len(classes)) for label in pair)
        if a in flips or b in flips or a == b:
            raise ValueError(
                f"expected each class in one pair, with another, got {pair} beside the others: leave it out"
            )
        flips |= {a: b, b: a}
    return flips


def _number(label: str | int, number_of: dict[str, int], num_classes: int) -> int:
    number = label if isinstance(label, int) else number_of.get(label, number_of.get(normal(label)))
    if number is None and re.fullmatch("[0-9]+", str(label)):
        number = int(label)
    if number is None or not 0 <= number < num_classes:
        raise ValueError(
            f"expected the name of a class or a number below {num_classes} in flip_pairs, got {label!r}: check it "
            "against the classes"
        )
    return number


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    pairs = []
    for line in read_text(path, "pairs of classes").split("\n"):
        separator = next((mark for mark in "\t;" if mark in line), ",")
        names = [name.strip() for name in line.split(separator)]
        if len(names) == 2 and all(names):
            pairs.append((names[0], names[1]))
        elif line.strip():
            raise ValueError(
                f"expected a pair a,b on each line of {str(path)!r}, got {line!r}: write two classes"
            )
    return pairs
