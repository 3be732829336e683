"""Sites that are given: what the check of a patch sees, what is refused, and that nothing stays half done."""

import copy
import json
from dataclasses import replace

import pytest
import timm
from networks import Block, T, on_meta
from torch import nn

from tsm_triton import ShiftSite, find_sites, is_patched, patch, unpatch
from tsm_triton.patching.frame_counter import FrameCounter
from tsm_triton.patching.hooks import shift_hooks
from tsm_triton.patching.shift_hook import ShiftHook


def test_a_shift_on_the_shortcut_is_taken_back():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Block(1))
    wrong = ShiftSite("1.down", model.get_submodule("1.down"), channels=16)
    with pytest.raises(RuntimeError, match=r"the shift at '1\.down' also reaches the shortcut of '1'"):
        patch(model, T, sites=[wrong])
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert is_patched(patch(model, T, sites=[wrong], verify=False))


def test_a_shift_that_never_runs_is_taken_back():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Block(1))
    model[1].unused = nn.Conv2d(16, 16, 1)
    site = ShiftSite("1.unused", model.get_submodule("1.unused"), channels=16)
    with pytest.raises(RuntimeError, match=r"expected a shift at each call of \['1\.unused'\]"):
        patch(model, T, sites=[site])
    assert not is_patched(model)


def test_a_shift_that_in_place_ops_undo_is_taken_back():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.conv = nn.ReLU(inplace=True), nn.Conv2d(16, 16, 1)

        def forward(self, x):
            return x + self.conv(self.act(x)).relu()

    model = nn.Sequential(nn.Conv2d(3, 16, 1), InPlace())
    assert [site.name for site in find_sites(model)] == ["1.conv"]  # the shortcut sees what `act` wrote
    with pytest.raises(RuntimeError, match="expected add in 1, got add in 1"):
        patch(model, T, sites=[ShiftSite("1.act", model.get_submodule("1.act"), channels=16)])


def test_sites_go_to_json_and_back():
    model = on_meta("swinv2_tiny_window8_256")
    sites = find_sites(model)
    text = json.dumps([site.to_dict() for site in sites])
    again = [ShiftSite.from_dict(values, model) for values in json.loads(text)]
    assert again == sites
    assert len(shift_hooks(patch(model, T, sites=again))) == len(sites)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (lambda model: [], "at least one site, got none"),
        (
            lambda model: find_sites(timm.create_model("resnet18")),
            "expected sites of this very model, got ShiftSite",
        ),
    ],
)
def test_foreign_sites_are_refused(sites, message):
    model = timm.create_model("resnet18")
    with pytest.raises(ValueError, match=message):
        patch(model, sites=sites(model))
    with pytest.raises(ValueError, match="either sites, or stages and filter_fn"):
        patch(model, sites=find_sites(model), stages=[0])
    with pytest.raises(ValueError, match="a site as to_dict gives it, got one without channel_dim, channels"):
        ShiftSite.from_dict({"name": "conv1"}, model)
    with pytest.raises(ValueError, match="got 'conv9', which it does not have"):
        ShiftSite.from_dict({"name": "conv9", "channels": 8, "channel_dim": 1}, model)


def test_unpatch_takes_the_frame_counters_off_too():
    model = patch(on_meta("swinv2_tiny_window8_256"), T)
    counters = [
        h for m in model.modules() for h in m._forward_pre_hooks.values() if isinstance(h, FrameCounter)
    ]
    assert len(counters) == 10
    unpatch(model)
    assert not any(m._forward_pre_hooks or m._forward_pre_hooks_with_kwargs for m in model.modules())


def test_hooks_with_windows_pickle_with_their_counter():
    model = patch(on_meta("swinv2_tiny_window8_256"), T)
    twin = copy.deepcopy(model)
    block, attention = twin.layers[0].blocks[0], twin.layers[0].blocks[0].attn
    (counter,) = (h for h in block._forward_pre_hooks.values() if isinstance(h, FrameCounter))
    (hook,) = (h for h in attention._forward_pre_hooks.values() if isinstance(h, ShiftHook))
    assert hook.counter is counter
    assert counter not in [h for m in model.modules() for h in m._forward_pre_hooks.values()]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(channels=8), RuntimeError, r"expected 8 channels at '1\.first', got 16"),
        (dict(channel_dim=2), ValueError, r"channel_dim must be 1 or -1, got 2 at '1\.first'"),
        (
            dict(frames_from="0.none"),
            ValueError,
            r"frames_from to name a module .* got '0\.none' at '1\.first'",
        ),
        (dict(frames_from="1.second"), ValueError, "runs on a meta tensor"),
    ],
)
def test_wrong_sites_leave_nothing_behind(change, error, message):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Block(1))
    (site,) = find_sites(model)
    with pytest.raises(error, match=message):
        patch(model, T, sites=[replace(site, **change)])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_each_site_is_given_once():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Block(1))
    with pytest.raises(ValueError, match=r"expected each site once, got '1\.first' more than once"):
        patch(model, T, sites=find_sites(model) * 2)


def test_a_shift_across_the_windows_of_one_frame_is_taken_back():
    model = on_meta("mobilevit_xxs")
    window = next(site for site in find_sites(model) if site.frames_from is not None)
    with pytest.raises(RuntimeError, match=r"holds 44 rows for 11 frames: give frames_from"):
        patch(model, T, sites=[replace(window, frames_from=None)])
    assert not is_patched(model)
    assert is_patched(patch(model, T, sites=[window]))


def test_sites_may_come_from_a_generator():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Block(1))
    found = find_sites(model)
    assert len(shift_hooks(patch(model, T, sites=(site for site in found)))) == len(found)
    with pytest.raises(ValueError, match="at least one site, got none"):
        patch(unpatch(model), T, sites=iter(()))
    assert not is_patched(model)


def test_given_sites_need_no_trace_without_the_check():
    class Untraceable(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum().item() else x

    model = Untraceable(nn.Conv2d(3, 16, 3), Block(1))
    site = ShiftSite("1.first", model.get_submodule("1.first"), channels=16)
    with pytest.raises(ValueError, match="runs on a meta tensor"):
        patch(model, T, sites=[site])
    assert is_patched(patch(model, T, sites=[site], verify=False))


def test_sites_outside_a_librarys_model_are_checked_too():
    backbone = on_meta("test_resnet", num_classes=0, global_pool="")
    model = nn.Sequential(backbone, nn.Conv2d(backbone.num_features, 8, 1, device="meta"))
    site = ShiftSite("1", model.get_submodule("1"), channels=backbone.num_features)
    assert is_patched(patch(model, T, sites=[site]))
    with pytest.raises(RuntimeError, match="expected 64 channels at '1', got"):
        patch(unpatch(model), T, sites=[replace(site, channels=64)])
