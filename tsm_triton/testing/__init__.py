"""What the tests of this package are made of, for users who test the ops, or a backend of their own.

    from tsm_triton.testing import check_shift

    def test_my_shift():
        check_shift(my_shift)  # every property and gradient; or one of `properties` with `shift_cases`

`tsm-triton verify` runs all of it on the machine at hand.
"""

from . import fused, properties
from .cases import DTYPES, LAYOUTS, OTHER_RANKS, ShiftCase, laid_out, moved_to, ragged_cases, shift_cases
from .checking import check_shift
from .comparison import TOLERANCES, assert_close, assert_matches_reference, assert_same_bits
from .memory import guarded_memory

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "OTHER_RANKS",
    "TOLERANCES",
    "ShiftCase",
    "assert_close",
    "assert_matches_reference",
    "assert_same_bits",
    "check_shift",
    "fused",
    "guarded_memory",
    "laid_out",
    "moved_to",
    "properties",
    "ragged_cases",
    "shift_cases",
]
