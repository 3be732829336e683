"""Every implementation of the shift against the reference, and the properties that define it."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from tsm_triton import ShiftSite, functional, ops, patch, reference, temporal_shift
from tsm_triton.functional import fold_counts
from tsm_triton.kernels import temporal_shift as kernel
from tsm_triton.modules import TemporalShift
from tsm_triton.patching.frame_counter import FrameCounter
from tsm_triton.patching.shift_hook import ShiftHook
from tsm_triton.testing import guarded_memory, laid_out, properties, shift_cases
from tsm_triton.testing.cases import CHANNEL_DIMS, axes_of

# the `device` fixture stays the same for all examples of a test
settings = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings
@given(case=shift_cases())
def test_matches_the_reference_bit_for_bit_in_every_dtype_and_layout(device, case):
    properties.matches_reference(ops.temporal_shift, case, device)


@settings
@given(case=shift_cases())
def test_writes_nothing_outside_its_output(device, case):
    with guarded_memory():
        properties.matches_reference(ops.temporal_shift, case, device)


@settings
@given(case=shift_cases(dtypes=(torch.float32,)))
def test_keeps_the_memory_format(device, case):
    properties.keeps_the_memory_format(ops.temporal_shift, case, device)


@settings
@given(case=shift_cases(dtypes=(torch.float32,), max_clips=2))
def test_the_adjoint_undoes_the_inner_product(device, case):
    properties.the_adjoint_undoes_the_inner_product(ops.temporal_shift, case, device)


@settings
@given(case=shift_cases(dtypes=(torch.float64,), layouts=("contiguous", "channels_last", "tokens")))
def test_is_linear(device, case):
    properties.is_linear(ops.temporal_shift, case, device)


@settings
@given(case=shift_cases(layouts=("contiguous", "channels_last", "nhwc", "tokens")))
def test_clips_do_not_mix(device, case):
    properties.clips_do_not_mix(ops.temporal_shift, case, device)


@settings
@given(case=shift_cases())
def test_untouched_channels_are_untouched(device, case):
    properties.untouched_channels_are_untouched(ops.temporal_shift, case, device)


@settings
@given(case=shift_cases(dtypes=(torch.float32, torch.bfloat16), layouts=("contiguous", "tokens")))
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_poisoned_frame_reaches_only_the_frames_that_read_it(device, poison, case):
    properties.poison_reaches_only_its_readers(ops.temporal_shift, case, device, poison)


def test_the_memory_of_new_tensors_is_poisoned():
    assert torch.empty(4).isnan().all()
    assert torch.empty_like(torch.zeros(4)).isnan().all()


@pytest.mark.parametrize("layout", CHANNEL_DIMS)
def test_each_layout_names_the_memory_it_says(layout):
    x = torch.arange(4 * 6 * 3 * 5.0).view(4, 6, 3, 5)
    laid = laid_out(x, layout)
    assert laid.dim() == axes_of(layout)
    values = laid.movedim(CHANNEL_DIMS[layout], 1)
    if layout == "vectors":
        x, values = x[:, :, :1, :1], values[..., None, None]
    if layout.startswith("volumes"):
        assert torch.equal(values[:, :, 1], x.flip(0))
        values = values[:, :, 0]
    expected = x[:1].expand_as(x) if layout == "expanded_frames" else x
    assert torch.equal(values.flatten(2), expected.flatten(2))
    if layout not in ("contiguous", "nhwc", "tokens", "unaligned", "vectors", "between", "volumes"):
        assert not laid.is_contiguous()


@pytest.mark.parametrize(("layout", "axis"), [("chunk_of_channels", 0), ("cropped", 2)])
def test_a_part_is_not_of_a_whole_of_twice_its_size(layout, axis):
    # 16 bytes of half precision divide a frame of 8 channels or 8 pixels, and not the stride of what it is cut from
    x = torch.zeros(2, 8, 1, 1) if axis == 0 else torch.zeros(2, 1, 2, 8)
    assert laid_out(x, layout).stride(axis) == 12


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
        *[
            (dict(channel_dim=wrong), TypeError, f"channel_dim must be an int, got {wrong!r}")
            for wrong in (None, "1", 1.0, True)
        ],
        *[
            (
                dict(num_segments=None, clip_lengths=wrong),
                TypeError,
                f"clip_lengths must be .*got {wrong!r}",
            )
            for wrong in (8, "8")
        ],
        (dict(num_segments=None, clip_lengths=[3.0, 5]), TypeError, "clip_lengths must be an int, got 3.0"),
        (dict(x=torch.zeros(8)), ValueError, r"shape \[N\*T, C, ...\] or \[N\*T, ..., C\], got \(8,\)"),
    ],
)
def test_bad_arguments_say_what_was_expected_and_got(arguments, error, message):
    good = dict(x=torch.zeros(8, 16, 2, 2), num_segments=4)
    with pytest.raises(error, match=message):
        temporal_shift(**(good | arguments))


@pytest.mark.parametrize("integer", [np.int64, np.uint8, torch.tensor])
def test_integers_of_other_libraries_are_integers(integer):
    x = torch.randn(8, 16, 2, 2)
    expected = temporal_shift(x, 4, shift_div=4, channel_dim=1)
    assert torch.equal(temporal_shift(x, integer(4), shift_div=integer(4), channel_dim=integer(1)), expected)
    layer = TemporalShift(integer(4), shift_div=integer(4), channel_dim=integer(1))
    assert torch.equal(layer(x), expected)
    assert {type(layer.num_segments), type(layer.shift_div), type(layer.channel_dim)} == {int}


class _BoolOfOldNumPy:
    """NumPy's before 2.3: an index, with no more than a warning."""

    dtype = np.dtype(bool)

    def __init__(self, value: int) -> None:
        self.value = bool(value)

    def __index__(self) -> int:
        return int(self.value)


