"""Crops against the authors' release, written out in plain Python; and what each model wants of its frames."""

import copy
import pickle
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from timm.utils import ModelEmaV3  # pyright: ignore[reportPrivateImportUsage]
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms.v2 import functional as F

import tsm_triton
from tsm_triton import VideoClassifier
from tsm_triton.preparation import Preparation, frame_shape, preparation_of, sampling_of, set_preparation
from tsm_triton.video.features import VideoFeatures
from tsm_triton.video.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MultiScaleCrop,
    ViewCrops,
    eval_transform,
    train_transform,
    transform_for,
)


class Model(nn.Module):
    """All that a transform asks of a timm model."""

    def __init__(self, **pretrained_cfg):
        super().__init__()
        self.pretrained_cfg = pretrained_cfg


def clip(frames=4, height=120, width=160):
    """Noise, the same in every frame, so that frames stay equal exactly if they are treated alike."""
    picture = torch.randint(256, (3, height, width), dtype=torch.uint8)
    return picture.expand(frames, 3, height, width).contiguous()


def release_crops(width, height, size, scales=(1, 0.875, 0.75, 0.66), max_distort=1):
    """Every (top, left, height, width) that GroupMultiScaleCrop of the release can draw."""
    base = min(width, height)
    crop_sizes = [int(base * x) for x in scales]
    crop_sizes = [size if abs(x - size) < 3 else x for x in crop_sizes]
    crops = set()
    for i, h in enumerate(crop_sizes):
        for j, w in enumerate(crop_sizes):
            if abs(i - j) <= max_distort:
                w_step, h_step = (width - w) // 4, (height - h) // 4
                offsets = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0)]
                offsets += [(1, 1), (3, 1), (1, 3), (3, 3)]
                crops |= {(y * h_step, x * w_step, h, w) for x, y in offsets}
    return crops


@pytest.mark.parametrize(("height", "width", "size"), [(120, 160, 112), (160, 120, 118), (256, 340, 224)])
def test_multi_scale_crop_draws_exactly_the_crops_of_the_release(height, width, size):
    torch.manual_seed(0)
    crop, inputs = MultiScaleCrop(size), [clip(1, height, width)]
    drawn = {tuple(crop.make_params(inputs).values()) for _ in range(3000)}
    assert drawn == release_crops(width, height, size)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 300))
def test_multi_scale_crop_stays_inside_the_frame(height, width, size):
    crop = MultiScaleCrop(size).make_params([torch.empty(1, 3, height, width, dtype=torch.uint8)])
    assert 0 <= crop["top"] <= crop["top"] + crop["height"] <= height
    assert 0 <= crop["left"] <= crop["left"] + crop["width"] <= width
    assert min(crop["height"], crop["width"]) >= 1


@pytest.mark.parametrize("leading", [(4,), (2, 4)])
def test_training_treats_every_frame_alike_and_calls_differently(leading):
    video = clip(1).expand(*leading, 3, 120, 160)
    drawn = [train_transform(64)(video) for _ in range(8)]
    assert all(x.shape == (*leading, 3, 64, 64) and x.dtype == torch.float32 for x in drawn)
    assert all(torch.equal(x, x[(0,) * len(leading)].expand_as(x)) for x in drawn)
    assert len({x.sum().item() for x in drawn}) > 1


def test_training_mirrors_half_of_the_time_and_never_without_flip():
    # Brightness grows to the right, so a crop tells whether it was mirrored.
    ramp = torch.arange(128, dtype=torch.uint8).expand(2, 3, 128, 128)

    def mirrored(transform):
        return sum(bool(out[0, 0, 0, 0] > out[0, 0, 0, -1]) for out in (transform(ramp) for _ in range(60)))

    torch.manual_seed(0)
    assert 15 < mirrored(train_transform(32)) < 45
    assert mirrored(train_transform(32, flip=False)) == 0


def test_training_is_repeatable_by_seed():
    video, transform = clip(), train_transform(64)
    outs = []
    for _ in range(2):
        torch.manual_seed(7)
        outs.append(transform(video))
    assert torch.equal(*outs)


