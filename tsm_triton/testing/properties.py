"""What is true of every shift, as functions that fail with an `AssertionError`.

Each takes the implementation under test, `shift(x, num_segments, n_first, n_second, reverse,
channel_dim) -> Tensor`, a `ShiftCase`, and the device to run on. Nothing is random but the case. A failure says what
was expected and what came, at which frame and channel and of which case. `tsm_triton.testing.check_shift` runs all.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import functional, reference
from .cases import ShiftCase, moved_to
from .comparison import assert_same_bits, different_bits, in_words

__all__ = [
    "clips_do_not_mix",
    "is_deterministic",
    "is_linear",
    "keeps_the_memory_format",
    "matches_reference",
    "packed_clips_are_each_clip_alone",
    "poison_reaches_only_its_readers",
    "step_exchanges_channels_with_the_cache",
    "step_writes_the_cache_in_place",
    "the_adjoint_undoes_the_inner_product",
    "the_gradient_has_a_gradient",
    "the_gradient_is_the_adjoint",
    "untouched_channels_are_untouched",
]

Shift = Callable[..., Tensor]
Property = TypeVar("Property", bound=Callable[..., None])


def _names_its_case(hold: Property) -> Property:
    """Let a failure end with the case, to paste."""

    @functools.wraps(hold)
    def named(shift: Any, case: ShiftCase, *args: Any, **kwargs: Any) -> None:
        try:
            hold(shift, case, *args, **kwargs)
        except AssertionError as error:
            raise AssertionError(f"{error}\n    of {case!r}") from error

    return named  # pyright: ignore[reportReturnType]


@_names_its_case
def matches_reference(shift: Shift, case: ShiftCase, device: str = "cpu") -> None:
    """Every element is the reference's, to the bit, and the input is as it was."""
    actual = _shifted(shift, case.new_x(device), *case.shift).cpu()
    expected = reference.temporal_shift(case.x, *case.shift)
    _assert_same(actual, expected, case.axis, "", lambda t, c: _reading(case, actual, t, c))


@_names_its_case
def keeps_the_memory_format(shift: Shift, case: ShiftCase, device: str = "cpu", exact: bool = True) -> None:
    """The strides are those of `torch.empty_like(x)`; if not `exact`, those of axes that have a second element."""
    x = case.new_x(device)
    actual, expected = _shifted(shift, x, *case.shift).stride(), torch.empty_like(x).stride()
    if not exact:
        pairs = [
            pair for pair, size in zip(zip(actual, expected, strict=True), x.shape, strict=True) if size > 1
        ]
        if not x.numel() or all(ours == theirs for ours, theirs in pairs):
            return
    assert actual == expected, (
        f"expected the memory format of the input, strides {expected}, got {actual} for shape {tuple(x.shape)}"
    )


@_names_its_case
def the_adjoint_undoes_the_inner_product(shift: Shift, case: ShiftCase, device: str = "cpu") -> None:
    """`<S x, y> == <x, S' y>`, S' the shift with `reverse` flipped."""
    # integers this small are exact in float64: no tolerance
    x = _finite(case.x)
    y = torch.randint(-128, 128, x.shape, generator=case.generator()).double()
    forward = (_shifted(shift, moved_to(x.clone(), device), *case.shift).cpu() * y).sum()
    adjoint = (x * _shifted(shift, moved_to(y.clone(), device), *case.adjoint).cpu()).sum()
    assert forward == adjoint, f"expected <Sx, y> == <x, S'y>, got {forward} and {adjoint}"


@_names_its_case
def the_gradient_is_the_adjoint(shift: Shift, case: ShiftCase, device: str = "cpu") -> None:
    """The gradient behind `y` is the adjoint shift of `y`, to the bit: of a dense `y`, of a sum, in channels_last."""
    if not case.dtype.is_floating_point:
        return
    dense = case.new_gradient()
    # what stands behind may give it in another order of axes than x's
    turned = dense.movedim(1, -1).contiguous().movedim(-1, 1)
    of_a_sum = torch.ones((), dtype=case.dtype).expand(case.shape)
    for kind, y in (("", dense), (" of a sum", of_a_sum), (" in channels_last", turned)):
        _, gradient, behind = _differentiated(shift, case, y, device)
        _assert_same(
            behind.detach().cpu(), y, case.axis, f"the gradient{kind} that came in, which nobody may write: "
        )
        expected = reference.temporal_shift(y, *case.adjoint)
        _assert_same(gradient.detach().cpu() + 0.0, expected + 0.0, case.axis, f"the gradient{kind}: ")


