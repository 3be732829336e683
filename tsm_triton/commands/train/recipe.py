"""The options that a recipe gives to a training: known ones, of the types and bounds that the command line takes."""

import math
from dataclasses import fields
from typing import Any

from ...choices import DIRECTIONS, PLACES
from ...training.recipes import read_recipe
from ...training.settings import Settings
from . import MODEL_DEFAULTS, SAMPLINGS

__all__ = ["recipe_options"]

CHOICES = {"direction": DIRECTIONS, "place": PLACES, "sampling": SAMPLINGS}
BOUNDS = {"num_segments": 1024, "size": 4096, "shift_div": 4096}
KINDS = {"size": int, "flip_pairs": str}  # whose defaults tell none
WORDS = {str: "a string", bool: "true or false", int: "a whole number", float: "a number", list: "a list"}


def recipe_options(recipe: str) -> dict[str, Any]:
    """What a recipe says.

    Raises:
        ValueError: an option that train does not have, or a value that it does not take.
    """
    said = read_recipe(recipe)
    defaults = {**MODEL_DEFAULTS, **{field.name: field.default for field in fields(Settings)}}
    unknown = sorted(said.keys() - defaults)
    if unknown:
        raise ValueError(
            f"expected a recipe of train's options, got {', '.join(unknown)} in {recipe!r}: drop it, or write options "
            "with underscores"
        )
    for name, value in said.items():
        wanted = _wanted(name, value, defaults[name])
        if wanted is not None:
            raise ValueError(
                f"expected {name} in {recipe!r} to be {wanted}, got {value!r}: write such a value"
            )
    return said


def _wanted(name: str, value: Any, default: Any) -> str | None:
    """What a value must be and is not; bounds of the loop's settings are their own."""
    kind = KINDS.get(name, type(default))
    if kind is tuple:
        fits = isinstance(value, list) and all(type(part) is int for part in value)
        return None if fits else "a list of whole numbers"
    if type(value) is not kind and not (kind is float and type(value) is int):
        return WORDS[kind]
    if kind is float and not math.isfinite(value):
        return "a finite number"
    if name in CHOICES and value not in CHOICES[name]:
        return f"one of {', '.join(map(repr, CHOICES[name]))}"
    if name in BOUNDS and not 1 <= value <= BOUNDS[name]:
        return f"from 1 to {BOUNDS[name]}"
    return None
