"""The device that a launch goes to, and the launches that are known."""

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


def device_guard(x: Tensor) -> AbstractContextManager[object]:
    """Make `x`'s GPU the current one for a launch; costs nothing where it already is."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


@lru_cache
def multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def has_copy_engine(x: Tensor) -> bool:
    """Whether `x` is on a Hopper or a Blackwell of the data centre: TMA, and shared memory for its tiles."""
    return x.is_cuda and torch.version.hip is None and _capability(x.get_device())[0] in (9, 10)


def fp32_precision() -> str:
    """How fp32 is multiplied, as torch's own matrix products do it; other dtypes ignore it."""
    chosen = torch.backends.cuda.matmul.fp32_precision
    return "tf32" if chosen == "tf32" and torch.version.hip is None else "ieee"


class Plan(NamedTuple):
    """A compiled kernel on its grid, and what it is called with behind the pointers."""

    run: Callable[..., None]
    arguments: tuple[Any, ...]


def remember(plans: dict[Any, Plan], key: Hashable, plan: Plan) -> None:
    """Keep a plan; a caller of ever new shapes loses the old ones rather than memory."""
    if len(plans) >= 4096:
        plans.clear()
    plans[key] = plan
