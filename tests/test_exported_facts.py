"""What an exported file says and refuses: of models over clips, of layers that pool or mix clips, of dtypes, sizes."""

import onnxruntime
import pytest
import timm
import torch
import torchvision
from torch import nn

import tsm_triton
from tsm_triton import Streaming, VideoClassifier
from tsm_triton.exporting import load_exported
from tsm_triton.exporting.interface import interface_of
from tsm_triton.modules import NonLocal, TemporalPool
from tsm_triton.preparation import Preparation, preparation_of, sampling_of, set_preparation
from tsm_triton.torch_private import aoti_load_package

from .networks import Block, with_statistics
from .streams import causal

T = 4
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes? .* assigned during export"),
    pytest.mark.filterwarnings("ignore:The given buffer is not writable"),  # torch 2.11's load
]


def small(**options) -> nn.Module:
    model = with_statistics(timm.create_model("test_resnet", num_classes=5)).eval().requires_grad_(False)
    return tsm_triton.patch(model, T, **options)


def pooled() -> nn.Module:
    """A pool in front of the shifts, whose clips have half the frames."""
    model = small(stages=("layer3", "layer4"))
    model.layer2 = nn.Sequential(TemporalPool(T), model.layer2)
    return tsm_triton.set_num_segments(model.eval(), T)


def close(found, expected) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("to", ["onnx", "pt2"])
@pytest.mark.parametrize(("consensus", "view_average"), [("identity", "logits"), ("avg", "softmax")])
def test_a_file_averages_as_its_classifier(to, consensus, view_average, tmp_path):
    model = VideoClassifier(small(), T, consensus, view_average=view_average)
    said = tsm_triton.export(model, to, tmp_path / f"model.{to}", torch.zeros(1, T, 3, 32, 32))
    assert (said["consensus"], said["view_average"]) == (consensus, view_average)
    exported = load_exported(tmp_path / f"model.{to}")
    for shape in ((2, T), (1, 3), (2, 3, T)):
        video = torch.randn(*shape, 3, 32, 32)
        close(exported(video), model(video))


@torch.no_grad()
@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_the_frames_of_a_clip_are_counted_in_front_of_a_pool(to, tmp_path):
    model, path, frames = pooled(), tmp_path / f"model.{to}", torch.randn(3 * T, 3, 32, 32)
    said = tsm_triton.export(model, to, path, frames[:T])
    assert (said["inputs"], said["num_segments"]) == ({"frames": [f"{T}*clips", 3, 32, 32]}, T)
    exported, classifier = load_exported(path), VideoClassifier(model, T)
    for clips in (1, 3):
        video = frames[: clips * T].unflatten(0, (clips, T))
        close(exported(video), classifier(video))


@torch.no_grad()
@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_clips_behind_a_pool_have_one_length(to, tmp_path):
    model, path = VideoClassifier(pooled(), T), tmp_path / f"model.{to}"
    said = tsm_triton.export(model, to, path, torch.zeros(1, T, 3, 32, 32))
    assert said["inputs"] == {"video": ["clips", T, 3, 32, 32]}
    exported = load_exported(path)
    for clips in (1, 3):
        video = torch.randn(clips, T, 3, 32, 32)
        close(exported(video), model(video))
    with pytest.raises(ValueError, match="T = 4"):
        exported(torch.zeros(1, 2 * T, 3, 32, 32))
    with pytest.raises(ValueError, match="can halve"):
        tsm_triton.export(model, to, path, torch.zeros(1, 3, 3, 32, 32))


@torch.no_grad()
@pytest.mark.parametrize("mode", ["embedded_gaussian", "gaussian", "dot_product"])
def test_attention_over_clips_goes_to_onnx(mode, tmp_path):
    model, path = small(), tmp_path / "model.onnx"
    block = NonLocal(48, T, mode)
    nn.init.constant_(block.norm.weight, 0.5)
    model.layer2 = nn.Sequential(model.layer2, block).eval()
    tsm_triton.export(model, "onnx", path, torch.zeros(T, 3, 32, 32))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for clips in (1, 3):
        frames = torch.randn(clips * T, 3, 32, 32)
        close(torch.from_numpy(session.run(None, {"frames": frames.numpy()})[0]), model(frames))


