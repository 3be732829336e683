"""What `print` says of a patched model, and that it leaves no trace."""

import copy
import pickle

import pytest
import torch
from networks import Block, T
from torch import nn

from tsm_triton import patch, set_num_segments, shift_disabled, unpatch

SHIFT = "shift=bidirectional, num_segments={}, shift_div=8"


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(3, 16, 3), Block(1)).eval()


def test_a_patched_model_prints_its_shift_as_it_is_now(model):
    before = repr(model)
    patch(model, T)
    assert repr(model).count("shift=") == 1
    assert SHIFT.format(T) in repr(model[1].first)
    assert SHIFT.format(5) in repr(set_num_segments(model, 5))
    with shift_disabled(model):
        assert f"{SHIFT.format(5)}, off" in repr(model)
    assert repr(unpatch(model)) == before


def test_unpatch_leaves_nothing_of_it(model):
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    patch(model, T)
    assert list(model.state_dict()) == keys
    assert type(model[1].first) is nn.Conv2d
    unpatch(model)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_prints_its_own_shift(model, copied):
    twin = copied(patch(model, T))
    set_num_segments(twin, 7)
    assert SHIFT.format(7) in repr(twin)
    assert SHIFT.format(T) in repr(model)
    x = torch.randn(7, 3, 8, 8)
    assert torch.equal(twin(x), set_num_segments(model, 7)(x))
    assert "shift=" not in repr(unpatch(twin))


def test_a_module_that_describes_itself_is_left_to_it(model):
    model[1].first.extra_repr = str
    assert "shift=" not in repr(patch(model, T))
    assert unpatch(model)[1].first.extra_repr is str
