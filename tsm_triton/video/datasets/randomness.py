"""Random choices that follow from names alone, so that a resumed run draws what an unbroken one does."""

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["seed_of", "seeded"]

# the process and the thread that draw
_inside: tuple[int, int] | None = None


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
    """Let torch's default generator of the CPU start here inside, and go on outside as if nothing had happened.

    Raises:
        RuntimeError: another thread is inside, which draws from the same generator.

    Example:
        >>> with seeded(7):
        ...     drawn = torch.rand(2)
        >>> with seeded(7):
        ...     assert torch.equal(drawn, torch.rand(2))
    """
    global _inside
    here, outer = (os.getpid(), threading.get_ident()), _inside
    if outer is not None and outer != here and outer[0] == here[0]:  # a fork takes the parent's along
        raise RuntimeError(
            "expected one thread at a time to read clips, whose random choices are torch's default generator's, got "
            "two: read them in the workers of a DataLoader, which are processes"
        )
    generator = torch.default_generator  # torch.manual_seed would seed the GPU's generators as well
    _inside = here
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)
        _inside = outer