def test_an_example_of_other_clips_than_the_models_is_refused(tmp_path):
    model, path = small(), tmp_path / "model.onnx"
    tsm_triton.set_num_segments(model, 6)
    with pytest.raises(
        ValueError, match=r"whole clips of 6 frames.*got 4 rows.*set_num_segments\(model, T\)"
    ):
        tsm_triton.export(model, "onnx", path, torch.zeros(4, 3, 32, 32))
    fused = tsm_triton.fuse(model, example_input=torch.zeros(6, 3, 32, 32))
    with pytest.raises(ValueError, match="whole clips of 6 frames.*fuse it again"):
        tsm_triton.export(fused, "onnx", path, torch.zeros(4, 3, 32, 32))
    with pytest.raises(ValueError, match="clips of 6 frames.*got 4"):
        tsm_triton.export(VideoClassifier(fused, 6), "onnx", path, torch.zeros(1, 4, 3, 32, 32))
    assert not path.exists()
    tsm_triton.set_num_segments(model, 4)
    assert tsm_triton.export(model, "pt2", tmp_path / "m.pt2", torch.zeros(4, 3, 32, 32))["num_segments"] == 4


def test_what_onnxruntime_does_not_run_is_not_written(tmp_path):
    model = small().bfloat16()
    for one in (model, VideoClassifier(model, T)):
        with pytest.raises(ValueError, match=r"got a bfloat16 one.*pass model\.half\(\)"):
            tsm_triton.export(one, "onnx", tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_frames_that_are_not_square_keep_their_mean(tmp_path):
    said = tsm_triton.export(small(), "pt2", tmp_path / "model.pt2", torch.zeros(T, 3, 32, 64))
    assert (said["size"], said["short_side"]) == (None, 32 * 256 // 224)
    assert tuple(said["mean"]) == tuple(said["std"]) == (0.5, 0.5, 0.5)
    assert load_exported(tmp_path / "model.pt2").said["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("fused", [False, True])
def test_a_short_side_and_a_sampling_of_the_models_own_are_kept(fused, tmp_path):
    model, example = small(), torch.zeros(T, 3, 64, 64)
    set_preparation(model, Preparation(64, 64), "dense")
    if fused:
        model = tsm_triton.fuse(model, example_input=example)
    said = tsm_triton.export(model, "pt2", tmp_path / "model.pt2", example)
    assert (said["size"], said["short_side"], said["sampling"]) == (64, 64, "dense")
    exported = load_exported(tmp_path / "model.pt2")
    assert (preparation_of(exported), sampling_of(exported)) == (Preparation(64, 64), "dense")


def test_a_short_side_of_another_size_keeps_its_ratio(tmp_path):
    model = small()
    set_preparation(model, Preparation(64, 80))
    said = tsm_triton.export(model, "pt2", tmp_path / "model.pt2", torch.zeros(T, 3, 32, 32))
    assert (said["size"], said["short_side"]) == (32, 40)


def test_the_size_is_the_one_that_the_models_frames_are_prepared_in():
    with torch.device("meta"):
        model = torchvision.models.efficientnet_b1(num_classes=3).eval()
    tsm_triton.patch(model, T)
    for one in (model, VideoClassifier(model, T)):
        (axes,) = interface_of(one, None, False).axes.values()
        assert axes[-3:] == (3, 240, 240)


def test_the_clip_length_of_a_file_that_takes_any_is_the_models(tmp_path):
    model = VideoClassifier(small(), 8)
    said = tsm_triton.export(model, "pt2", tmp_path / "model.pt2", torch.zeros(1, 2, 3, 32, 32))
    assert (said["inputs"], said["num_segments"]) == ({"video": ["clips", "frames", 3, 32, 32]}, 8)
    assert interface_of(model, torch.zeros(1, 2, 3, 32, 32), False).inputs["video"].shape[1] == 2
    pools = VideoClassifier(pooled(), 8)  # in whose file it is fixed
    assert interface_of(pools, torch.zeros(1, T, 3, 32, 32), False).num_segments == T


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True])
def test_a_packages_stream_is_the_stream_whatever_the_layout_of_its_caches(fused, tmp_path):
    # an AOTInductor package takes inputs for laid out as those that it was made with, and does not look
    model = causal(nn.Sequential(nn.Conv2d(3, 16, 3), Block(1))).float().to(memory_format=torch.channels_last)
    stream, path, frames = (
        Streaming(model, fused=fused),
        tmp_path / "stream.pt2",
        torch.randn(3, 2, 3, 16, 16),
    )
    tsm_triton.export(stream, "aoti", path, torch.zeros(1, 3, 16, 16))
    exported, package = Streaming(load_exported(path)), aoti_load_package(path)
    caches: list[torch.Tensor] = []
    for frame in frames:
        expected = stream(frame)
        close(exported(frame), expected)
        scores, *caches = package(frame, *(caches or [0 * cache for cache in exported.state]))
        close(scores, expected)
    for cache in exported.state:  # and of any layout that a caller gives them
        cache.copy_(torch.randn_like(cache))
    again = load_exported(path)
    laid_out = [cache.to(memory_format=torch.channels_last) for cache in exported.state]
    close(again(frames[0], laid_out)[0], again(frames[0], list(exported.state))[0])


@torch.no_grad()
def test_a_fused_model_inside_another_refuses_clips_of_other_lengths(tmp_path):
    fused = tsm_triton.fuse(small(), example_input=torch.zeros(T, 3, 32, 32))
    classifier = VideoClassifier(nn.Sequential(fused, nn.Softmax(-1)), T).eval()
    video = torch.randn(4, T, 3, 32, 32)
    close(classifier(video), fused(video.flatten(0, 1)).softmax(-1).unflatten(0, (4, T)).mean(1))
    for call in (
        lambda: classifier(video.view(8, 2, 3, 32, 32)),
        lambda: classifier(video.view(2, 8, 3, 32, 32)),
        lambda: classifier(video.flatten(0, 1), clip_lengths=[8, 4, 4]),
        lambda: torch.compile(classifier, backend="eager")(video.view(2, 8, 3, 32, 32)),
    ):
        with pytest.raises((ValueError, RuntimeError), match=f"clips of {T} frames"):
            call()
    said = tsm_triton.export(classifier, "pt2", tmp_path / "a.pt2", torch.zeros(1, T, 3, 32, 32))
    assert said["inputs"] == {"video": ["clips", T, 3, 32, 32]}


@torch.no_grad()
def test_pixels_as_decoded_and_no_clips_are_refused(tmp_path):
    tsm_triton.export(VideoClassifier(small(), T), "pt2", tmp_path / "a.pt2", torch.zeros(1, T, 3, 32, 32))
    tsm_triton.export(
        Streaming(small(direction="causal")), "onnx", tmp_path / "s.onnx", torch.zeros(1, 3, 32, 32)
    )
    clips, stream = load_exported(tmp_path / "a.pt2"), Streaming(load_exported(tmp_path / "s.onnx"))
    for call in (
        lambda: clips(torch.zeros(1, T, 3, 32, 32, dtype=torch.uint8)),
        lambda: stream(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)),
    ):
        with pytest.raises(TypeError, match="must hold normalised floats, got torch.uint8"):
            call()
    with pytest.raises(ValueError, match="video must have shape"):
        clips(torch.zeros(0, T, 3, 32, 32))


