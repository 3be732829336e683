"""What a benchmark asks before it measures: a call that is wrong gets no time."""

from torch import Tensor


def require_close(what: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise unless every value is within `tolerance` of the largest expected one; NaN is not."""
    got, expected = got.float(), expected.float()
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    if not error <= tolerance:
        raise RuntimeError(f"{what} is off by {error:.1e} of the largest value: no time is reported")
