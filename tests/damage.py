"""Files whose first bytes, where most formats say what follows, are wrong."""

import random


def damaged(whole: bytes, rng: random.Random, first_bytes: int) -> bytes:
    """A file in which up to sixteen of the first bytes are drawn anew."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 4, 16))):
        data[rng.randrange(min(len(data), first_bytes))] = rng.randrange(256)
    return bytes(data)
