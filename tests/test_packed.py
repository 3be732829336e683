"""Clips of different lengths, packed along the frame axis, against each clip alone."""

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings

from tsm_triton import (
    VideoClassifier,
    ops,
    packed_clips,
    patch,
    set_num_segments,
    temporal_shift,
    unpatch,
)
from tsm_triton.functional import clip_boundaries
from tsm_triton.patching.hooks import shift_hooks
from tsm_triton.testing import LAYOUTS, assert_same_bits, laid_out, properties, ragged_cases

settings = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings
@given(case=ragged_cases())
def test_packed_clips_are_each_clip_alone(device, case):
    properties.packed_clips_are_each_clip_alone(ops.temporal_shift_packed, case, device)


def test_equal_lengths_are_the_plain_shift(device):
    x = torch.randn(12, 16, 3, 3, device=device)
    packed = temporal_shift(x, None, clip_lengths=[4, 4, 4])
    assert_same_bits(packed, temporal_shift(x, 4))
    assert_same_bits(temporal_shift(x, None, clip_lengths=torch.tensor([4, 4, 4])), packed)


def test_a_poisoned_clip_stays_alone(device):
    x = torch.zeros(7, 8, 2, 2, device=device)
    x[3:5] = torch.nan
    finite = temporal_shift(x, None, clip_lengths=[3, 2, 2]).isfinite()
    assert finite[:3].all()
    assert finite[5:].all()


def test_the_gradient_is_the_adjoint(device):
    boundaries = clip_boundaries([1, 3, 2], 6, device)
    x = torch.randn(6, 5, 2, dtype=torch.float64, device=device, requires_grad=True)

    def call(x):
        return ops.temporal_shift_packed(x, boundaries, 2, 1, False, 1)

    assert torch.autograd.gradcheck(call, x, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, x, fast_mode=True)


BYTES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "tokens", "cropped"])
def test_opcheck(device, layout):
    x = laid_out(torch.randn(6, 8, 3, 3), layout).to(device)
    boundaries = clip_boundaries([1, 3, 2], 6, device)
    arguments = (boundaries, 2, 3, False, LAYOUTS[layout])
    torch.library.opcheck(ops.temporal_shift_packed, (x, *arguments))
    torch.library.opcheck(ops.temporal_shift_packed, (x.detach().clone().requires_grad_(), *arguments))


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.int8, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.complex32],
)
def test_every_dtype_is_moved(dtype):
    x = torch.randint(0, 2, (6, 8, 2)).to(dtype)
    each = [temporal_shift(clip, len(clip)) for clip in (x[:2], x[2:])]
    packed = temporal_shift(x, None, clip_lengths=[2, 4])
    assert packed.dtype == dtype
    assert_same_bits(packed, torch.cat([clip.view(BYTES[x.itemsize]) for clip in each]).view(dtype))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(clip_lengths=[3, 4]), ValueError, r"add up to the 8 frames of x, got \[3, 4\], together 7"),
        (dict(clip_lengths=[9, -1]), ValueError, "must be non-negative"),
        (dict(clip_lengths=[4.0, 4.0]), TypeError, "must be an int, got 4.0"),
        (dict(), ValueError, "either num_segments or clip_lengths, got neither"),
        (dict(clip_lengths=[8], num_segments=8), ValueError, r"got both \(8 and \[8\]\)"),
    ],
)
def test_bad_lengths_say_what_was_expected_and_got(arguments, error, message):
    with pytest.raises(error, match=message):
        temporal_shift(torch.zeros(8, 8, 2, 2), **({"num_segments": None} | arguments))


@pytest.mark.parametrize("boundaries", [torch.ones(8).bool(), torch.ones(9), torch.ones(9, 1).bool()])
def test_the_op_refuses_boundaries_that_do_not_fit(device, boundaries):
    with pytest.raises(ValueError, match=r"boundaries must be a bool tensor \[9\]"):
        ops.temporal_shift_packed(torch.zeros(8, 8, device=device), boundaries.to(device), 1, 1, False, 1)


@pytest.fixture(params=["test_resnet", "test_vit"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    model = timm.create_model(request.param, num_classes=5).eval().double()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith("weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return patch(model, num_segments=4)


def test_a_patched_model_takes_packed_clips(model):
    size = model.pretrained_cfg["input_size"][-1]
    lengths = [1, 4, 2]
    frames = torch.randn(sum(lengths), 3, size, size, dtype=torch.float64)
    with torch.no_grad(), packed_clips(model, lengths):
        packed = model(frames)
    with torch.no_grad():
        alone = [set_num_segments(model, len(clip))(clip) for clip in frames.split(lengths)]
    torch.testing.assert_close(packed, torch.cat(alone))
    set_num_segments(model, 7)
    with torch.no_grad():
        assert not torch.allclose(packed, model(frames))


def test_a_packing_is_made_anywhere(model):
    size = model.pretrained_cfg["input_size"][-1]
    frames = torch.randn(3, 3, size, size, dtype=torch.float64)
    with packed_clips(model, [1, 2]):
        expected = model(frames)
    with torch.device("meta"), packed_clips(model, [1, 2]):
        torch.testing.assert_close(model(frames), expected)
    with torch.inference_mode():
        context = packed_clips(model, [1, 2])
        context.__enter__()
    model(frames).sum().backward()
    context.__exit__(None, None, None)


def test_the_classifier_averages_each_packed_clip(model):
    size = model.pretrained_cfg["input_size"][-1]
    classifier = VideoClassifier(model)
    lengths = [2, 5]
    frames = torch.randn(sum(lengths), 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        packed = classifier(frames, clip_lengths=lengths)
        cu_seqlens = torch.tensor([0, 2, 7])
        torch.testing.assert_close(classifier(frames, clip_lengths=cu_seqlens.diff()), packed)
        each = torch.cat([classifier(clip[None]) for clip in frames.split(lengths)])
        unshifted = VideoClassifier(unpatch(model))
        torch.testing.assert_close(packed, each)
        expected = torch.stack([model(clip).mean(0) for clip in frames.split(lengths)])
        torch.testing.assert_close(unshifted(frames, clip_lengths=lengths), expected)


def test_windows_are_packed_as_whole_frames():
    model = timm.create_model(
        "swinv2_cr_tiny_ns_224", num_classes=5, img_size=64, window_size=2, depths=(1, 1, 1, 1)
    )
    assert any(hook.counter is not None for hook in shift_hooks(patch(model.eval(), num_segments=4)))
    lengths = [1, 3]
    frames = torch.randn(sum(lengths), 3, 64, 64)
    with torch.no_grad(), packed_clips(model, lengths):
        packed = model(frames)
    with torch.no_grad():
        alone = [set_num_segments(model, len(clip))(clip) for clip in frames.split(lengths)]
    torch.testing.assert_close(packed, torch.cat(alone))


def test_packing_ends_with_the_context_and_says_what_does_not_fit(model):
    with (
        pytest.raises(ValueError, match="clip_lengths that add up to the frames, got 7 with 8 frames"),
        packed_clips(model, [3, 4]),
    ):
        model(torch.randn(8, 3, 160, 160, dtype=torch.float64))
    assert all(hook.boundaries is None for hook in shift_hooks(model))
    with pytest.raises(ValueError, match=r"got \(8, 3, 4, 4\) for \[3, 4\], together 7"):
        VideoClassifier(model)(torch.randn(8, 3, 4, 4), clip_lengths=[3, 4])
