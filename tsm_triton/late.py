"""`import tsm_triton` without torch: `tsm-triton --help` needs none, everything else brings it.

Where torch is not imported yet, the ops are registered as soon as it is, and the package's names follow when they are
asked for.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["after_import", "attribute", "register_ops_with_torch"]


def attribute(package: ModuleType, name: str) -> Any:
    """What `package.__getattr__` gives: a public name, or a module of the package.

    Raises:
        AttributeError: it has neither.
    """
    if name in package.__all__ and name not in vars(package):
        importlib.import_module("torch")
        importlib.reload(package)  # with torch there, it imports them all
    elif name.isidentifier() and not name.startswith("_"):
        try:
            return importlib.import_module(f"{package.__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{package.__name__}.{name}":
                raise
    if name not in vars(package):
        raise AttributeError(
            f"expected a name of module {package.__name__!r}, got {name!r}: choose one of dir()"
        )
    return vars(package)[name]


class _AfterImport:
    """A finder that steps aside once its module is found, and hands it on when it has run."""

    def __init__(self, name: str, then: Callable[[Any], None]) -> None:
        self.name = name
        self.then = then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        loader, run = spec.loader, spec.loader.exec_module
        another = "exec_module" in vars(loader)  # of a copy of the package that waits for the same module

        def run_then(module: ModuleType) -> None:
            del loader.exec_module  # the class's own again
            if another:
                loader.exec_module = run
            run(module)
            self.then(module)

        loader.exec_module = run_then
        return spec


def after_import(name: str, then: Callable[[Any], None]) -> None:
    """Call `then` with the module `name` as soon as anybody has imported it."""
    sys.meta_path.insert(0, _AfterImport(name, then))


def register_ops_with_torch() -> None:
    """Let the import of torch, whoever asks for it, bring `torch.ops.tsm_triton` and the guards on hooks along."""
    after_import("torch", _with_torch)


def _with_torch(torch: Any) -> None:
    # It may be a module of ours that imports torch, and the ops may read that one: they get it whole, run by itself.
    inside = f"{__package__}."
    begun = {
        name: module
        for name, module in sys.modules.items()
        if name.startswith(inside) and getattr(module.__spec__, "_initializing", False)
    }
    for name in begun:
        del sys.modules[name]
    importlib.import_module(f"{__package__}.ops")
    importlib.import_module(f"{__package__}.patching.hook_guards").guard_hooks()
    for name, module in begun.items():
        sys.modules.setdefault(name, module)
