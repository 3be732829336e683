"""ATen ops on meta tensors, remembered: their shape functions are slow Python, and models repeat their blocks."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..torch_private import schema_of, storage_key

__all__ = ["run_on_meta", "tensors_in"]

MOST_REMEMBERED = 20_000
_made: dict[Any, Tensor] = {}


def run_on_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `func` returns; an empty tensor of the known shape where it made one new tensor of the same before."""
    if len(schema_of(func).returns) != 1 or schema_of(func).is_mutable:
        return func(*args, **kwargs)
    try:
        key = func, _key(args), _key(tuple(kwargs.items()))
        known = _made.get(key)
    except TypeError:  # an argument that has no hash
        return func(*args, **kwargs)
    if known is not None:
        return torch.empty_strided(known.shape, known.stride(), dtype=known.dtype, device="meta")
    out = func(*args, **kwargs)
    if isinstance(out, Tensor) and out.is_meta and not _shares_memory(out, (args, tuple(kwargs.values()))):
        if len(_made) >= MOST_REMEMBERED:
            _made.clear()
        _made[key] = out
    return out


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors among an op's arguments or results."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors_in(item)


def _shares_memory(out: Tensor, arguments: Any) -> bool:
    storage = storage_key(out)
    return any(storage_key(tensor) == storage for tensor in tensors_in(arguments))


def _key(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.shape, tree.stride(), tree.dtype, tree.device
    if isinstance(tree, (tuple, list)):
        return tuple(map(_key, tree))
    return type(tree), tree
