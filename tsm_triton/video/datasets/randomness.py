"""Random choices that follow from names alone, so that a resumed run draws what an unbroken one does."""

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["drawing_from", "seed_of", "seeded"]

# the process and the thread that are inside of `seeded`
_drawing: dict[str, tuple[int, int]] = {}


def seed_of(*parts: int | str) -> int:
    """A seed for torch, spread evenly over 63 bits, the same on every machine.

    Example:
        >>> seed_of(0, 1, 2) == seed_of(0, 1, 2) != seed_of(0, 2, 1)
        True
    """
    digest = hashlib.blake2b(repr(parts).encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """As `drawing_from`, for one thread at a time.

    Raises:
        RuntimeError: another thread is inside, which would draw from the same generator.

    Example:
        >>> with seeded(7):
        ...     drawn = torch.rand(2)
        >>> with seeded(7):
        ...     assert torch.equal(drawn, torch.rand(2))
    """
    here = os.getpid(), threading.get_ident()
    by = _drawing.setdefault("by", here)  # in one step: no other thread comes in between
    if by[0] == here[0] and by != here:
        raise RuntimeError(
            "expected one thread at a time to read clips, whose random choices are torch's default generator's, got "
            "two: use the workers of a DataLoader, which are processes"
        )
    # a fork copies the entry of a parent that was inside
    outermost = by is here or by[0] != here[0]
    _drawing["by"] = here
    try:
        with drawing_from(seed):
            yield
    finally:
        if outermost:
            del _drawing["by"]


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Let torch's default generator of the CPU start here inside, and go on outside as if nothing had happened."""
    generator = torch.default_generator  # torch.manual_seed would seed the GPU's generators as well
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)