@pytest.mark.parametrize(
    "integer", [np.bool_, _BoolOfOldNumPy, lambda value: torch.tensor(bool(value)), np.float32, torch.ones]
)
def test_what_only_looks_like_an_integer_is_refused(integer):
    with pytest.raises(TypeError, match="num_segments must be an int, got "):
        temporal_shift(torch.zeros(8, 16), integer(2))


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ((3, 1, 1, False, 1), "divisible by num_segments=3, got 8 frames"),
        ((0, 1, 1, False, 1), "divisible by num_segments=0"),
        ((4, 9, 8, False, 1), "between 0 and the 16 channels of axis 1, got 9 \\+ 8"),
        ((4, -1, 8, False, 1), "got -1 \\+ 8"),
        ((4, 1, 1, False, 0), "channel_dim must name an axis of x behind the frames, got 0 for shape"),
        ((4, 1, 1, False, 9), "channel_dim must name an axis of x behind the frames, got 9 for shape"),
        ((4, 1, 1, False, -5), "channel_dim must name an axis of x behind the frames, got -5 for shape"),
    ],
)
def test_the_op_refuses_what_would_leave_its_memory(device, shift, message):
    with pytest.raises(ValueError, match=message):
        ops.temporal_shift(torch.zeros(8, 16, 2, 2, device=device), *shift)


def test_the_op_refuses_a_number(device):
    with pytest.raises(ValueError, match=r"x must have shape .* got \(\)"):
        ops.temporal_shift(torch.zeros((), device=device), 1, 1, 1, False, 1)


def test_a_fold_of_nothing_is_a_copy_when_asked_for_by_count(device):
    x = torch.randn(4, 6, 3, 3, device=device)
    out = ops.temporal_shift(x, 2, 0, 0, False, 1)
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
        properties.matches_reference(ops.temporal_shift, case, "cuda" if torch.cuda.is_available() else "cpu")


def test_a_large_result_on_a_cpu_is_asked_for_in_huge_pages():
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel has no transparent huge pages")
    x = torch.randn(16, 256, 47, 47)  # 36 MB
    shifted = temporal_shift(x, 8)
    assert torch.equal(shifted, reference.temporal_shift(x, 8, 32, 32))
    assert "hg" in page_flags(shifted)


def page_flags(x):
    """The flags that the kernel keeps of the middle of a tensor's memory."""
    middle, inside = x.data_ptr() + x.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *values = line.split()
        if "-" in key and not key.endswith(":"):
            start, end = (int(value, 16) for value in key.split("-"))
            inside = start <= middle < end
        elif inside and key == "VmFlags:":
            return values
    raise AssertionError("no such memory")


