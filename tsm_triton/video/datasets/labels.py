"""Names of classes and their numbers."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ...files import read_text
from ..pictures import natural

__all__ = ["is_number", "number_labels", "plain", "read_classes"]

Label = str | int | None
MAX_CLASSES = 100_000  # a larger number is no label, but an id from another column


def plain(name: str) -> str:
    """A name without the differences in writing between lists and folders: brackets, case, underscores."""
    return re.sub(r"[\[\]]", "", name).replace("_", " ").strip().lower()


def number_labels(
    labels: Sequence[Label], classes: Sequence[str] | None, where: str, are_names: bool = False
) -> tuple[list[int | None], tuple[str, ...]]:
    """The numbers of labels, and the names of the classes.

    Numbers count from 0; where all classes are called by numbers they are names. A number is never one class in a list
    and another in a part of it: where only some classes are called so, what could be either is refused, unless a name
    among the labels says that all of them are names.

    Args:
        labels: names, or numbers; None throughout where there are none.
        classes: the names in the order of their numbers; None for those that occur, in natural order.
        where: the labels come from, for messages.
        are_names: whether they can be nothing else, as those of folders.

    Raises:
        ValueError: labels for some only, labels that are not among the classes, a number that is none, or that would
            be one class by its number and another by its name.
    """
    if all(label is None for label in labels):
        return list(labels), tuple(classes or ())  # pyright: ignore[reportReturnType]
    if None in labels:
        raise ValueError(
            f"expected a label for each video or for none, got none for number {labels.index(None)} of {where}: "
            "write it, or leave the video out"
        )
    numbers = None if are_names else _numbers(labels)
    if classes is None:
        if numbers is None:
            classes = sorted({str(label) for label in labels}, key=natural)
        else:
            _check_range(numbers, MAX_CLASSES, where)
            return list(numbers), tuple(map(str, range(max(numbers) + 1)))
    number_of = _by_name(classes)
    found = [_find(str(label), number_of) for label in labels]
    unknown = sorted({str(label) for label, number in zip(labels, found, strict=True) if number is None})
    if numbers is not None and not all(is_number(name) for name in classes):
        _check_range(numbers, len(classes), where)
        for name, by_name, number in zip(labels, found, numbers, strict=True):
            if by_name not in (None, number):
                raise ValueError(
                    f"expected a name or a number, got {name!r} in {where}, which is class {by_name} by its name and "
                    f"class {number} by its number: call the classes by names that are no numbers, in training too"
                )
        return list(numbers), tuple(classes)
    if unknown:
        raise ValueError(
            f"expected labels among the {len(classes)} classes {', '.join(map(repr, classes[:3]))} ..., got "
            f"{len(unknown)} others in {where}: {', '.join(map(repr, unknown[:5]))}. Pass the classes of this data."
        )
    return found, tuple(classes)


def read_classes(path: Path) -> list[str]:
    """The classes of Something-Something's and Jester's `labels` files: a name on each line, or a JSON."""
    text = read_text(path, "classes")
    if path.suffix != ".json":
        return [line.strip().strip('"') for line in text.split("\n") if line.strip()]
    try:
        names = json.loads(text)
        return sorted(names, key=lambda name: int(names[name])) if isinstance(names, dict) else list(names)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"expected a JSON of classes, a list or names with their numbers, got {str(path)!r} ({error}): "
            "copy it again"
        ) from error


def _by_name(classes: Sequence[str]) -> dict[str, int]:
    number_of: dict[str, int] = {}
    for number, name in enumerate(classes):  # as it is written goes before how another may be
        number_of.setdefault(plain(name), number)
    return number_of | {name: number for number, name in enumerate(classes)}


def _find(label: str, number_of: dict[str, int]) -> int | None:
    for spelling in (label, plain(label), str(int(label)) if is_number(label) else label):
        if spelling in number_of:
            return number_of[spelling]
    return None


def _numbers(labels: Sequence[Label]) -> list[int] | None:
    """The labels as numbers, if all of them are."""
    if all(isinstance(label, int) or is_number(str(label)) for label in labels):
        return [int(label) for label in labels if label is not None]
    return None


def is_number(name: str) -> bool:
    return re.fullmatch("-?[0-9]+", name) is not None


def _check_range(numbers: list[int], num_classes: int, where: str) -> None:
    wrong = next((number for number in numbers if not 0 <= number < num_classes), None)
    if wrong is not None:
        raise ValueError(
            f"expected labels from 0 to {num_classes - 1}, got {wrong} in {where}: check which column holds them"
        )
