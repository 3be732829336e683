"""Dynamo guards hooks: a graph of a model without shifts is never run for one with them, nor the other way.

By default Dynamo's guards leave empty hook dictionaries out (`torch._dynamo.config.skip_nnmodule_hook_guards`), so
that a patched model finds the graph of an unpatched one of its class, and silently runs without the shift. The guards
cost a compiled call nothing that shows: ResNet-50 at N=1 and 32 px on two CPU cores, no backend, 1.00 of the call
without them (`python -m benchmarks.hook_guards`).
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

__all__ = ["guard_hooks"]

CONFIG = "torch._dynamo.config"


def guard_hooks() -> None:
    """Have hooks guarded from here on; graphs that were made without it are dropped.

    Before Dynamo is imported (seconds, at the first `torch.compile`) this waits for it.
    """
    config = sys.modules.get(CONFIG)
    if config is not None:
        if config.skip_nnmodule_hook_guards:
            config.skip_nnmodule_hook_guards = False  # type: ignore[attr-defined]
            torch.compiler.reset()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(CONFIG, _set))


def _set(config: Any) -> None:
    config.skip_nnmodule_hook_guards = False


class _AfterImport(MetaPathFinder):
    """Hands a module to a function when it is imported for the first time."""

    def __init__(self, name: str, then: Callable[[Any], None]) -> None:
        self.name = name
        self.then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_then(module: ModuleType) -> None:
                run(module)
                self.then(module)

            spec.loader.exec_module = run_then  # type: ignore[method-assign]
        return spec