@pytest.mark.parametrize(
    ("shape", "channel_dim", "moved"),
    [
        ((8, 4, 16, 5, 5), 1, r"x.flatten\(0, 1\)"),
        ((8, 4, 16, 5, 5), 2, r"x.flatten\(0, 1\)"),
        ((8, 4, 5, 5, 16), -1, r"x.flatten\(0, 1\)"),
        ((8, 16, 4, 5, 5), 1, r"x.movedim\(2, 1\).flatten\(0, 1\)"),
        ((8, 2, 4, 16, 5, 5), 1, r"x.movedim\(2, 1\).flatten\(0, 1\)"),
        ((2, 4, 16, 5, 5), 1, r"x.flatten\(0, 1\)"),
    ],
)
def test_a_video_that_is_not_folded_is_refused(shape, channel_dim, moved):
    x = torch.randn(shape)
    with pytest.raises(ValueError, match=rf"must hold folded clips .* got \(.*num_segments=4. Pass {moved}"):
        temporal_shift(x, 4, shift_div=2, channel_dim=channel_dim)
    if channel_dim == 1:
        with pytest.raises(ValueError, match="branch must h"):
            functional.residual_shift(x, x, 4, shift_div=2)
        with pytest.raises(ValueError, match="x must hold folded clips"):
            TemporalShift(4, shift_div=2)(x)


def test_volumes_and_single_frames_are_shifted():
    x = torch.randn(8, 16, 3, 5, 5)
    assert torch.equal(temporal_shift(x, 4), reference.temporal_shift(x, 4, 2, 2))
    assert torch.equal(temporal_shift(x, 8), reference.temporal_shift(x, 8, 2, 2))
    one = torch.randn(8, 16, 1, 5, 5)
    assert torch.equal(temporal_shift(one, 1), reference.temporal_shift(one, 1, 2, 2))
    ambiguous = torch.randn(8, 16, 4, 5, 5)
    explicit = torch.ops.tsm_triton.temporal_shift(ambiguous, 4, 2, 2, False, 1)
    assert torch.equal(explicit, reference.temporal_shift(ambiguous, 4, 2, 2))


@pytest.mark.parametrize("channel_dim", [-1, 1])
def test_windows_of_a_patched_model_are_no_frames(channel_dim):
    counter = FrameCounter()
    counter(torch.nn.Identity(), (torch.zeros(8, 1),), {})
    hook = ShiftHook(4, 8, "bidirectional", channel_dim, counter)
    windows = torch.randn(
        8 * 4, *((16, 3, 3) if channel_dim == 1 else (3, 3, 16))
    )  # as many a frame as frames
    last = windows.movedim(1, -1) if channel_dim == 1 else windows
    expected = temporal_shift(last.reshape(8, 4 * 9, 16), 4, channel_dim=-1).view(32, 3, 3, 16)
    actual = hook.shift(windows)
    assert torch.equal(actual.movedim(1, -1) if channel_dim == 1 else actual, expected)


def test_a_patched_model_refuses_a_video_that_is_not_folded():
    class Mixer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = torch.nn.Linear(16, 16)

        def forward(self, x):
            return x + self.branch(x)

    model = Mixer()
    patch(model, 4, sites=[ShiftSite("branch", model.branch, 16, -1)], verify=False)
    assert model(torch.randn(8, 5, 5, 16)).shape == (8, 5, 5, 16)
    with pytest.raises(ValueError, match="x must hold folded clips"):
        model(torch.randn(8, 4, 5, 5, 16))


def test_a_shape_is_planned_once_and_launched_as_the_jit_would(monkeypatch):
    names = kernel._temporal_shift_kernel.arg_names
    planned, launched = [], []

    class Compiled:
        def __getitem__(self, grid):
            return lambda *args: launched.append((grid, dict(zip(names, args, strict=True))))

    class Jit:
        def __getitem__(self, grid):
            def launch(*args, num_warps, **constants):
                planned.append((grid, dict(zip(names, args, strict=False)) | constants))
                return Compiled()

            return launch

    monkeypatch.setattr(kernel, "_temporal_shift_kernel", Jit())
    monkeypatch.setattr(kernel, "_PLANS", {})
    shapes = [laid_out(torch.randn(8, 16, 3, 3), layout) for layout in ("channels_last", "contiguous")]
    for x in [x for x in shapes for _ in range(3)]:
        kernel.temporal_shift(x, 4, 2, 2, False, 1)
    kernel.temporal_shift(shapes[0], 2, 2, 2, False, 1)
    kernel.temporal_shift(shapes[0].bfloat16(), 4, 2, 2, False, 1)
    # an address that is no whole vector knows narrower accesses alone
    unaligned = torch.randn(8 * 16 * 9 + 1)[1:].view(8, 16, 3, 3)
    for _ in range(2):
        kernel.temporal_shift(unaligned, 4, 2, 2, False, 1)
    assert len(planned) == 6
    assert len(launched) == 4
    pointers = {"x_ptr", "out_ptr"}
    for (grid, arguments), (known_grid, known) in zip(
        launched, [p for p in planned[:2] for _ in range(2)], strict=True
    ):
        assert grid == known_grid
        assert {k: v for k, v in arguments.items() if k not in pointers} == {
            k: v for k, v in known.items() if k not in pointers
        }
        assert arguments["x_ptr"].data_ptr() == known["x_ptr"].data_ptr()