@_names_its_case
def the_gradient_has_a_gradient(shift: Shift, case: ShiftCase, device: str = "cpu") -> None:
    """Behind the gradient stands the shift again: it can be differentiated once more, to the bit."""
    if not case.dtype.is_floating_point:
        return
    y, z = case.new_gradient(), replace(case, seed=case.seed + 1).new_gradient()
    _, gradient, behind = _differentiated(shift, case, y, device, again=True)
    assert gradient.requires_grad, (
        "expected a gradient that can be differentiated again, got one that is cut off from its graph"
    )
    (second,) = _gradient(gradient, behind, z.to(device), "a gradient of the gradient")
    _assert_same(
        second.detach().cpu() + 0.0,
        reference.temporal_shift(z, *case.shift) + 0.0,
        case.axis,
        "the gradient of the gradient: ",
    )


@_names_its_case
def is_linear(shift: Shift, case: ShiftCase, device: str = "cpu") -> None:
    """`S (a x + y) == a S x + S y`."""
    x = moved_to(_finite(case.x), device)
    y = torch.randint(-128, 128, x.shape, generator=case.generator()).double().to(device)
    scale = case.seed % 9 - 4
    combined = _shifted(shift, scale * x + y, *case.shift)
    apart = scale * _shifted(shift, x, *case.shift) + _shifted(shift, y, *case.shift)
    # + 0.0: a product with zero may be a negative zero
    _assert_same(combined + 0.0, apart + 0.0, case.axis, f"of S({scale} x + y), {scale} Sx + Sy: ")


@_names_its_case
def clips_do_not_mix(shift: Shift, case: ShiftCase, device: str = "cpu") -> None:
    """Clips in another order give the same results in that order, and each alone gives its own."""
    shifted = _shifted(shift, case.new_x(device), *case.shift)
    clips = case.x.unflatten(0, (-1, case.num_segments)) if case.clips else case.x[:0, None]
    order = torch.randperm(case.clips, generator=case.generator())
    permuted = moved_to(clips[order].flatten(0, 1).contiguous(), device)
    frames = torch.arange(case.frames).view(case.clips, case.num_segments)
    _assert_same(
        _shifted(shift, permuted, *case.shift),
        shifted[frames[order].flatten()],
        case.axis,
        f"the clips in order {order.tolist()}, each as it was in the batch: ",
    )
    for index in range(case.clips):
        alone = _shifted(shift, moved_to(clips[index].clone().contiguous(), device), *case.shift)
        _assert_same(alone, shifted[frames[index]], case.axis, f"clip {index} alone, as in the batch: ")


@_names_its_case
def untouched_channels_are_untouched(shift: Shift, case: ShiftCase, device: str = "cpu") -> None:
    """Channels behind the two groups stay, to the bit."""
    moved = case.n_first + case.n_second
    rest = (case.axis, moved, case.channels - moved)
    actual = _shifted(shift, case.new_x(device), *case.shift).cpu().narrow(*rest)
    _assert_same(actual, case.x.narrow(*rest), case.axis, f"of the channels from {moved} on, which stay: ")


@_names_its_case
def poison_reaches_only_its_readers(
    shift: Shift, case: ShiftCase, device: str = "cpu", poison: float = torch.nan
) -> None:
    """NaN or infinity in one frame is found in the channels that read this frame, and in no others.

    A dtype that knows neither holds its largest value instead, among zeros.
    """
    if not case.frames:
        return
    frame = case.seed % case.frames
    floats = case.dtype.is_floating_point or case.dtype.is_complex
    x = torch.zeros_like(case.x)
    x[frame] = poison if floats else case.dtype == torch.bool or torch.iinfo(case.dtype).max
    out = _shifted(shift, moved_to(x, device), *case.shift).cpu()
    values = out.movedim(case.axis, -1).reshape(case.frames, -1, case.channels)
    poisoned = ~values.isfinite() if floats else values != 0
    for t in range(case.frames):
        for channel in range(case.channels):
            source = _source(case, t, channel)
            wrong = poisoned[t, :, channel] != (source == frame)
            if wrong.any():
                got = values[t, wrong, channel][0].item()
                raise AssertionError(
                    f"expected channel {channel} of frame {t} {'' if source == frame else 'not '}to read frame "
                    f"{frame}, which holds {x[frame].flatten()[0].item()} among zeros, got {got}"
                )


