"""Dynamo guards hooks: a graph of a model without shifts is never run for one with them, nor the other way.

By default Dynamo's guards leave empty hook dictionaries out (`torch._dynamo.config.skip_nnmodule_hook_guards`), so
that a patched model finds the graph of an unpatched one of its class, and silently runs without the shift. The guards
cost a compiled call less than it varies by: a ResNet-50 of one 32 px frame took 19.1 ms with them and 21.4 without, on
a CPU (`python -m benchmarks.hook_guards`).
"""

import sys
from typing import Any

import torch

from ..late import after_import
from ..torch_private import DYNAMO_CONFIG, skip_hook_guards

__all__ = ["guard_hooks"]

_waiting: list[str] = []


def guard_hooks() -> None:
    """Have hooks guarded from here on; graphs that were made without it are dropped.

    Before Dynamo is imported (seconds, at the first `torch.compile`) this waits for it.
    """
    config = sys.modules.get(DYNAMO_CONFIG)
    if config is not None:
        if skip_hook_guards(config, False):
            torch.compiler.reset()
    elif not _waiting:
        _waiting.append(DYNAMO_CONFIG)
        after_import(DYNAMO_CONFIG, _set)


def _set(config: Any) -> None:
    skip_hook_guards(config, False)
