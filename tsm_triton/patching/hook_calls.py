"""How a forward pre-hook is called, by the module that holds it and by TorchScript."""

import inspect
from typing import Any

from torch import nn

__all__ = ["PatchHook", "first_parameter", "keyword_of", "no_script"]

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class PatchHook:
    """What a patch puts into a model. TorchScript cannot hold it, and is told so where it asks for a hook's name."""

    @property
    def __name__(self) -> str:
        raise no_script()


def no_script() -> AttributeError:
    """What to raise where TorchScript would hold a shift."""
    return AttributeError(
        "expected a model that TorchScript can hold, got a patched one, whose hooks are Python. Use "
        "torch.jit.trace, whose graph takes any number of clips (of a model without torch.ao's quantised layers, "
        "which it scripts), torch.export or torch.compile."
    )


def first_parameter(module: nn.Module) -> str | None:
    """The name of a forward's first parameter, None where it has none."""
    try:
        names = [
            each.name for each in inspect.signature(module.forward).parameters.values() if each.kind in _NAMED
        ]
    except (TypeError, ValueError):  # no function of Python's
        return None
    return names[0] if names else None


def keyword_of(argument: str | None, kwargs: dict[str, Any]) -> str:
    """The keyword of a module's first parameter."""
    return argument if argument is not None and argument in kwargs else next(iter(kwargs))
