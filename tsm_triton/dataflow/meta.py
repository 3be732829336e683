"""ATen ops on meta tensors, remembered: their shape functions are slow Python, and models repeat their blocks."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..torch_private import schema_of, storage_key

__all__ = ["run_on_meta", "tensors_in"]

MOST_REMEMBERED = 20_000
_made: dict[Any, Tensor | tuple[Tensor, ...] | None] = {}  # None of an op that wrote its first argument alone
_UNKNOWN: Any = object()


def run_on_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `func` returns; empty tensors of the known shapes where it made new ones of the same before."""
    writes = schema_of(func).is_mutable
    if writes and not _writes_values(func):
        return func(*args, **kwargs)
    try:
        key = func, _key(args), _key(tuple(kwargs.items()))
        known = _made.get(key, _UNKNOWN)  # once: another thread may forget them all
    except TypeError:  # an argument that has no hash
        return func(*args, **kwargs)
    if known is None:
        return args[0]
    if known is not _UNKNOWN:
        return _like(known) if isinstance(known, Tensor) else tuple(map(_like, known))
    out = func(*args, **kwargs)
    if writes:
        new = out is args[0] and args[0].is_meta
    else:
        new = _are_new(out if type(out) is tuple else (out,), (args, tuple(kwargs.values())))
    if new:
        if len(_made) >= MOST_REMEMBERED:
            _made.clear()
        _made[key] = None if writes else out
    return out


def _writes_values(func: Any) -> bool:
    """Whether it writes its first argument, and of that no size or stride, and nothing else."""
    first, *others = (a.alias_info is not None and a.alias_info.is_write for a in schema_of(func).arguments)
    return first and not any(others) and torch.Tag.inplace_view not in func.tags


def _like(known: Tensor) -> Tensor:
    return torch.empty_strided(known.shape, known.stride(), dtype=known.dtype, device="meta")


def _are_new(outputs: tuple[Any, ...], arguments: Any) -> bool:
    """Whether each is a meta tensor with a memory of its own."""
    if not all(isinstance(out, Tensor) and out.is_meta for out in outputs):
        return False
    memories = [*map(storage_key, outputs), *{storage_key(tensor) for tensor in tensors_in(arguments)}]
    return len(set(memories)) == len(memories)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors among an op's arguments or results."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors_in(item)


def _key(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.shape, tree.stride(), tree.dtype, tree.device
    if isinstance(tree, (tuple, list)):
        return tuple(map(_key, tree))
    return type(tree), tree
