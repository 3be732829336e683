"""When two results count as the same."""

from typing import Any

import torch
from torch import Tensor

from .. import reference

__all__ = [
    "TOLERANCES",
    "assert_close",
    "assert_matches_reference",
    "assert_same_bits",
    "different_bits",
    "in_words",
]

# For ops that compute: one rounding of the result, after arithmetic of its own width or fp32.
TOLERANCES: dict[torch.dtype, dict[str, float]] = {
    torch.float64: dict(rtol=1e-12, atol=1e-12),
    torch.float32: dict(rtol=1e-5, atol=1e-4),
    torch.float16: dict(rtol=2e-3, atol=1e-3),
    torch.bfloat16: dict(rtol=1.6e-2, atol=1e-2),
}

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Fail unless two tensors have one shape, one dtype and the same bits: NaN payloads and signed zeros too.

    Raises:
        AssertionError: naming the first element that differs.

    Example:
        >>> assert_same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
        >>> assert_same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
        Traceback (most recent call last):
        ...
        AssertionError: expected the same bits, got 1 of 1 different, the first at (0,): -0.0 expected, got 0.0
    """
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise AssertionError(
            f"expected {tuple(expected.shape)} {expected.dtype}, got {tuple(actual.shape)} {actual.dtype}"
        )
    different = different_bits(actual, expected)
    if different.any():
        where = tuple(different.nonzero()[0].tolist())
        raise AssertionError(
            f"expected the same bits, got {int(different.sum())} of {different.numel()} different, "
            f"the first at {where}: {in_words(expected[where])} expected, got {in_words(actual[where])}"
        )


def in_words(element: Tensor) -> str:
    """An element's value; of a NaN its bits too, since those of two may differ.

    Example:
        >>> in_words(torch.tensor(float("nan"))), in_words(torch.tensor(2.5))
        ('nan (0x7fc00000)', '2.5')
    """
    if element.is_complex() or not element.isnan():
        return str(element.item())
    bits = element.view(_BITS[element.itemsize]).item() % 2 ** (8 * element.itemsize)
    return f"nan (0x{bits:0{2 * element.itemsize}x})"


def different_bits(actual: Tensor, expected: Tensor) -> Tensor:
    """Which elements of two tensors of one shape and dtype differ in their bits, as a bool tensor of this shape."""
    bits = _BITS[actual.itemsize]
    pair = (x.resolve_conj().contiguous().view(-1).view(bits) for x in (actual, expected.to(actual.device)))
    different = next(pair) != next(pair)
    # a complex128 is two words
    return different.view(*actual.shape, 2).any(-1) if actual.itemsize == 16 else different.view(actual.shape)


def assert_close(actual: Tensor, expected: Tensor, roundings: int = 1) -> None:
    """Fail unless two float tensors of one dtype agree within `roundings * TOLERANCES`; NaN agrees with NaN.

    Example:
        >>> assert_close(torch.tensor([1.0]), torch.tensor([1.000001]))
    """
    tolerance = TOLERANCES[expected.dtype]
    torch.testing.assert_close(
        actual.cpu(),
        expected.cpu(),
        rtol=roundings * tolerance["rtol"],
        atol=roundings * tolerance["atol"],
        equal_nan=True,
        check_stride=False,
    )


def assert_matches_reference(actual: Tensor, x: Tensor, *shift: Any) -> None:
    """Fail unless `actual` is the shift of `x`, to the bit.

    Args:
        actual: what an implementation returned, on any device.
        x: its input, `[N*T, ...]`.
        shift: `num_segments, n_first, n_second, reverse=False, channel_dim=1`.

    Example:
        >>> x = torch.randn(4, 8)
        >>> assert_matches_reference(torch.ops.tsm_triton.temporal_shift(x, 2, 1, 1, False, 1), x, 2, 1, 1)
    """
    assert_same_bits(actual.cpu(), reference.temporal_shift(x.cpu(), *shift))
