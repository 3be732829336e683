"""The shift as a layer."""

import copy
import pickle

import pytest
import torch

from tsm_triton import temporal_shift
from tsm_triton.modules import TemporalShift
from tsm_triton.testing import assert_same_bits


@pytest.mark.parametrize(
    "options",
    [{}, dict(shift_div=4, direction="causal"), dict(channel_dim=-1)],
    ids=["plain", "causal", "last"],
)
def test_the_layer_is_the_function_and_survives_copies(options):
    layer = TemporalShift(4, **options)
    x = torch.randn(8, 16, 5, 8)
    for copied in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same_bits(copied(x), temporal_shift(x, 4, **options))
    assert not layer.state_dict()


def test_bad_settings_are_refused_when_it_is_built():
    with pytest.raises(ValueError, match="direction must be one of 'bidirectional', 'causal', got 'left'"):
        TemporalShift(4, direction="left")
