"""What users pass for whole numbers, as plain ones: Python's, NumPy's and torch's."""

import operator
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch

__all__ = ["as_count", "as_int", "as_ints"]


def as_int(value: Any, name: str) -> int:
    """One integer.

    Raises:
        TypeError: another type; bool is one.
    """
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return value  # pyright: ignore[reportReturnType]
    # a bool of torch, or of NumPy before 2.3, counts itself as an index
    dtype = str(getattr(value, "dtype", type(value).__name__))
    if dtype not in ("bool", "torch.bool"):
        with suppress(TypeError):
            return operator.index(value)
    raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}: convert it")


def as_count(value: Any, name: str) -> int:
    """An integer of at least 1.

    Raises:
        TypeError: another type.
        ValueError: less than 1.
    """
    value = as_int(value, name)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}: pass a positive number")
    return value


def as_ints(values: Any, name: str) -> list[int]:
    """Several integers.

    Raises:
        TypeError: not a list, or one of something else; a mask is one.
    """
    listed = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(listed, (str, bytes)) or not isinstance(listed, Iterable):
        raise TypeError(
            f"{name} must be a list of ints, got {values!r} of type {type(values).__name__}: pass [number] for one"
        )
    listed = list(listed)
    if listed and all(isinstance(value, bool) for value in listed):
        raise TypeError(f"{name} must be a list of ints, got a mask of bools: pass the places of its True")
    return [as_int(value, f"each of {name}") for value in listed]
