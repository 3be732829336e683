"""What the tests of this package are made of, for users who test the ops, or a backend of their own.

    from hypothesis import given
    from tsm_triton.testing import properties, shift_cases

    @given(case=shift_cases())
    def test_my_shift_matches_the_reference(case):
        properties.matches_reference(my_shift, case)

`tsm-triton verify` runs all of it on the machine at hand.
"""

from . import fused, properties
from .cases import DTYPES, LAYOUTS, ShiftCase, laid_out, moved_to, ragged_cases, shift_cases
from .comparison import TOLERANCES, assert_close, assert_matches_reference, assert_same_bits
from .memory import guarded_memory

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "TOLERANCES",
    "ShiftCase",
    "assert_close",
    "assert_matches_reference",
    "assert_same_bits",
    "fused",
    "guarded_memory",
    "laid_out",
    "moved_to",
    "properties",
    "ragged_cases",
    "shift_cases",
]
