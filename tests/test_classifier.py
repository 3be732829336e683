"""VideoClassifier: clips in, one prediction a video out."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

import tsm_triton
from tsm_triton import VideoClassifier
from tsm_triton.modules import TemporalPool
from tsm_triton.patching.hooks import shift_hooks
from tsm_triton.video.features import VideoFeatures

T = 4


@pytest.fixture
def model():
    return tsm_triton.patch(timm.create_model("test_resnet", num_classes=5).eval(), T)


def test_the_prediction_is_the_mean_of_the_frames_logits(model):
    video = torch.randn(2, T, 3, 48, 48)
    frames = model(video.flatten(0, 1)).unflatten(0, (2, T))
    assert torch.equal(VideoClassifier(model, T)(video), frames.mean(1))
    assert torch.equal(VideoClassifier(model, T, consensus="identity")(video), frames)


def test_the_clip_length_is_read_from_the_shape(model):
    classifier = VideoClassifier(model, T)
    for num_segments in (T, 7, 1, T):
        video = torch.randn(2, num_segments, 3, 48, 48)
        each = torch.cat([classifier(clip[None]) for clip in video])
        torch.testing.assert_close(classifier(video), each)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_call_leaves_the_models_length(model, context):
    classifier, inside = VideoClassifier(model, T), []
    model.layer4.register_forward_hook(lambda *_: inside.append(shift_hooks(model)[0].num_segments))
    with context():
        classifier(torch.randn(1, 6, 3, 32, 32))
        assert {hook.num_segments for hook in shift_hooks(model)} == {T}
        model.layer4.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            classifier(torch.randn(1, 6, 3, 32, 32))
    assert inside == [6, 6]
    assert {hook.num_segments for hook in shift_hooks(model)} == {T}


def test_a_compiled_part_takes_the_length_of_the_call(model):
    video = torch.randn(1, 6, 3, 32, 32)
    with torch.no_grad():
        expected = VideoClassifier(model, T)(video)
        classifier = VideoClassifier(torch.compile(model, backend="eager"), T)
        for _ in range(2):
            torch.testing.assert_close(classifier(video), expected)
            assert {hook.num_segments for hook in shift_hooks(model)} == {T}


def test_calls_side_by_side_leave_the_models_length(model):
    classifier, both = VideoClassifier(model, T), threading.Barrier(2)
    model.layer4.register_forward_hook(lambda *_: (both.wait(10), None)[1])

    def call(frames):
        with torch.no_grad():
            return classifier(torch.randn(1, frames, 3, 32, 32))

    with ThreadPoolExecutor(2) as pool:
        for frames in ((2, 6), (6, 3)):
            list(pool.map(call, frames))
            assert {hook.num_segments for hook in shift_hooks(model)} == {T}


@pytest.mark.parametrize(
    ("reader", "options"), [(VideoClassifier, {}), (VideoFeatures, {"features_only": True})]
)
def test_a_part_set_to_another_length_follows_the_video(reader, options):
    model = tsm_triton.patch(timm.create_model("test_resnet", **options).eval(), T)
    tsm_triton.set_num_segments(model.layer4, 2 * T)
    inside = []
    model.layer4.register_forward_hook(
        lambda *_: inside.extend(hook.num_segments for hook in shift_hooks(model))
    )
    reader(model, T)(torch.randn(2, T, 3, 48, 48))
    assert set(inside) == {T}


def test_a_folded_input_is_unfolded_by_num_segments(model):
    video = torch.randn(2, T, 3, 48, 48)
    classifier = VideoClassifier(model, T)
    assert torch.equal(classifier(video.flatten(0, 1)), classifier(video))


def test_views_are_averaged_as_logits_or_as_softmax(model):
    video = torch.randn(2, 3, T, 3, 48, 48)
    logits = torch.stack([VideoClassifier(model, T)(video[:, view]) for view in range(3)], 1)
    torch.testing.assert_close(VideoClassifier(model, T)(video), logits.mean(1))
    softmax = VideoClassifier(model, T, view_average="softmax")(video)
    torch.testing.assert_close(softmax, logits.softmax(-1).mean(1))


def test_an_unpatched_model_is_a_tsn():
    model = timm.create_model("test_resnet", num_classes=5).eval()
    video = torch.randn(1, 6, 3, 48, 48)
    assert torch.equal(VideoClassifier(model)(video), model(video[0]).mean(0, keepdim=True))


def test_it_compiles_in_full_for_two_clip_lengths(model):
    classifier = VideoClassifier(model, T)
    compiled = torch.compile(classifier, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for shape in ((2, T), (3, T), (2, 6)):
            video = torch.randn(*shape, 3, 48, 48)
            torch.testing.assert_close(compiled(video), classifier(video))


def exported(model, frames, **options):
    clips = torch.export.Dim("clips", min=1, max=64)
    return torch.export.export(model, (frames,), dynamic_shapes=({0: T * clips},), **options)


def saved(program, path):
    torch.export.save(program, path)
    return torch.export.load(path).module()


def our_file(model, frames, path):
    tsm_triton.export(model, "pt2", path, frames)
    return torch.export.load(path).module()


CAPTURES = {
    "torch.export": lambda model, frames, path: exported(model, frames).module(),
    "a loaded file": lambda model, frames, path: saved(exported(model, frames), path),
    "our file": our_file,
    "make_fx": lambda model, frames, path: make_fx(model)(frames),
    "torch.jit.trace": lambda model, frames, path: torch.jit.trace(model, frames),
    "frozen": lambda model, frames, path: torch.jit.freeze(torch.jit.trace(model, frames)),
    "behind a pool": lambda model, frames, path: torch.nn.Sequential(
        TemporalPool(T), exported(tsm_triton.set_num_segments(model, T // 2), frames).module()
    ),
    "compiled": lambda model, frames, path: torch.compile(exported(model, frames).module(), backend="eager"),
    "behind others": lambda model, frames, path: torch.nn.Sequential(
        torch.nn.Identity(), exported(model, frames).module()
    ),
}


@pytest.mark.parametrize("capture", CAPTURES.values(), ids=CAPTURES)
@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore:.*torch.jit:FutureWarning",
    "ignore:.*torch.jit:DeprecationWarning",
    "ignore:.*buffer is not writable",
)
def test_a_captured_model_takes_clips_of_its_own_length_alone(model, capture, tmp_path):
    model.requires_grad_(False)
    video = torch.randn(2, T, 3, 32, 32)
    captured = VideoClassifier(capture(model, video.flatten(0, 1), tmp_path / "a.pt2"), T)
    if not isinstance(captured.model, torch.nn.Sequential):
        torch.testing.assert_close(captured(video), VideoClassifier(model, T)(video))
    captured(video)
    for other in (video.reshape(4, T // 2, 3, 32, 32), video.reshape(1, 2 * T, 3, 32, 32)):
        with pytest.raises(ValueError, match=f"expected clips of {T} frames, the length .* captured for"):
            captured(other)
    with pytest.raises((ValueError, RuntimeError), match="captured for|got TemporalPool"):
        captured(video.flatten(0, 1), [3, 2 * T - 3])
    if isinstance(captured.model, GraphModule):
        whole = torch.compile(captured, backend="eager")
        torch.testing.assert_close(whole(video), captured(video))
        with pytest.raises(ValueError, match="captured for"):
            whole(video.reshape(4, T // 2, 3, 32, 32))


def test_a_captured_model_without_a_shift_takes_any_clips():
    model = timm.create_model("test_resnet", num_classes=5).eval().requires_grad_(False)
    video = torch.randn(2, T, 3, 32, 32)
    captured = VideoClassifier(exported(model, video.flatten(0, 1)).module(), T)
    torch.testing.assert_close(captured(video), VideoClassifier(model, T)(video))
    assert captured(video.reshape(4, 2, 3, 32, 32)).shape == (4, 5)


def test_packed_clips_stands_around_a_checkpointed_backward(model):
    video, grads = torch.randn(2 * T, 3, 48, 48), []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        with tsm_triton.packed_clips(model, [3, 2 * T - 3]):
            VideoClassifier(model)(video, [3, 2 * T - 3]).square().sum().backward()
        grads.append(next(model.parameters()).grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("shape", [(T + 1, 3, 48, 48), (3, 48, 48), (1, 1, 1, T, 3, 48, 48)])
def test_other_shapes_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"video must have shape \[N, T, 3, H, W\].* got \("):
        VideoClassifier(model, T)(torch.randn(shape))


@pytest.mark.parametrize("wrong", [[3.7, 8.2, 5.1], "88", 16, [True] * 16, torch.ones(16)])
def test_clip_lengths_that_are_no_integers_are_refused(model, wrong):
    with pytest.raises(TypeError, match="clip_lengths must .*got "):
        VideoClassifier(model, T)(torch.randn(16, 3, 48, 48), clip_lengths=wrong)


@pytest.mark.parametrize("clip_lengths", [None, [8]])
@pytest.mark.parametrize("wrong", [None, np.zeros((1, 8, 3, 48, 48))])
def test_what_is_no_tensor_is_refused(model, wrong, clip_lengths):
    got = type(wrong).__name__
    with pytest.raises(TypeError, match=rf"video must be a torch.Tensor, got {got}. .*torch.from_numpy"):
        VideoClassifier(model, T)(wrong, clip_lengths)


def test_a_model_by_its_name_is_refused():
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got str"):
        VideoClassifier("resnet18")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("shape", [(2, 0, 3, 48, 48), (2, 3, 0, 3, 48, 48)])
@pytest.mark.parametrize("patched", [True, False])
def test_videos_of_no_frames_are_refused(model, shape, patched):
    model = model if patched else tsm_triton.unpatch(model)
    with pytest.raises(ValueError, match=r"at least one frame .*got \("):
        VideoClassifier(model, T)(torch.randn(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_segments=0), "num_segments must be at least 1, got 0"),
        (dict(consensus="max"), "consensus must be one of 'avg', 'identity', got 'max'"),
        (dict(view_average="mean"), "view_average must be one of 'logits', 'softmax', got 'mean'"),
    ],
)
def test_bad_options_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        VideoClassifier(model, **options)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("reader", [VideoClassifier, VideoFeatures])
def test_pixels_as_decoded_are_refused(model, reader, dtype):
    message = rf"must hold normalised floats, got {dtype}: pass what .*transform_for\(model\)"
    for shape in ((2, T, 3, 48, 48), (2 * T, 3, 48, 48), (1, 2, T, 3, 48, 48)):
        with pytest.raises(TypeError, match="video " + message):
            reader(torch.nn.Sequential(model), T)(torch.zeros(shape, dtype=dtype))
    tsm_triton.patch(tsm_triton.unpatch(model), direction="causal")
    with pytest.raises(TypeError, match="frame " + message):
        tsm_triton.Streaming(model)(torch.zeros(2, 3, 48, 48, dtype=dtype))


@pytest.mark.parametrize(
    ("shape", "like"),
    [
        ((2, 3, T, 48, 48), r"\[N, 3, T, H, W\]: pass video.movedim\(-4, -3\)"),
        ((2, 3, 1, 48, 48), r"\[N, 3, T, H, W\]: pass video.movedim\(-4, -3\)"),
        ((2, T, 48, 48, 3), r"\[..., H, W, 3\]: pass video.movedim\(-1, -3\)"),
        ((2 * T, 48, 48, 3), r"\[..., H, W, 3\]: pass video.movedim\(-1, -3\)"),
        ((1, 2, 3, T, 48, 48), r"\[N, 3, T, H, W\]: pass video.movedim\(-4, -3\)"),
    ],
)
@pytest.mark.parametrize("reader", [VideoClassifier, VideoFeatures])
def test_channels_on_another_axis_are_refused(model, reader, shape, like):
    with pytest.raises(ValueError, match=rf"channels on the third axis from the end.* got \(.*like {like}"):
        reader(torch.nn.Sequential(model), T)(torch.zeros(shape))


def test_three_frames_of_other_channels_are_no_channels_on_another_axis():
    model = tsm_triton.patch(timm.create_model("test_resnet", in_chans=1, num_classes=2).eval(), 3)
    assert VideoClassifier(model, 3)(torch.zeros(2, 3, 1, 48, 48)).shape == (2, 2)
