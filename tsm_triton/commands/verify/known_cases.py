"""The cases that a property meets besides drawn ones, which leave many dtypes, layouts and widths out."""

import itertools
import random
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ...activations import ACTIVATIONS
from ...testing import LAYOUTS, ShiftCase
from ...testing.cases import CHANNEL_DIMS

__all__ = ["C_OUT", "FLOATS", "FRAMES", "known_cases"]

# layouts of maps [F, C, H, W], which is what the ops that compute take
FRAMES = tuple(name for name, axis in LAYOUTS.items() if axis == 1)
# The interpreter truncates bf16 where a GPU rounds it, and its matrix product of bf16 is wrong.
FLOATS = {
    "copies": (torch.float32, torch.float16, torch.float64, torch.bfloat16),
    "interpreter": (torch.float32, torch.float16, torch.float64),
    "triton": (torch.float32, torch.float16, torch.float64, torch.bfloat16),
}
# output channels: one, and both sides of a tile's 16, 32 and 64
C_OUT = (1, 3, 16, 40, 70)
OF_EACH_SIZE = (torch.int8, torch.float16, torch.float32, torch.float64)
OTHERS = (
    torch.bfloat16,
    torch.bool,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.complex64,
    torch.complex128,
)


def known_cases(form: str, arguments: Iterable[str], packed: bool = False) -> Iterator[dict[str, Any]]:
    """Each layout with elements of each size, and of an op that computes each activation and width in turn.

    Args:
        form: a key of `FLOATS`.
        arguments: what the property takes: `case`, and of an op that computes `activation` and perhaps `c_out`.
        packed: whether the clips have lengths of their own.
    """
    computes = "activation" in arguments
    kinds: Iterable[tuple[str, torch.dtype]] = itertools.product(FRAMES, FLOATS[form])
    if not computes:
        every = itertools.product(CHANNEL_DIMS, OF_EACH_SIZE)
        kinds = itertools.chain(
            every, ((layout, dtype) for dtype in OTHERS for layout in ("contiguous", "channels_last"))
        )
    for number, (layout, dtype) in enumerate(kinds):
        pick = random.Random(number).choice  # not in turn: what turns together never meets
        turn = sum(divmod(number, len(FLOATS[form])))  # each dtype of an op that computes meets every turn
        n_first, n_second = pick(((4, 4), (3, 5), (0, 1), (5, 0), (8, 8)))
        case = ShiftCase(
            clips=pick((1, 2)),
            num_segments=2,
            clip_lengths=pick(((2, 0, 1), (1, 3))) if packed else (),
            channels=pick((16, 20, 33)),
            height=pick((1, 2)),
            width=pick((1, 2, 3, 4, 5, 6, 8)),
            n_first=n_first,
            n_second=n_second,
            reverse=pick((False, True)),
            layout=layout,
            dtype=dtype,
            special=pick((False, True)),
            seed=pick(range(0, 2**16, 4))
            + turn % 4,  # bits that say whether there are a bias and an identity
        )
        more = {
            "activation": list(ACTIVATIONS)[number % len(ACTIVATIONS)],
            "c_out": C_OUT[turn % len(C_OUT)],
        }
        yield {"case": case} | {name: more[name] for name in arguments if name != "case"}