@_names_its_case
def is_deterministic(shift: Any, case: ShiftCase, device: str = "cpu", repeats: int = 3) -> None:
    """Repeated calls give the same bits, in one tensor or in several; on CUDA on streams of their own, side by side."""
    x = moved_to(case.x, device)
    expected = shift(x, *case.shift)
    results = []
    for _ in range(repeats):
        if x.is_cuda:
            stream = torch.cuda.Stream(x.device)
            stream.wait_stream(torch.cuda.current_stream(x.device))
            with torch.cuda.stream(stream):
                results.append(shift(x, *case.shift))
        else:
            results.append(shift(x, *case.shift))
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    for result in results:
        pairs = [(result, expected)] if isinstance(result, Tensor) else zip(result, expected, strict=True)
        for actual, wanted in pairs:
            assert_same_bits(actual, wanted)


@_names_its_case
def packed_clips_are_each_clip_alone(packed: Shift, case: ShiftCase, device: str = "cpu") -> None:
    """Of `packed(x, boundaries, n_first, n_second, reverse, channel_dim)`: clips of any length, unmixed."""
    lengths = list(case.clip_lengths)
    boundaries = functional.clip_boundaries(lengths, case.frames, device)
    actual = packed(moved_to(case.x, device), boundaries, *case.groups)
    clips = [clip for clip in case.x.split(lengths) if len(clip)]
    alone = [reference.temporal_shift(clip, len(clip), *case.groups) for clip in clips]
    assert_same_bits(actual.cpu(), torch.cat(alone) if alone else case.x)
    expected = torch.empty_like(case.x).stride()
    assert actual.stride() == expected, f"expected strides {expected}, got {actual.stride()}"


@_names_its_case
def step_exchanges_channels_with_the_cache(step: Any, case: ShiftCase, device: str = "cpu") -> None:
    """Of `step(x, cache, channel_dim) -> (out, kept)`: the first channels come out of the cache, and go in."""
    rest = (case.axis, case.n_first, case.channels - case.n_first)
    cache = case.x.narrow(case.axis, 0, case.n_first).flip(0).contiguous()
    out, kept = step(moved_to(case.x, device), moved_to(cache, device), case.axis)
    assert_same_bits(out.cpu().narrow(case.axis, 0, case.n_first), cache)
    assert_same_bits(out.cpu().narrow(*rest), case.x.narrow(*rest))
    assert_same_bits(kept.cpu(), case.x.narrow(case.axis, 0, case.n_first))


@_names_its_case
def step_writes_the_cache_in_place(step_into: Any, case: ShiftCase, device: str = "cpu") -> None:
    """Of `step_into(x, cache, kept, channel_dim) -> out`: `kept` may be `cache`, and nothing else changes."""
    x = moved_to(case.x, device)
    before = case.x.narrow(case.axis, 0, case.n_first).flip(0).contiguous()
    cache = moved_to(before, device).clone()
    out = step_into(x, cache, cache, case.axis)
    rest = (case.axis, case.n_first, case.channels - case.n_first)
    assert_same_bits(out.cpu().narrow(case.axis, 0, case.n_first), before)
    assert_same_bits(out.cpu().narrow(*rest), case.x.narrow(*rest))
    assert_same_bits(cache.cpu(), case.x.narrow(case.axis, 0, case.n_first))


