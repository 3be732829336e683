"""Training on clips: `fit` is the loop of `tsm-triton train`, of the demo and of the example.

settings says how, recipes holds the authors' settings, order which clips come when, optimisation and groups how weights
are moved, batch_norm which statistics stay, state what a training goes on from, results what it writes.

No name here imports torch before it is asked for: `tsm-triton train --help` reads the settings.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch_norm import freeze_batch_norm
    from .fitting import fit
    from .groups import optimizer_groups
    from .recipes import RECIPES, read_recipe
    from .settings import Settings

__all__ = ["RECIPES", "Settings", "fit", "freeze_batch_norm", "optimizer_groups", "read_recipe"]

MODULES = {
    "RECIPES": "recipes",
    "Settings": "settings",
    "fit": "fitting",
    "freeze_batch_norm": "batch_norm",
    "optimizer_groups": "groups",
    "read_recipe": "recipes",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in MODULES:
            raise AttributeError(
                f"expected a name of module {__name__!r}, got {name!r}: choose one of {', '.join(__all__)}"
            )
        return getattr(importlib.import_module(f".{MODULES[name]}", __name__), name)
