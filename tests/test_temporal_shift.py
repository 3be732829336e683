"""Every implementation of the shift against the reference, and the properties that define it."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsm_triton import ops, reference, temporal_shift
from tsm_triton.kernels import temporal_shift as kernel
from tsm_triton.testing import LAYOUTS, ShiftCase, assert_same_bits, laid_out, shift_cases

# the `device` fixture stays the same for all examples of a test
settings = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
FLOATS = (torch.float64,)


def shift(case: ShiftCase, device: str, x: torch.Tensor | None = None) -> torch.Tensor:
    x = case.x if x is None else x
    # `.to` would lay out strided tensors anew
    x = x if device == "cpu" else laid_out_like(x, device)
    return ops.temporal_shift(x, *case.shift).cpu()


def laid_out_like(x: torch.Tensor, device: str) -> torch.Tensor:
    storage = x.untyped_storage().to(device=device)
    moved = torch.empty(0, dtype=x.dtype, device=device)
    return moved.set_(storage, x.storage_offset(), x.shape, x.stride())  # type: ignore[call-overload]


@settings
@given(case=shift_cases())
def test_matches_the_reference_bit_for_bit_in_every_dtype_and_layout(device, case):
    before = case.x.clone()
    actual = shift(case, device)
    assert_same_bits(actual, reference.temporal_shift(case.x, *case.shift))
    assert_same_bits(case.x, before)


@settings
@given(case=shift_cases(dtypes=(torch.float32,)))
def test_keeps_the_memory_format(device, case):
    x = case.x if device == "cpu" else laid_out_like(case.x, device)
    assert ops.temporal_shift(x, *case.shift).stride() == torch.empty_like(x).stride()


@settings
@given(case=shift_cases(dtypes=(torch.float32,), max_clips=2))
def test_the_adjoint_undoes_the_inner_product(device, case):
    # integers this small are exact in float64, so <Sx, y> == <x, S'y> holds with no tolerance
    x = torch.nan_to_num(case.x.double(), nan=1.0, posinf=2.0, neginf=3.0)
    y = torch.randint(-128, 128, x.shape).double()
    forward = ops.temporal_shift(x.to(device), *case.shift).cpu()
    adjoint = ops.temporal_shift(y.to(device), *case.adjoint).cpu()
    assert (forward * y).sum() == (x * adjoint).sum()


@settings
@given(
    case=shift_cases(dtypes=FLOATS, layouts=("contiguous", "channels_last", "tokens")),
    scale=st.integers(-4, 4),
)
def test_is_linear(device, case, scale):
    x = torch.nan_to_num(case.x, nan=1.0, posinf=2.0, neginf=3.0)
    y = torch.randint(-128, 128, x.shape).double()
    combined = shift(case, device, scale * x + y)
    # + 0.0: a product with zero may be a negative zero
    assert_same_bits(combined + 0.0, scale * shift(case, device, x) + shift(case, device, y) + 0.0)


@settings
@given(case=shift_cases(layouts=("contiguous", "channels_last", "nhwc", "tokens")), data=st.data())
def test_clips_do_not_mix(device, case, data):
    clips = case.x.unflatten(0, (-1, case.num_segments))
    order = data.draw(st.permutations(range(len(clips))))
    permuted = shift(case, device, clips[order].flatten(0, 1).contiguous())
    expected = shift(case, device).unflatten(0, (-1, case.num_segments))[order].flatten(0, 1)
    assert_same_bits(permuted, expected)
    for index in range(len(clips)):
        alone = shift(case, device, clips[index].contiguous())
        assert_same_bits(alone, shift(case, device).unflatten(0, (-1, case.num_segments))[index])


@settings
@given(case=shift_cases())
def test_untouched_channels_are_untouched(device, case):
    moved, channels = case.n_future + case.n_past, case.x.shape[case.channel_dim]
    rest = (case.channel_dim, moved, channels - moved)
    assert_same_bits(shift(case, device).narrow(*rest), case.x.narrow(*rest))


@settings
@given(
    case=shift_cases(dtypes=(torch.float32, torch.bfloat16), layouts=("contiguous", "tokens")), data=st.data()
)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_poisoned_frame_reaches_only_the_frames_that_read_it(device, poison, case, data):
    frames = case.x.shape[0]
    x = torch.zeros_like(case.x)
    if frames == 0:
        return
    frame = data.draw(st.integers(0, frames - 1))
    x[frame] = poison
    finite = shift(case, device, x).isfinite().movedim(case.channel_dim, -1).flatten(1, -2).all(1)
    first, second = (1, -1) if case.future_first else (-1, 1)
    n_first = case.n_future if case.future_first else case.n_past
    for t in range(frames):
        same_clip = t // case.num_segments == frame // case.num_segments
        for channel in range(finite.shape[1]):
            group = 0 if channel < n_first else 1 if channel < case.n_future + case.n_past else 2
            reads = t + (first, second, 0)[group]
            assert bool(finite[t, channel]) == (not (same_clip and reads == frame))


def test_the_memory_of_new_tensors_is_poisoned():
    assert torch.empty(4).isnan().all()
    assert torch.empty_like(torch.zeros(4)).isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_names_the_memory_it_says(layout):
    x = torch.arange(4 * 6 * 3 * 5.0).view(4, 6, 3, 5)
    laid = laid_out(x, layout)
    values = laid.movedim(-1, 1) if LAYOUTS[layout] == -1 else laid
    expected = x[:1].expand_as(x) if layout == "expanded_frames" else x
    assert torch.equal(values.flatten(2), expected.flatten(2))
    if layout not in ("contiguous", "nhwc", "tokens", "unaligned"):
        assert not laid.is_contiguous()


def test_the_table_of_the_paper_by_hand(device):
    x = torch.arange(1.0, 5.0).view(4, 1, 1).expand(4, 8, 1).to(device)  # frame t holds t + 1
    both = temporal_shift(x, 4, shift_div=4)[..., 0].cpu()
    assert both[:, 0].tolist() == both[:, 1].tolist() == [2, 3, 4, 0]
    assert both[:, 2].tolist() == both[:, 3].tolist() == [0, 1, 2, 3]
    assert both[:, 4].tolist() == both[:, 7].tolist() == [1, 2, 3, 4]
    causal = temporal_shift(x, 2, shift_div=4, direction="causal")[..., 0].cpu()
    assert causal[:, 0].tolist() == causal[:, 1].tolist() == [0, 1, 0, 3]
    assert causal[:, 2].tolist() == causal[:, 7].tolist() == [1, 2, 3, 4]


def test_one_frame_clips_keep_only_the_rest(device):
    shifted = temporal_shift(torch.ones(3, 8, 2, 2, device=device), 1)
    assert shifted[:, :2].count_nonzero() == 0
    assert shifted[:, 2:].all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(x=[1]), TypeError, "x must be a torch.Tensor, got list"),
        (dict(num_segments=3), ValueError, "divisible by num_segments=3, got 8 frames"),
        (dict(num_segments=0), ValueError, "num_segments must be at least 1, got 0"),
        (dict(num_segments=2.0), TypeError, "num_segments must be an int, got 2.0 of type float"),
        (dict(num_segments=True), TypeError, "num_segments must be an int"),
        (dict(shift_div=0), ValueError, "shift_div must be at least 1, got 0"),
        (dict(shift_div=1), ValueError, "shift_div must be at least 2, got 1"),
        (dict(shift_div=17), ValueError, "at least shift_div=17 channels on axis 1, got 16"),
        (dict(direction="left"), ValueError, "one of 'bidirectional', 'causal', got 'left'"),
        (dict(channel_dim=0), ValueError, "channel_dim must name an axis of x behind the frames, got 0"),
        (dict(channel_dim=4), ValueError, "got 4 for shape"),
        (dict(channel_dim=-4), ValueError, "got -4 for shape"),
        (dict(x=torch.zeros(8)), ValueError, r"shape \[N\*T, C, ...\] or \[N\*T, ..., C\], got \(8,\)"),
    ],
)
def test_bad_arguments_say_what_was_expected_and_got(arguments, error, message):
    good = dict(x=torch.zeros(8, 16, 2, 2), num_segments=4)
    with pytest.raises(error, match=message):
        temporal_shift(**(good | arguments))


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ((3, 1, 1, True, 1), "divisible by num_segments=3, got 8 frames"),
        ((0, 1, 1, True, 1), "divisible by num_segments=0"),
        ((4, 9, 8, True, 1), "between 0 and the 16 channels of axis 1, got 9 \\+ 8"),
        ((4, -1, 8, True, 1), "got -1 \\+ 8"),
        ((4, 1, 1, True, 0), "channel_dim must name an axis behind the frames, got 0 of 4"),
    ],
)
def test_the_op_refuses_what_would_leave_its_memory(device, shift, message):
    with pytest.raises(ValueError, match=message):
        ops.temporal_shift(torch.zeros(8, 16, 2, 2, device=device), *shift)


def test_a_fold_of_nothing_is_a_copy_when_asked_for_by_count(device):
    x = torch.randn(4, 6, 3, 3, device=device)
    out = ops.temporal_shift(x, 2, 0, 0, True, 1)
    assert torch.equal(out, x)
    assert out.data_ptr() != x.data_ptr()


@settings
@given(case=shift_cases())
def test_the_kernel_addresses_frames_beyond_32_bits(case):
    with pytest.MonkeyPatch.context() as patch:
        # every frame counts as larger than 2**31 elements
        patch.setattr(kernel, "INT32_FRAME", 0)
        if not torch.cuda.is_available():
            patch.setenv("TRITON_INTERPRET", "1")
        actual = shift(case, "cuda" if torch.cuda.is_available() else "cpu")
    assert_same_bits(actual, reference.temporal_shift(case.x, *case.shift))