def test_pixels_are_scaled_by_255_and_normalised():
    video = torch.full((2, 3, 8, 8), 51, dtype=torch.uint8)
    out = eval_transform(8, short_side=8)(video)
    for channel in range(3):
        expected = (51 / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        torch.testing.assert_close(out[:, channel], torch.full((2, 8, 8), expected))


def test_one_view_is_the_centre():
    video = clip(2, 64, 96)
    assert torch.equal(ViewCrops(32, 64)(video), video[..., 16:48, 32:64])


@pytest.mark.parametrize("portrait", [False, True])
def test_three_views_are_left_right_and_centre_of_the_long_side(portrait):
    video = clip(2, 64, 96)
    out = ViewCrops(48, 64, views=3)(video.mT if portrait else video)
    assert out.shape == (3, 2, 3, 64, 64)
    for view, left in zip(out, (0, 32, 16), strict=True):
        assert torch.equal(view.mT if portrait else view, video[..., left : left + 64])


def test_ten_views_are_corners_and_centre_each_with_its_mirror_image():
    video = clip(2, 64, 96)
    out = ViewCrops(32, 64, views=10)(video)
    assert out.shape == (10, 2, 3, 32, 32)
    for i, (top, left) in enumerate([(0, 0), (0, 64), (32, 0), (32, 64), (16, 32)]):
        crop = video[..., top : top + 32, left : left + 32]
        assert torch.equal(out[2 * i], crop)
        assert torch.equal(out[2 * i + 1], crop.flip(-1))


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3, 10]), st.integers(1, 48))
def test_views_of_any_frame_have_their_shape(height, width, views, size):
    out = ViewCrops(size, 48, views)(torch.zeros(1, 3, height, width, dtype=torch.uint8))
    side = 48 if views == 3 else size
    assert out.shape == (*([views] if views > 1 else []), 1, 3, side, side)


@pytest.mark.parametrize("views", [1, 3, 10])
def test_clips_are_transformed_one_by_one(views):
    clips = torch.stack([clip(), clip()])
    transform = eval_transform(32, short_side=64, views=views)
    assert torch.equal(transform(clips), torch.stack([transform(c) for c in clips]))


def test_the_short_side_is_resized_and_the_shape_kept():
    video = clip(1, 100, 150)
    assert torch.equal(ViewCrops(80, 80)(video), F.center_crop(F.resize(video, [80, 120]), [80, 80]))


def test_a_model_names_its_own_preprocessing():
    video = clip()
    model = Model(input_size=(3, 112, 112), mean=(0.5,) * 3, std=(0.25,) * 3)
    expected = eval_transform(112, short_side=128, mean=(0.5,) * 3, std=(0.25,) * 3)(video)
    assert torch.equal(transform_for(model)(video), expected)
    assert transform_for(model, train=True, flip=False)(video).shape == (4, 3, 112, 112)
    assert transform_for(model, views=3)(video).shape == (3, 4, 3, 128, 128)


def test_a_timm_model_is_asked():
    model = timm.create_model("mobilenetv2_100.ra_in1k")
    assert torch.equal(transform_for(model)(video := clip()), eval_transform()(video))
    inception = timm.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert transform_for(inception)(torch.zeros(1, 3, 256, 256, dtype=torch.uint8)).unique().tolist() == [-1]


