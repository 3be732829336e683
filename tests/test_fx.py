"""Graphs of torch.fx made of a patched model: the shift is in them once, and goes on following the hooks."""

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