def _shifted(shift: Shift, x: Tensor, *arguments: Any) -> Tensor:
    """What the shift makes of `x`: a new tensor like it, and `x` as it was, or an `AssertionError` says what else."""
    before = x.detach().clone()
    out = shift(x, *arguments)
    _assert_same(x.detach(), before, arguments[-1], "the input left as it was, got it written: ")
    if not isinstance(out, Tensor):
        raise AssertionError(f"expected a tensor, got {type(out).__name__}")
    for what in ("shape", "dtype", "device"):
        expected, got = getattr(x, what), getattr(out, what)
        if expected != got:
            says = tuple if what == "shape" else str
            raise AssertionError(f"expected the {what} of the input, {says(expected)}, got {says(got)}")
    if out.numel() and out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
        what = "the input itself" if out is x else "a view of the input"
        raise AssertionError(f"expected a new tensor, got {what}: whoever writes one would write both")
    return out


def _assert_same(
    actual: Tensor, expected: Tensor, axis: int, claim: str, explain: Callable[[int, int], str] | None = None
) -> None:
    """Fail unless the bits are the same; the message says where, and which value was expected."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise AssertionError(
            f"expected {claim}{tuple(expected.shape)} {expected.dtype}, got {tuple(actual.shape)} {actual.dtype}"
        )
    different = different_bits(actual, expected)
    if not different.any():
        return
    where = tuple(different.nonzero()[0].tolist())
    t, c = where[0], where[axis % len(where)]
    more = f" (the first of {int(different.sum())} of {different.numel()} elements that differ, at {where})"
    raise AssertionError(
        f"expected {claim}{in_words(expected[where])} at frame {t}, channel {c}, got {in_words(actual[where])}"
        + more
        + (explain(t, c) if explain else "")
    )


def _offset(case: ShiftCase, channel: int) -> int:
    """How many frames on a channel reads."""
    sign = -1 if case.reverse else 1
    return 0 if channel >= case.n_first + case.n_second else sign if channel < case.n_first else -sign


def _source(case: ShiftCase, t: int, channel: int) -> int | None:
    """The frame that a channel of frame `t` reads; None where that lies outside the clip."""
    source = t + _offset(case, channel)
    return source if source // case.num_segments == t // case.num_segments else None


def _reading(case: ShiftCase, actual: Tensor, t: int, channel: int) -> str:
    """What a wrong channel of a frame should read, and what it seems to read."""
    source, offset = _source(case, t, channel), _offset(case, channel)
    if source is None:
        says = f"channel {channel} reads t{offset:+}, which lies outside the clip: zero, whatever the frames hold"
    else:
        says = f"channel {channel} reads " + (f"t{offset:+}, frame {source}" if offset else "its own frame")
    row = actual.select(case.axis, channel)[t]
    rows = case.x.select(case.axis, channel)
    for frame in sorted(range(case.frames), key=lambda frame: abs(frame - t)):
        if not different_bits(row, rows[frame]).any() and bool((row != 0).any()):
            clip = "" if frame // case.num_segments == t // case.num_segments else " of another clip"
            return f"; {says}; what came is frame {frame}{clip}, t{frame - t:+}"
    if source is None and not bool(row.isfinite().all()):
        return f"; {says}; NaN leaked: a zero may not be computed from values"
    return f"; {says}"


def _differentiated(
    shift: Shift, case: ShiftCase, y: Tensor, device: str, again: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, the gradient behind `y`, and `y` as it went in."""
    x = case.new_x(device).requires_grad_()
    out = _shifted(shift, x, *case.shift)
    assert out.requires_grad, (
        "expected a result that can be differentiated, got one without a gradient: give the op a backward, or pass "
        "gradients=False to check_shift"
    )
    # a clone keeps the strides of what is dense, and would write out what is expanded
    behind = moved_to(y if 0 in y.stride() else y.clone(), device).requires_grad_(again)
    return out, *_gradient(out, x, behind, "a gradient", create_graph=again), behind


def _gradient(of: Tensor, x: Tensor, behind: Tensor, what: str, **kwargs: Any) -> tuple[Tensor]:
    try:
        (gradient,) = torch.autograd.grad(of, x, behind, **kwargs)
    except Exception as error:
        raise AssertionError(f"expected {what}, got {type(error).__name__}: {error}") from error
    return (gradient,)


def _finite(x: Tensor) -> Tensor:
    x = x.real if x.is_complex() else x
    x = x if x.is_floating_point() or x.dtype == torch.bool else x % 128
    return torch.nan_to_num(x.double(), nan=1.0, posinf=2.0, neginf=3.0).round()
