"""Graphs of torch.fx made of a patched model: the shift is in them once, and goes on following the hooks."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import timm
import torch
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import tsm_triton
from tsm_triton.checkpoints.patches import patch_of
from tsm_triton.patching.frame_counter import FrameCounter
from tsm_triton.patching.hooks import shift_hooks

from .networks import visible

NETWORKS = {
    "resnet18": ("flatten", 64),
    "mobilenet_v2": ("flatten", 64),
    "mobilenet_v3_small": ("flatten", 64),
    "efficientnet_b0": ("flatten", 64),
    "regnet_y_400mf": ("flatten", 64),
    "shufflenet_v2_x0_5": ("mean", 64),
    "convnext_tiny": ("avgpool", 64),
}


def check(model, traced, x):
    """Equal at one T and, once either is told, at another; off with the shift off; as many shifts as sites."""
    assert len(shift_hooks(traced)) == len({id(h) for h in shift_hooks(traced)}) == len(shift_hooks(model))
    with torch.no_grad():
        for teller, length in ((model, 4), (model, 2), (traced, 8)):
            tsm_triton.set_num_segments(teller, length)
            torch.testing.assert_close(traced(x), model(x))
        with tsm_triton.shift_disabled(model):
            plain = model(x)
            torch.testing.assert_close(traced(x), plain)
        assert not torch.allclose(traced(x), plain)


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvisions_models_are_traced_with_their_shift(name):
    model = visible(getattr(torchvision.models, name)(num_classes=4))
    tsm_triton.patch(model, 4)
    x = torch.randn(8, 3, 64, 64)
    check(model, torch.fx.symbolic_trace(model), x)
    last = get_graph_node_names(model)[1][-1]
    extractor = create_feature_extractor(model, {last: "out"})
    with torch.no_grad():
        torch.testing.assert_close(extractor(x)["out"], model(x))


def _pickled(traced):
    return pickle.loads(pickle.dumps(traced))


COPIES = {
    "copied": copy.deepcopy,
    "pickled": _pickled,
    "copied after a pickle": lambda traced: copy.deepcopy(_pickled(traced)),
    "traced twice, copied": lambda traced: copy.deepcopy(torch.fx.symbolic_trace(traced)),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize(
    ("name", "place"), [("resnet18", "block"), ("mobilenet_v2", "block"), ("convnext_tiny", "blockres")]
)
def test_a_graphs_copy_has_hooks_of_its_own(name, place, way):
    model = visible(getattr(torchvision.models, name)(num_classes=4))
    tsm_triton.patch(model, 4, place=place)
    traced = torch.fx.symbolic_trace(model)
    copied = COPIES[way](traced)
    assert len(shift_hooks(copied)) == len(shift_hooks(model))
    assert not {id(hook) for hook in shift_hooks(copied)} & {id(hook) for hook in shift_hooks(traced)}
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        tsm_triton.set_num_segments(traced, 2)
        assert not torch.allclose(traced(x), expected)
        torch.testing.assert_close(copied(x), expected)
        with tsm_triton.shift_disabled(model):
            plain = model(x)
            torch.testing.assert_close(copied(x), expected)
        tsm_triton.unpatch(copied)
        torch.testing.assert_close(copied(x), plain)
        assert not tsm_triton.is_patched(copied)
        assert not torch.allclose(traced(x), plain)


TRACED_THROUGH = {
    "resnet18": "block",  # every site
    "shufflenet_v2_x0_5": "block",  # all sites but one
    "convnext_tiny": "blockres",
    "mobilenet_v2": "blockres",  # none
}


@pytest.mark.parametrize("disabled", [False, True])
@pytest.mark.parametrize("one", ["graph", "model"])
@pytest.mark.parametrize("name", TRACED_THROUGH)
def test_what_patches_or_unpatches_a_model_does_so_to_its_graph(name, one, disabled):
    model = visible(getattr(torchvision.models, name)(num_classes=4))
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        plain = model(x)
        tsm_triton.patch(model, 4, place=TRACED_THROUGH[name])
        shifted, words = model(x), repr(model)
        traced = torch.fx.symbolic_trace(model)
        torch.testing.assert_close(traced(x), shifted)
        with tsm_triton.shift_disabled(model) if disabled else nullcontext():
            tsm_triton.unpatch({"graph": traced, "model": model}[one])
        for each in (model, traced):
            torch.testing.assert_close(each(x), plain)
            assert not tsm_triton.is_patched(each)
        assert "shift=" not in repr(model)
        tsm_triton.patch(model, 4, place=TRACED_THROUGH[name])
        assert repr(model) == words
        for each in (model, traced, torch.fx.symbolic_trace(model)):
            torch.testing.assert_close(each(x), shifted)
            assert len(shift_hooks(each)) == len(shift_hooks(model))


def test_a_graph_of_a_block_that_was_replaced_is_not_shifted_by_half():
    model = visible(torchvision.models.resnet18(num_classes=4))
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        plain, block = model(x), copy.deepcopy(model.layer1[0])
        shifted = tsm_triton.patch(model, 4, place="block")(x)
        traced = torch.fx.symbolic_trace(model)
        model.layer1[0] = block
        torch.testing.assert_close(model(x), shifted)
        torch.testing.assert_close(traced(x), shifted)
        tsm_triton.unpatch(model)
        torch.testing.assert_close(model(x), plain)
        torch.testing.assert_close(traced(x), plain)


def test_a_compiled_graph_follows_its_shift():
    model = visible(torchvision.models.ShuffleNetV2([1, 2, 1], [8, 16, 32, 64, 64], num_classes=4))
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        plain = model(x)
        shifted = tsm_triton.patch(model, 4, place="block")(x)
        traced = torch.fx.symbolic_trace(model)
        compiled = torch.compile(traced, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), shifted)
        for length in (2, 8):
            tsm_triton.set_num_segments(model, length)
            torch.testing.assert_close(compiled(x), model(x))
        with tsm_triton.shift_disabled(traced):
            torch.testing.assert_close(compiled(x), plain)
        tsm_triton.unpatch(model)
        torch.testing.assert_close(compiled(x), plain)
        tsm_triton.patch(model, 4, place="block")
        torch.testing.assert_close(compiled(x), shifted)


@pytest.mark.parametrize("name", TRACED_THROUGH)
def test_a_stream_of_a_graph_is_the_models(name):
    model = visible(getattr(torchvision.models, name)(num_classes=4))
    tsm_triton.patch(model, 4, place=TRACED_THROUGH[name], direction="causal")
    streams = [tsm_triton.Streaming(each) for each in (model, torch.fx.symbolic_trace(model))]
    assert streams[0].step.names == streams[1].step.names
    for _ in range(3):
        x = torch.randn(4, 3, 64, 64)
        expected, actual = (stream(x) for stream in streams)
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", TRACED_THROUGH)
def test_a_checkpoint_of_a_graph_has_every_shift(name, tmp_path):
    model = visible(getattr(torchvision.models, name)(num_classes=4))
    other = copy.deepcopy(model)
    tsm_triton.patch(model, 4, place=TRACED_THROUGH[name])
    traced = torch.fx.symbolic_trace(model)
    assert patch_of(traced) == patch_of(model)
    tsm_triton.save_checkpoint(traced, tmp_path / "a.pt")
    with pytest.raises(RuntimeError, match="to be patched as the weights"):
        tsm_triton.load_checkpoint(other, tmp_path / "a.pt")
    tsm_triton.load_checkpoint(tsm_triton.patch(other, 4, place=TRACED_THROUGH[name]), tmp_path / "a.pt")
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x))


def test_what_cannot_hold_a_traced_shift_says_so():
    model = tsm_triton.patch(torchvision.models.resnet18().eval(), 4, place="block")
    with pytest.raises(RuntimeError, match="expected a torch.fx.Tracer"):
        model.layer1[0](torch.fx.Proxy(torch.fx.Graph().placeholder("x")))
    with pytest.raises(AttributeError, match="expected a model that TorchScript can hold"):
        torch.jit.script(torch.fx.symbolic_trace(model))


def test_a_graph_whose_frames_another_counts_is_not_saved_for_the_model():
    traced = torch.fx.symbolic_trace(tsm_triton.patch(torchvision.models.resnet18().eval(), 4, place="block"))
    shift_hooks(traced)[0].counter = FrameCounter()
    with pytest.raises(ValueError, match="rows are windows. Pass the model itself"):
        patch_of(traced)


@pytest.mark.parametrize("name", ["regnety_002", "rexnet_100", "ghostnet_050", "test_vit"])
def test_timms_extractor_takes_the_shift_along(name):
    from timm.models._features_fx import create_feature_extractor as extract
    from timm.models._features_fx import get_graph_node_names

    model = visible(timm.create_model(name, num_classes=4))
    tsm_triton.patch(model, 4)
    x = (
        torch.randn(8, 3, *model.pretrained_cfg["input_size"][1:])
        if "vit" in name
        else torch.randn(8, 3, 64, 64)
    )
    last = get_graph_node_names(model)[1][-1]
    extractor = extract(model, {last: "out"})
    assert len(shift_hooks(extractor)) == len(shift_hooks(model))
    with torch.no_grad():
        torch.testing.assert_close(extractor(x)["out"], model(x))