HOLDERS = {
    "plain": lambda m: m,
    "classifier": VideoClassifier,
    "features": lambda m: VideoFeatures(nn.Sequential(m)),
    "data parallel": nn.DataParallel,
    "compiled": torch.compile,
    "averaged": AveragedModel,
    "ema": ModelEmaV3,
    "sequential": lambda m: nn.Sequential(m, nn.Linear(1000, 2)),
    "inside": lambda m: nn.ModuleDict({"rgb": nn.Sequential(VideoClassifier(m)), "head": nn.Linear(1, 1)}),
    "of all": lambda m: nn.DataParallel(torch.compile(VideoClassifier(nn.DataParallel(m)))),
    "streaming": lambda m: tsm_triton.Streaming(tsm_triton.patch(m.eval(), direction="causal")),
    "fused": lambda m: tsm_triton.fuse(tsm_triton.patch(m.eval(), 2)),
    "fused stream": lambda m: tsm_triton.Streaming(
        tsm_triton.patch(m.eval(), direction="causal"), fused=True
    ),
    "method": lambda m: m.forward,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_model_is_found_in_whatever_holds_it(holder):
    said = Preparation(96, 109, (0.5,) * 3, (0.5,) * 3)
    model = timm.create_model("test_vit", img_size=96)
    if "fused" in holder:  # export of small networks is quicker
        model = timm.create_model("test_resnet")
        said = replace(said, size=160, short_side=182)
    assert preparation_of(HOLDERS[holder](model)) == said


class Net(nn.Module):
    """A network of one's own around a model."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.training = backbone.training

    def forward(self, x):
        return self.backbone(x)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_fused_copy_says_of_its_frames_what_its_model_says(wrapped):
    model = timm.create_model("test_resnet", num_classes=5).eval()
    said = Preparation(64, 64, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    set_preparation(model, said, "dense")
    model.pretrained_cfg["label_names"] = ["of", "another", "head"]
    model = tsm_triton.patch(Net(model) if wrapped else model, 2, direction="causal")
    fused = tsm_triton.fuse(model)
    assert fused.input_size == (3, 64, 64)
    assert ("crop_pct" in fused.pretrained_cfg) == (not wrapped)
    assert "label_names" not in fused.pretrained_cfg
    for one in (model, fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        for holder in (one, VideoClassifier(one)):
            assert (preparation_of(holder), sampling_of(holder)) == (said, "dense")
            assert preparation_of(holder, size=48) == replace(said, size=48, short_side=48)
    stream = tsm_triton.Streaming(model, fused=True)
    assert (preparation_of(stream), sampling_of(stream.model)) == (said, "dense")
    smaller = tsm_triton.fuse(model, example_input=torch.zeros(2, 3, 48, 32))
    assert preparation_of(smaller, size=32) == preparation_of(model, size=32)


def replaced_input(model):
    model.set_input_size(img_size=96)
    return model


@pytest.mark.parametrize(
    ("build", "size", "mean"),
    [
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=384), 384, 0.5),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=448), 448, 0.485),
        (lambda: timm.create_model("test_vit", features_only=True, img_size=96), 96, 0.5),
        (lambda: replaced_input(timm.create_model("test_vit")), 96, 0.5),
        (lambda: timm.create_model("inception_v3", aux_logits=False), 299, 0.5),
        (lambda: timm.create_model("levit_128"), 224, 0.485),
        (lambda: torchvision.models.inception_v3(init_weights=False), 299, 0.485),
        (lambda: torchvision.models.vit_b_32(image_size=384), 384, 0.485),
        (lambda: torchvision.models.resnet18(num_classes=2), 224, 0.485),
    ],
    ids=["vit", "swin", "features", "set", "inception", "levit", "tv inception", "tv vit", "tv resnet"],
)
def test_the_size_is_the_one_a_model_was_made_for(build, size, mean):
    with torch.device("meta"):
        model = build()
    for holder in (model, VideoClassifier(model)):
        said = preparation_of(holder)
        assert (said.size, said.short_side, said.mean[0]) == (size, size * 256 // 224, mean)


def test_torchvisions_weights_say_it_of_the_models_of_their_builder():
    with torch.device("meta"):
        model = torchvision.models.efficientnet_b2()
        model.classifier = nn.Linear(1408, 3)
    assert preparation_of(nn.Sequential(model)).size == 288


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: torchvision.models.efficientnet_b1(), (3, 240, 240)),
        (lambda: Net(torchvision.models.efficientnet_b1()), (3, 240, 240)),
        (lambda: Net(timm.create_model("test_vit", img_size=96)), (3, 96, 96)),
        (lambda: timm.create_model("test_resnet", in_chans=1), (1, 160, 160)),
        (lambda: Model(input_size=(3, 32, 64), mean=(0.5,) * 3), (3, 32, 64)),
        (lambda: nn.Conv2d(3, 4, 1), (3, 224, 224)),
    ],
    ids=["torchvision", "inside", "made for", "grey", "oblong", "silent"],
)
def test_a_model_is_run_on_frames_of_the_size_that_it_says(build, shape):
    with torch.device("meta"):
        model = build()
    assert frame_shape(model) == shape
    assert frame_shape(model, torch.zeros(2, 3, 40, 48)) == (3, 40, 48)


def test_a_model_of_another_size_that_does_not_tell_it_is_refused():
    with torch.device("meta"):
        model = timm.create_model("levit_128", img_size=288)
    with pytest.raises(ValueError, match="got one made for another size, which it does not tell. Pass size"):
        transform_for(VideoClassifier(model))
    assert preparation_of(model, size=288).size == 288


def test_models_inside_that_want_other_frames_are_named():
    with torch.device("meta"):
        two = nn.ModuleDict({"rgb": timm.create_model("test_vit"), "flow": timm.create_model("resnet18")})
    with pytest.raises(
        ValueError, match=r"the same frames, got 'model.rgb' 160 pixels.*'model.flow' 224 pixels"
    ):
        transform_for(VideoClassifier(two))
    given = dict(size=64, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert preparation_of(two, **given) == Preparation(short_side=73, **given)
    del two["flow"]
    two["other"] = two["rgb"]
    assert preparation_of(two).size == 160


def test_models_inside_of_several_sizes_agree_where_the_size_is_given():
    two = nn.ModuleList([Model(input_size=(3, 112, 112)), Model(input_size=(3, 224, 224))])
    with pytest.raises(ValueError, match="the same frames"):
        preparation_of(two)
    assert preparation_of(two, size=96) == Preparation(96, 109)
    two[1].pretrained_cfg["short_side"] = 224
    with pytest.raises(ValueError, match=r"'0' 96 pixels of a short side of 109, .*'1' 96 .* side of 96,"):
        preparation_of(two, size=96)
    assert preparation_of(two, size=96, short_side=100) == Preparation(96, 100)


def test_a_short_side_of_a_models_own_keeps_its_ratio_at_another_size():
    model = Model(input_size=(3, 64, 64), short_side=80)
    assert preparation_of(model, size=64) == preparation_of(model) == Preparation(64, 80)
    assert preparation_of(model, size=32) == Preparation(32, 40)
    given = dict(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert preparation_of(model, **given) == Preparation(short_side=40, **given)
    assert preparation_of(model, size=32, short_side=33) == Preparation(32, 33)
    model.pretrained_cfg["short_side"] = 73  # the usual one, rounded: not 255 of 224
    assert preparation_of(model, size=224) == Preparation()


def test_a_graph_that_lost_what_its_model_said_is_refused():
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(ValueError, match="got Sequential, a graph that has lost it"):
        transform_for(nn.Sequential(graph))
    assert preparation_of(graph, size=32, mean=(0.5,) * 3, std=(0.5,) * 3).size == 32


def test_detectors_that_normalise_themselves_are_refused():
    with torch.device("meta"):
        model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights_backbone=None)
    with pytest.raises(ValueError, match="got SSD, which resizes and normalises them itself"):
        transform_for(model)


def test_what_holds_no_model_is_refused():
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got str"):
        transform_for("resnet18")


def test_a_networks_own_word_is_set_and_given():
    model, video = nn.Sequential(nn.Identity()), clip()
    set_preparation(model, Preparation(32, 40, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    expected = eval_transform(32, short_side=40, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))(video)
    assert torch.equal(transform_for(VideoClassifier(model))(video), expected)
    assert transform_for(model, size=48)(video).shape == (4, 3, 48, 48)
    assert transform_for(nn.Identity(), size=32, short_side=32)(video).shape == (4, 3, 32, 32)


def test_any_other_model_gets_imagenet_defaults():
    video = clip()
    assert torch.equal(transform_for(nn.Identity())(video), eval_transform()(video))


def test_a_model_of_other_pictures_is_refused():
    model = Model(input_size=(1, 64, 96))
    with pytest.raises(ValueError, match=r"square RGB pictures .* got input_size \(1, 64, 96\)"):
        transform_for(model)


@pytest.mark.parametrize("transform", [train_transform(32), eval_transform(32, short_side=32)])
@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(4, 3, 40, 40),
        torch.zeros(3, 40, 40, dtype=torch.uint8),
        torch.zeros(4, 40, 40, 3, dtype=torch.uint8),
    ],
)
def test_only_uint8_clips_are_taken(transform, wrong):
    with pytest.raises(ValueError, match=r"expected a uint8 clip \[..., T, 3, H, W\], got torch"):
        transform(wrong)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: eval_transform(views=5), "views must be 1, 3 or 10, got 5"),
        (lambda: eval_transform(288), "got size=288, short_side=256"),
        (lambda: train_transform(0), "size must be at least 1 pixel, got 0"),
        (lambda: MultiScaleCrop(8, scales=(1.5,)), "scales must be fractions"),
        (lambda: MultiScaleCrop(8, scales=()), "scales must be fractions"),
        (lambda: MultiScaleCrop(8, max_distort=-1), "max_distort must be at least 0, got -1"),
    ],
)
def test_a_wrong_setting_says_what_was_expected(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", ["levit_128s", "efficientformer_l1", "volo_d1_224"])
def test_a_network_of_two_heads_has_the_size_it_was_made_for(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5)
    assert preparation_of(model).size == 224


def test_a_network_of_two_heads_that_was_made_for_another_size_asks_for_it():
    with torch.device("meta"):
        model = timm.create_model("levit_128s", num_classes=5, img_size=192)
    with pytest.raises(ValueError, match="Pass size"):
        preparation_of(model)
    set_preparation(model, preparation_of(model, size=192))
    assert preparation_of(model).size == 192
