"""What users pass for whole numbers, as plain ones: Python's, NumPy's and torch's."""

import operator
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["as_count", "as_int", "as_ints", "check_floats", "check_frames"]


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
    raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")


def as_count(value: Any, name: str) -> int:
    """An integer of at least 1.

    Raises:
        TypeError: another type.
        ValueError: less than 1.
    """
    value = as_int(value, name)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
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


def check_floats(x: Tensor, name: str) -> None:
    """Raise for pixels as they are decoded.

    Raises:
        TypeError: values that are not floats.
    """
    if not x.is_floating_point():
        raise TypeError(
            f"{name} must hold normalised floats, got {x.dtype}: pass what "
            "tsm_triton.video.transforms.transform_for(model) makes of decoded frames"
        )


def check_frames(x: Tensor, model: nn.Module, name: str) -> None:
    """Raise for pixels as they are decoded, and for channels on another axis than the third from the end.

    Raises:
        TypeError: values that are not floats.
        ValueError: an axis of channels elsewhere.
    """
    check_floats(x, name)
    if x.dim() < 4 or x.shape[-3] == 3:
        return
    # the first convolution may be none of the input's own: both are taken
    channels = {3, next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)}
    if x.shape[-3] in channels:
        return
    last, shape = x.shape[-1] in channels, tuple(x.shape)
    if x.shape[-3] == 1 and not last and (x.dim() == 4 or x.shape[-4] not in channels):
        raise ValueError(
            f"{name} must have 3 channels on the third axis from the end, [..., 3, H, W], got {shape} with one: repeat "
            f"a grey picture's, {name}.repeat_interleave(3, -3)"
        )
    if last or x.shape[-4] in channels:
        raise ValueError(
            f"{name} must have its channels on the third axis from the end, [..., 3, H, W], got {shape}, which looks "
            f"like {'[..., H, W, 3]' if last else '[N, 3, T, H, W]'}: pass {name}.movedim({-1 if last else -4}, -3)"
        )