@torch.no_grad()
@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_maps_of_frames_keep_their_axes(to, tmp_path):
    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = small()

        def forward(self, x):
            return self.model.forward_features(x)

    maps, video = Maps().eval(), torch.randn(2, T, 3, 64, 64, requires_grad=True)
    expected = VideoClassifier(maps, T)(video)
    assert expected.dim() == 4
    for model, example in ((VideoClassifier(maps, T), video[:1]), (maps, video[0])):
        tsm_triton.export(model, to, tmp_path / f"a.{to}", torch.zeros_like(example))
        close(load_exported(tmp_path / f"a.{to}")(video), expected)


@pytest.mark.parametrize("dynamic_size", [False, True])
def test_mean_and_deviation_are_the_files_where_pictures_are_not_square(dynamic_size, tmp_path):
    model, path = small(), tmp_path / "a.pt2"
    set_preparation(model, Preparation(64, 64, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    example = torch.zeros(T, 3, 64, 96)
    tsm_triton.export(model, "pt2", path, example, dynamic_size=dynamic_size)
    exported = load_exported(path)
    if not dynamic_size:
        with pytest.raises(ValueError, match=r"square RGB pictures .* got input_size \(3, 64, 96\)"):
            preparation_of(exported)
    found = preparation_of(exported, size=64)
    assert found == preparation_of(model, size=64)
