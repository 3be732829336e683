"""Graphs of torch.fx made of a patched model: the shift is in them once, and goes on following the hooks."""

import copy
import pickle

import pytest
import timm
import torch
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import tsm_triton
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


@pytest.mark.parametrize("one", ["graph", "model"])
@pytest.mark.parametrize("place", ["block", "blockres"])
def test_what_unpatches_a_graph_or_its_model_unpatches_both(place, one):
    model = visible(torchvision.models.convnext_tiny(num_classes=4))
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        plain = model(x)
        tsm_triton.patch(model, 4, place=place)
        expected = model(x)
        for _ in range(2):
            traced = torch.fx.symbolic_trace(model)
            torch.testing.assert_close(traced(x), expected)
            tsm_triton.unpatch({"graph": traced, "model": model}[one])
            torch.testing.assert_close(traced(x), plain)
            torch.testing.assert_close(model(x), plain)
            assert not tsm_triton.is_patched(traced)
            if tsm_triton.is_patched(model):
                tsm_triton.unpatch(model)
            tsm_triton.patch(model, 4, place=place)
            torch.testing.assert_close(model(x), expected)


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
