"""A test that cannot fail is a defect: what verify is for, shown on broken kernels."""

import pytest

from .mutations import MUTATIONS, found


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_verify_finds_it(mutation):
    assert found(mutation)
