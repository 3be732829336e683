"""Per-frame feature maps of patched and fused backbones."""

import pytest
import timm
import torch
from networks import T, visible

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


def test_a_fused_backbone_refuses_clips_of_another_length():
    backbone = patch(timm.create_model("test_resnet", features_only=True).eval(), T)
    features = VideoFeatures(fuse(backbone, example_input=torch.empty(T, 3, 32, 32)), 2 * T)
    with pytest.raises(ValueError, match=f"expected clips of {T} frames, .* got {2 * T}"):
        features(torch.randn(1, 2 * T, 3, 32, 32))
    assert features(torch.randn(2, T, 3, 32, 32))[0].shape[:2] == (2, T)
