"""The authors' settings, a TOML file each, whose keys are the options of `tsm-triton train`."""

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

__all__ = ["FINE_TUNING", "RECIPES", "read_recipe"]

RECIPES = tuple(
    sorted(
        file.name.removesuffix(".toml") for file in files(__name__).iterdir() if file.name.endswith(".toml")
    )
)
FINE_TUNING = ("hmdb51", "ucf101")  # which are nothing without weights to start from


def read_recipe(recipe: str) -> dict[str, Any]:
    """What a recipe says, by the names of `tsm-triton train`'s options with underscores.

    Args:
        recipe: one of `RECIPES`, or the path of a TOML file of one's own.

    Raises:
        ImportError: Python 3.10 without tomli.
        ValueError: neither, or a file that is no TOML.

    Example:
        >>> read_recipe("ssv2")["flip"], read_recipe("kinetics")["lr"]
        (False, 0.02)
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        from ...extras import check_installed

        check_installed("a recipe", "tomli")
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    if recipe in RECIPES:
        return tomllib.loads(files(__name__).joinpath(f"{recipe}.toml").read_text("utf-8"))
    try:
        return tomllib.loads(Path(recipe).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected recipe to be one of {', '.join(RECIPES)} or a TOML file, got {recipe!r} ({error}): "
            "choose one of these"
        ) from error
