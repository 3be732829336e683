"""Modules that stand in two models, leave one and come back, or are copied inside of a context."""

import copy
import io
from collections.abc import Callable

import pytest
import timm
import torch
from networks import T, visible
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tsm_triton import ShiftSite, is_patched, packed_clips, patch, set_num_segments, shift_disabled, unpatch


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return visible(timm.create_model("test_resnet", num_classes=5))


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return torch.randn(2 * T, 3, 32, 32)


def patched(plain: nn.Module, num_segments: int = T) -> nn.Module:
    return patch(copy.deepcopy(plain), num_segments, verify=False)


@torch.no_grad()
def are_equal(
    model: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor], frames: Tensor
) -> bool:
    return torch.allclose(model(frames), expected(frames), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ["layer1", "layer1.0"])
def test_a_model_that_lost_some_shifts_with_another_is_no_half_shifted_one(part, plain, frames):
    one, other = patched(plain), patched(plain)
    parent, _, name = part.rpartition(".")
    setattr(other.get_submodule(parent), name, one.get_submodule(part))
    assert are_equal(one, other, frames)
    unpatch(other)
    assert are_equal(other, plain, frames)
    with pytest.raises(RuntimeError, match="expected ResNet to hold its 4 shifts"):
        one(frames)
    with pytest.raises(RuntimeError, match="to hold its 4 shifts"):
        torch.compile(one, backend="eager")(frames)
    unpatch(one)
    assert are_equal(one, plain, frames)
    assert are_equal(patch(one, T), patched(plain), frames)


def test_a_part_that_is_unpatched_on_purpose_is_not_missed(plain, frames):
    whole = patched(plain)
    unpatch(whole.layer2)
    expected = patch(copy.deepcopy(plain), T, filter_fn=lambda _, name: not name.startswith("layer2"))
    assert are_equal(whole, expected, frames)
    assert are_equal(copy.deepcopy(whole), expected, frames)


def test_a_model_whose_clip_lengths_another_changed_is_named(plain, frames):
    one, other = patched(plain), patched(plain)
    other.layer1[0] = one.layer1[0]
    with pytest.warns(
        UserWarning, match="got a ResNet, whose clips are now of 2, 4 frames: call set_num_segments"
    ):
        set_num_segments(other, 2)
    assert are_equal(other, patched(plain, 2), frames)
    with pytest.warns(UserWarning, match="whose clips are now of 2, 4 frames"):
        set_num_segments(one, T)
    assert are_equal(one, patched(plain), frames)
    set_num_segments(other, T)
    assert are_equal(one, other, frames)


def test_a_module_that_was_in_a_model_for_a_while_takes_no_shift_along(plain, frames):
    model, other = patched(plain), copy.deepcopy(plain)
    old = model.layer1[0]
    model.layer1[0] = other.layer1[0]
    model.layer1[0] = old
    assert not is_patched(other)
    assert are_equal(other, plain, frames)
    patch(other, 2)
    assert are_equal(model, patched(plain), frames)
    unpatch(other)
    assert are_equal(model, patched(plain), frames)
    # by way of what has no place for the shift
    model.layer1[0] = nn.Sequential(nn.Conv2d(32, 32, 1))
    left, model.layer1[0] = model.layer1[0], old
    other.layer1.append(left)
    other(frames)
    unpatch(patch(other, T, verify=False))
    assert are_equal(model, patched(plain), frames)


def test_what_took_a_shared_place_hands_the_shift_on(plain, frames):
    one, other = patched(plain), patched(plain)
    other.layer1 = one.layer1
    other.layer1 = copy.deepcopy(plain.layer1)
    assert are_equal(other, patched(plain), frames)
    assert are_equal(one, patched(plain), frames)


def test_a_module_that_stands_in_two_places_keeps_the_shift_in_the_other(frames):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.Conv2d(3, 8, 1)

        def forward(self, x):
            return self.first(x) + self.second(x)

    model = Twice()
    site = ShiftSite("first", model.first, 3, 1)
    patch(model, T, shift_div=3, sites=[site], verify=False)
    expected = copy.deepcopy(model)
    model.first = copy.deepcopy(model.first)
    assert are_equal(model, expected, frames)


def test_a_part_may_be_told_another_length(plain, frames):
    model = patched(plain)
    set_num_segments(model.layer2, 2)
    model(frames)
    set_num_segments(model, T)
    assert are_equal(model, patched(plain), frames)


@pytest.mark.parametrize("part", ["layer1.0.conv1", "layer2"])
@pytest.mark.parametrize("deleted", [False, True])
def test_what_is_put_back_after_unpatch_shifts_no_more(part, deleted, plain, frames):
    model = patched(plain)
    parent, _, name = part.rpartition(".")
    old = model.get_submodule(part)
    setattr(model.get_submodule(parent), name, copy.deepcopy(plain.get_submodule(part)))
    unpatch(model)
    if deleted:
        delattr(model.get_submodule(parent), name)
    setattr(model.get_submodule(parent), name, old)
    assert not is_patched(model)
    assert are_equal(model, plain, frames)
    assert are_equal(patch(model, T), patched(plain), frames)
    assert "4/8" not in repr(unpatch(model))


@pytest.mark.parametrize("slot", ["attribute", "sequential"])
def test_a_holder_hands_no_shift_from_one_model_to_another(slot, plain, frames):
    model, other = patched(plain), copy.deepcopy(plain)
    if slot == "attribute":
        holder = nn.Module()
        holder.stage = model.layer1
        holder.stage = other.layer1
    else:
        stages = nn.Sequential(model.layer1, model.layer2)
        stages[0] = other.layer1
    assert not is_patched(other)
    assert are_equal(other, plain, frames)
    assert are_equal(model, patched(plain), frames)


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded, ModelEmaV3])
def test_a_copy_that_is_made_while_the_shift_is_off_has_its_own_on(copied, plain, frames):
    model = patched(plain)
    with shift_disabled(model):
        twin = copied(model)
        assert are_equal(model, plain, frames)
        assert are_equal(twin, patched(plain), frames)
    assert are_equal(twin, patched(plain), frames)


def with_a_copied_stage(model: nn.Module) -> None:
    model.layer1 = copy.deepcopy(model.layer1)


def with_a_folded_norm(model: nn.Module) -> None:
    block = model.layer1[0]
    block.conv1 = fuse_conv_bn_eval(block.conv1, block.bn1)
    block.bn1 = nn.Sequential(getattr(block.bn1, "act", nn.Identity()))


@pytest.mark.parametrize("change", [with_a_copied_stage, with_a_folded_norm])
def test_what_takes_a_place_inside_of_a_context_is_in_it_and_leaves_it(change, plain, frames):
    model = patched(plain)
    with shift_disabled(model):
        change(model)
        assert are_equal(model, plain, frames)
        with shift_disabled(model):
            change(model) if change is with_a_copied_stage else None
        assert are_equal(model, plain, frames)
    assert are_equal(model, patched(plain), frames)
    with shift_disabled(model):
        old, model.layer1[0] = model.layer1[0], nn.Identity()
        model.layer1[0] = old
        with shift_disabled(model):
            model.layer1[0] = copy.deepcopy(old)
            model.layer1[0] = old
    assert are_equal(model, patched(plain), frames)
    with packed_clips(model, [2] * T):
        with_a_copied_stage(model)
        assert are_equal(model, patched(plain, 2), frames)
    assert are_equal(model, patched(plain), frames)