class Watched(TorchDispatchMode):
    """Notes the ops that are called."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen = [*getattr(self, "seen", []), func]
        return func(*args, **(kwargs or {}))


class Subclass(torch.Tensor):
    pass


@pytest.mark.filterwarnings("ignore:.*quant")
def test_a_plain_tensor_of_a_cpu_needs_no_dispatcher(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.randn(4, 8, 3, 3)
    calls = []
    forms = import_module("tsm_triton.ops.temporal_shift")
    monkeypatch.setattr(
        forms, "temporal_shift", lambda x, *shift: (calls.append(x), ops.temporal_shift(x, *shift))[1]
    )
    expected = reference.temporal_shift(x, 2, 1, 1)
    assert torch.equal(temporal_shift(x, 2), expected)
    with torch.no_grad():
        assert torch.equal(temporal_shift(x.clone().requires_grad_(), 2), expected)
    assert not calls
    with pytest.raises(ValueError, match="whole clips"):
        temporal_shift(x, 3)

    def dispatched(x) -> torch.Tensor:
        calls.clear()
        out = temporal_shift(x, 2)
        assert calls
        return out

    assert dispatched(x.clone().requires_grad_()).requires_grad
    assert isinstance(dispatched(x.as_subclass(Subclass)), Subclass)
    assert dispatched(torch.quantize_per_tensor(x, 0.1, 5, torch.quint8)).is_quantized
    torch.func.vmap(dispatched)(torch.stack([x, x]))
    with Watched() as watched:
        dispatched(x)
    assert ops.temporal_shift in watched.seen
    assert ops.temporal_shift in [node.target for node in make_fx(dispatched)(x).graph.nodes]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        assert forward_ad.unpack_dual(dispatched(dual)).tangent is not None


@pytest.mark.parametrize("shape", [(8, 6, 3), (8, 64, 17, 17)], ids=["small", "large"])
def test_views_that_stand_for_other_values_are_read_as_those(shape):
    x = torch.randn(shape, dtype=torch.complex64)
    for view in (x.conj(), x.conj().imag, x.mT.conj()):
        assert view.is_conj() or view.is_neg()
        shifted = temporal_shift(view, 4, shift_div=3)
        counts = fold_counts(view.shape[1], 3, "bidirectional", "future_first")
        assert torch.equal(shifted, reference.temporal_shift(view.clone(), 4, *counts))
        assert not shifted.is_conj()
        assert not shifted.is_neg()


@pytest.mark.parametrize("shape", [(8, 6, 3), (8, 64, 17, 17)], ids=["small", "large"])
def test_a_result_stays_in_its_memory_wherever_that_begins(shape):
    x = torch.randn(shape)
    for each in (x, x.mT, x.transpose(1, -1).contiguous().transpose(1, -1)):
        with guarded_memory():
            shifted = temporal_shift(each, 4, shift_div=3)
        counts = fold_counts(each.shape[1], 3, "bidirectional", "future_first")
        assert torch.equal(shifted, reference.temporal_shift(each, 4, *counts))


def test_what_is_planned_for_one_tensor_serves_no_other():
    memory = torch.arange(4 * 8 * 3 * 2.0)
    maps = [memory[start : start + 4 * 8 * 3].view(4, 8, 3) for start in (0, 96, 17)]
    maps += [memory.view(4, 8, 6)[..., ::2], memory.view(8, 8, 3)[::2], maps[0].mT.contiguous().mT]
    for x in maps:  # one shape, the offsets and strides differ
        for _ in range(2):
            assert torch.equal(temporal_shift(x, 2, shift_div=4), reference.temporal_shift(x, 2, 2, 2, False))
    temporal_shift(maps[0], 1)
    for number in (True, 1.0, torch.tensor(1.0)):  # equal to one that was planned
        with pytest.raises(TypeError, match="num_segments must be an int"):
            temporal_shift(maps[0], number)
    for direction in (["causal"], None, 1):
        with pytest.raises(ValueError, match="direction must be one of"):
            temporal_shift(maps[0], 1, direction=direction)
