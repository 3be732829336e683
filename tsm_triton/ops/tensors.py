"""Sizes, dtypes and memory that several ops share."""

import torch
from torch import Tensor

__all__ = ["MAX_FRAME", "as_bits", "laid_out_like", "new_channels_last", "wide"]

# The fused kernels count the elements of a frame in 32 bits; a program's last block may reach past its end.
# Larger frames take torch's own operators.
MAX_FRAME = 2**31 - 2**16


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that arithmetic on `dtype` is done in."""
    return torch.promote_types(dtype, torch.float32)


def as_bits(x: Tensor) -> Tensor:
    """The same memory as integers: torch fills and indexes them, but not every dtype (uint16, float8)."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.view(integers[x.itemsize]) if x.itemsize in integers else x


def laid_out_like(values: Tensor, template: Tensor) -> Tensor:
    """`values` with the strides of `torch.empty_like(template)`, the ones the fakes promise."""
    out = torch.empty_like(template, dtype=values.dtype)
    return values if values.stride() == out.stride() else out.copy_(values)


def new_channels_last(x: Tensor, *shape: int) -> Tensor:
    """Memory for a result of `x`'s dtype and device."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
