"""Memory that shows when a kernel leaves its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

__all__ = ["guarded_memory"]

# Bytes before and behind each tensor: more than one program of any kernel here writes past its end
# (512 vectors of 16 bytes), and a multiple of every alignment that a kernel may count on.
GUARD = 16384
# Of the guards: a NaN in every float format, a large number in every integer.
PATTERN = 0xFF


@contextmanager
def guarded_memory() -> Iterator[None]:
    """A context in which new tensors are poisoned and stand between guard bands.

    Inside it `torch.empty_like`, `torch.empty` and `torch.empty_strided`, as ops call them, hand out memory
    full of NaN, so that an element nobody wrote is seen, with a band on each side, and so does `torch.clone`, full of
    what it copies; at the end the bands are read again. Tensors without memory (meta, fake) are left alone.

    Raises:
        AssertionError: something was written outside a tensor; the message says how far.

    Example:
        >>> with guarded_memory():
        ...     x = torch.empty(4)
        ...     x.as_strided((5,), (1,), x.storage_offset()).fill_(0).shape
        Traceback (most recent call last):
        ...
        AssertionError: expected no write outside a tensor of shape (4,), got one 1 to 4 bytes behind its end
    """
    made: list[tuple[Tensor, Tensor]] = []
    originals = {name: getattr(torch, name) for name in ("empty_like", "empty", "empty_strided", "clone")}

    def guarded(name: str) -> Any:
        def allocate(*args: Any, **kwargs: Any) -> Tensor:
            template = originals[name](*args, **kwargs)
            if type(template) is not Tensor or template.is_meta or template.numel() == 0:
                return template
            if name == "clone" and template.requires_grad:  # autograd's, no op's
                return template
            size = _extent(template)
            whole = originals["empty"](GUARD + size + GUARD, dtype=torch.uint8, device=template.device)
            whole.fill_(PATTERN)
            offset = GUARD // template.itemsize
            tensor = originals["empty"](0, dtype=template.dtype, device=template.device)
            tensor.set_(whole.untyped_storage(), offset, template.shape, template.stride())
            made.append((whole, tensor))
            if name == "clone":
                tensor.copy_(template)
            return tensor.requires_grad_(template.requires_grad)

        return allocate

    with mock.patch.multiple(torch, **{name: guarded(name) for name in originals}):
        yield
    for whole, tensor in made:
        end = GUARD + _extent(tensor)
        for band, side in ((whole[:GUARD].flip(0), "before its start"), (whole[end:], "behind its end")):
            written = (band != PATTERN).nonzero().flatten()
            if len(written):
                raise AssertionError(
                    f"expected no write outside a tensor of shape {tuple(tensor.shape)}, got one "
                    f"{int(written[0]) + 1} to {int(written[-1]) + 1} bytes {side}"
                )


def _extent(x: Tensor) -> int:
    """Bytes from the first to the last element."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.itemsize
