"""`check_shift` passes right shifts of both signatures, and names the fault of each wrong one."""

import math

import pytest
import torch
from torch import Tensor

import tsm_triton
from tsm_triton import ops
from tsm_triton.testing import LAYOUTS, OTHER_RANKS, ShiftCase, check_shift, properties

KINDS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
CASE = ShiftCase(clips=2, num_segments=3, channels=6, height=2, n_first=2, n_second=2, seed=4)


def right(x, num_segments, n_first, n_second, reverse, channel_dim, mix=False, zero=0.0, turn=1):
    """A shift in plain torch, and what can go wrong in it."""
    if mix:
        num_segments = max(1, len(x))
    out = x.clone()
    read, write = (
        y.movedim(channel_dim, 1).unflatten(0, (len(x) // num_segments, num_segments)) for y in (x, out)
    )
    turn = -turn if reverse else turn
    for channels, sign in ((slice(0, n_first), turn), (slice(n_first, n_first + n_second), -turn)):
        kept, source = (slice(-1), slice(1, None)) if sign > 0 else (slice(1, None), slice(-1))
        end = -1 if sign > 0 else 0
        write[:, kept, :][:, :, channels] = read[:, source, :][:, :, channels]
        if num_segments:
            write[:, end, channels] = read[:, end, channels] - read[:, end, channels] if zero else 0
    return out


WIDE = (torch.int16, torch.int32, torch.int64)


def writes_its_input(x, *shift):
    out = right(x, *shift)
    with torch.no_grad():
        x.copy_(out)
    return out


def writes_its_input_and_returns_it(x, *shift):
    return x.copy_(right(x.clone(), *shift))


def returns_a_view_where_nothing_moves(x, *shift):
    return x[:] if shift[1] == shift[2] == 0 else right(x, *shift)


class NoSecond(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *shift):
        ctx.shift = shift
        return right(x.detach(), *shift)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, y):
        *counts, reverse, axis = ctx.shift
        return right(y, *counts, not reverse, axis), *[None] * 5


class WrongBackward(NoSecond):
    @staticmethod
    def backward(ctx, y):
        return right(y, *ctx.shift), *[None] * 5


def differentiated_by(function):
    """A shift whose gradient is another's result."""

    class Differentiated(NoSecond):
        @staticmethod
        def backward(ctx, y):
            *counts, reverse, axis = ctx.shift
            return function.apply(y, *counts, not reverse, axis), *[None] * 5

    return Differentiated


class DenseGradientsOnly(NoSecond):
    @staticmethod
    def backward(ctx, y):
        *counts, reverse, axis = ctx.shift
        dense = y.view(y.shape) if y.is_contiguous() else y * 0
        return right(dense, *counts, not reverse, axis), *[None] * 5


class ThroughHalf(NoSecond):
    @staticmethod
    def backward(ctx, y):
        *counts, reverse, axis = ctx.shift
        return right(y.half(), *counts, not reverse, axis).to(y.dtype), *[None] * 5


class ContiguousGradientsOnly(NoSecond):
    @staticmethod
    def backward(ctx, y):
        *counts, reverse, axis = ctx.shift
        dense = y if y.is_contiguous() or 0 in y.stride() else y * 0
        return right(dense, *counts, not reverse, axis), *[None] * 5


calls = 0


def changes_its_mind(x, *shift):
    global calls
    calls += 1
    out = right(x, *shift)
    return out.detach() * 0 if calls % 2 == 0 and x.dtype == torch.float64 else out


FAULTS = {
    "writes": (writes_its_input, "the input left as it was, got it written"),
    "writes and returns": (writes_its_input_and_returns_it, "the input left as it was, got it written"),
    "the input": (
        lambda x, *shift: x if shift[1] == shift[2] == 0 else right(x, *shift),
        "got the input itself",
    ),
    "a view": (returns_a_view_where_nothing_moves, "expected a new tensor, got a view of the input"),
    "a tuple": (lambda *given: (right(*given),), "expected a tensor, got tuple"),
    "a number": (lambda *given: 1.0, "expected a tensor, got float"),
    "shape": (
        lambda *given: right(*given)[..., None],
        "expected the shape of the input, (6, 6, 2, 1), got (6, 6, 2, 1, 1)",
    ),
    "dtype": (lambda *given: right(*given).float(), "expected the dtype of the input, torch."),
    "device": (lambda *given: right(*given).to("meta"), "expected the device of the input, cpu, got meta"),
    "memory": (
        lambda *given: right(*given).contiguous().movedim(0, -1).contiguous().movedim(-1, 0),
        "expected the memory format of the input, strides",
    ),
    "channels_last lost": (
        lambda *given: right(*given).contiguous(),
        "expected the memory format of the input",
    ),
    "direction": (lambda *given: right(*given, turn=-1), "channel 0 reads t"),
    "order": (
        lambda x, t, first, second, _, axis: right(x, t, first, second, False, axis),
        "channel 0 reads t",
    ),
    "clips": (lambda *given: right(*given, mix=True), "what came is frame 3 of another clip, t+1"),
    "nan": (lambda *given: right(*given, zero=True), "NaN leaked: a zero may not be computed from values"),
    "integers": (
        lambda x, *shift: right(x, *shift) if x.is_floating_point() else x.clone(),
        "dtype=torch.",
    ),
    "integers through floats": (
        lambda x, *shift: right(x, *shift) if x.is_floating_point() else right(x.float(), *shift).to(x.dtype),
        "dtype=torch.int",
    ),
    "integers through bytes": (
        lambda x, *shift: (
            right(x.to(torch.int8), *shift).to(x.dtype) if x.dtype in WIDE else right(x, *shift)
        ),
        "dtype=torch.int",
    ),
    "floats through fewer bits": (
        lambda x, *shift: (
            right(x.bfloat16(), *shift).to(x.dtype) if x.dtype == torch.float32 else right(x, *shift)
        ),
        "special=True",
    ),
    "gradients through fewer bits": (ThroughHalf.apply, "expected the gradient: "),
    "second gradients through fewer bits": (
        differentiated_by(ThroughHalf).apply,
        "expected the gradient of the gradient: ",
    ),
    "gradients in channels_last": (ContiguousGradientsOnly.apply, "expected the gradient in channels_last: "),
    "payloads of NaN": (
        lambda x, *shift: (
            right(x.masked_fill(x.isnan(), -math.nan), *shift) if x.is_floating_point() else right(x, *shift)
        ),
        "expected nan (0x7fc00000) at ",
    ),
    "long clips": (
        lambda x, t, *shift: right(x, t, *shift) if t < 16 else x.clone(),
        "num_segments=17",
    ),
    "many channels": (
        lambda x, *shift: right(x, *shift) if x.shape[shift[-1]] <= 128 else x.clone(),
        "channels=130",
    ),
    "booleans": (
        lambda x, *shift: right(x, *shift) if x.dtype != torch.bool else x.clone(),
        "dtype=torch.bool",
    ),
    "empty": (
        lambda x, *shift: right(x, *shift) if len(x) else x.new_zeros(()).item() + torch.stack([]),
        "expected a result of shift(x, 3, 2, 2, False, 1), got RuntimeError",
    ),
    "strides": (
        lambda x, *shift: right(x.as_strided(x.shape, torch.empty(x.shape).stride()), *shift),
        "layout=",
    ),
    "negative axis": (
        lambda x, *shift: right(x, *shift[:-1], 1) if shift[-1] < 0 else right(x, *shift),
        "layout=",
    ),
    "no gradient": (lambda *given: right(*given).detach(), "expected a result that can be differentiated"),
    "gradient": (WrongBackward.apply, "the_gradient_is_the_adjoint: expected the gradient: "),
    "sums": (DenseGradientsOnly.apply, "expected the gradient of a sum: 1.0 at frame 0, channel 2, got 0.0"),
    "no second": (NoSecond.apply, "a gradient of the gradient, got RuntimeError"),
    "second": (differentiated_by(WrongBackward).apply, "expected the gradient of the gradient: "),
    "repeats": (changes_its_mind, "dtype=torch.float64"),
    "signature": (
        lambda x, num_segments: x,
        "expected a result of shift(x, 3, 2, 2, False, 1), got TypeError",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_shift_fails_with_its_fault(fault):
    wrong, words = FAULTS[fault]
    with pytest.raises(AssertionError) as failure:
        check_shift(wrong, examples=60)
    assert words in str(failure.value)
    assert "ShiftCase(" in str(failure.value)
    assert "got " in str(failure.value)


@pytest.mark.parametrize(
    "shift", [right, ops.temporal_shift, tsm_triton.temporal_shift], ids=lambda f: f.__module__
)
def test_a_right_shift_passes_in_every_dtype(shift):
    check_shift(shift, dtypes=KINDS + WHOLE, examples=20)


def test_a_shift_that_takes_shift_div_is_called_by_name():
    def bidirectional(x: Tensor, t: int, shift_div: int = 8) -> Tensor:
        fold = x.shape[1] // shift_div
        return right(x, t, fold, fold, False, 1)

    def never_causal(x: Tensor, t: int, shift_div: int, direction: str) -> Tensor:
        return bidirectional(x, t, shift_div)

    check_shift(bidirectional, examples=20)
    with pytest.raises(AssertionError, match="expected .* got"):
        check_shift(never_causal, examples=20)


def test_other_ranks_are_tried_where_they_are_named():
    def of_maps(x, *shift):
        return right(x, *shift) if x.dim() in (3, 4) else x.clone()

    for layout in OTHER_RANKS:
        check_shift(right, layouts=(layout,), dtypes=(torch.float32, torch.int32), examples=10)
    check_shift(of_maps, examples=10)
    with pytest.raises(AssertionError, match="layout='volumes'"):
        check_shift(of_maps, layouts=("volumes",), examples=10)


def test_a_shift_without_a_backward_passes_when_none_is_asked():
    check_shift(lambda *given: right(*given).detach(), examples=10, gradients=False)


@pytest.mark.parametrize("dtype", KINDS + WHOLE, ids=str)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_poison_of_every_dtype_reaches_only_its_readers(dtype, poison):
    for layout in LAYOUTS:
        case = ShiftCase(2, 3, channels=5, n_first=1, n_second=2, layout=layout, dtype=dtype, seed=1)
        properties.poison_reaches_only_its_readers(right, case, poison=poison)
    with pytest.raises(
        AssertionError, match="expected channel 0 of frame 0 to read frame 1, which holds .*, got"
    ):
        properties.poison_reaches_only_its_readers(lambda x, *shift: x.clone(), case, poison=poison)


def test_every_property_says_that_the_input_is_written():
    shifts = [
        getattr(properties, name) for name in properties.__all__ if not name.startswith(("packed", "step"))
    ]
    for hold in shifts:
        if hold is not properties.is_deterministic:  # of any op, whatever it gives
            with pytest.raises(AssertionError, match="expected the input left as it was, got it written"):
                hold(writes_its_input, CASE)


def test_a_failure_says_what_was_expected_where_and_of_which_case():
    with pytest.raises(AssertionError) as failure:
        properties.matches_reference(lambda *given: right(*given, turn=-1), CASE)
    x = CASE.x
    expected = (
        f"expected {x[1, 0, 0, 0].item()} at frame 0, channel 0, got 0.0 (the first of 40 of 72 elements that differ, "
        "at (0, 0, 0, 0)); channel 0 reads t+1, frame 1\n"
        "    of ShiftCase(clips=2, num_segments=3, channels=6, height=2, n_first=2, n_second=2, seed=4)"
    )
    assert str(failure.value).splitlines()[-1] == expected.splitlines()[-1]
    assert str(failure.value).partition(" (the")[0] == expected.partition(" (the")[0]
    assert "; channel 0 reads t+1, frame 1" in str(failure.value)
