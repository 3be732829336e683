"""Per-frame feature maps of patched and fused backbones."""

import pytest
import timm
import torch
import torchvision
from networks import T, visible

import tsm_triton
from tsm_triton import fuse, patch
from tsm_triton.video.features import VideoFeatures


def test_maps_may_come_as_a_dict():
    maps = []
    for options in ({}, {"feature_cls": "dict"}):
        torch.manual_seed(0)
        backbone = visible(
            timm.create_model("test_resnet", features_only=True, out_indices=(1, 3), **options)
        )
        features = VideoFeatures(patch(backbone, T))
        maps.append(features(torch.ones(1, T, 3, 32, 32)))
    assert [tuple(one.shape[:2]) for one in maps[1]] == [(1, T)] * 2
    torch.testing.assert_close(maps[1], maps[0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: VideoFeatures("resnet18"), TypeError, "model must be a torch.nn.Module, got str"),
        (lambda: VideoFeatures(torch.nn.Identity(), 0), ValueError, "num_segments must be at least 1, got 0"),
        (
            lambda: VideoFeatures(torch.nn.Identity())(None),
            TypeError,
            "video must be a torch.Tensor, got None",
        ),
        (
            lambda: VideoFeatures(torch.nn.Identity())(torch.empty(1, 0, 3, 8, 8)),
            ValueError,
            r"at least one frame and view, got \(1, 0, 3, 8, 8\)",
        ),
    ],
)
def test_what_it_cannot_take_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_fused_backbone_refuses_clips_of_another_length():
    backbone = patch(timm.create_model("test_resnet", features_only=True).eval(), T)
    features = VideoFeatures(fuse(backbone, example_input=torch.empty(T, 3, 32, 32)), 2 * T)
    with pytest.raises(ValueError, match=f"expected clips of {T} frames, .* got {2 * T}"):
        features(torch.randn(1, 2 * T, 3, 32, 32))
    assert features(torch.randn(2, T, 3, 32, 32))[0].shape[:2] == (2, T)


def test_a_classifier_is_told_how_to_become_a_backbone():
    with pytest.raises(
        ValueError, match="got ResNet, a classifier of timm's. Create it with .*features_only=True"
    ):
        VideoFeatures(timm.create_model("resnet18"))
    features = VideoFeatures(torchvision.models.resnet18())
    with pytest.raises(TypeError, match="got Tensor from ResNet. .*create_feature_extractor"):
        features(torch.randn(1, 8, 3, 64, 64))


def test_a_detectors_backbone_gives_its_maps():
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None
    )
    patch(model, 4)
    maps = VideoFeatures(model.backbone.body, num_segments=4)(torch.randn(1, 4, 3, 64, 64))
    assert [tuple(one.shape[:2]) for one in maps] == [(1, 4)] * len(maps)


@pytest.mark.parametrize("streams", [1, T, 2 * T])
def test_clips_of_maps_are_not_streamed(streams):
    backbone = patch(
        timm.create_model("resnet18", features_only=True, out_indices=(1, 4)).eval(), T, direction="causal"
    )
    frames = torch.randn(streams, 3, 32, 32)
    with pytest.raises(ValueError, match=r"T = num_segments|VideoFeatures' \.model"):
        tsm_triton.Streaming(VideoFeatures(backbone, T))(frames)
    assert [len(x) for x in tsm_triton.Streaming(backbone)(frames)] == [streams, streams]
