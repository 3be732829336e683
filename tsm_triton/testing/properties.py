"""What is true of every shift, as functions that fail with an `AssertionError`.

Each takes the implementation under test, `shift(x, num_segments, n_future, n_past, future_first,
channel_dim) -> Tensor`, a `ShiftCase`, and the device to run on. Nothing is random but the case.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import functional, reference
from .cases import ShiftCase, moved_to
from .comparison import assert_same_bits

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
    "untouched_channels_are_untouched",
]

Shift = Callable[..., Tensor]


def matches_reference(shift: Shift, case: ShiftCase, device: str = "cpu") -> None:
    """Every element is the reference's, to the bit, and the input is as it was."""
    x = moved_to(case.x, device)
    before = x.clone()
    assert_same_bits(shift(x, *case.shift).cpu(), reference.temporal_shift(case.x, *case.shift))
    assert_same_bits(x, before)


def keeps_the_memory_format(shift: Shift, case: ShiftCase, device: str = "cpu") -> None:
    """The strides are those of `torch.empty_like(x)`."""
    x = moved_to(case.x, device)
    actual, expected = shift(x, *case.shift).stride(), torch.empty_like(x).stride()
    assert actual == expected, f"expected strides {expected}, got {actual}"


def the_adjoint_undoes_the_inner_product(shift: Shift, case: ShiftCase, device: str = "cpu") -> None:
    """`<S x, y> == <x, S' y>`, S' the shift with the two counts and their order exchanged."""
    # integers this small are exact in float64: no tolerance
    x = _finite(case.x)
    y = torch.randint(-128, 128, x.shape, generator=case.generator()).double()
    forward = (shift(moved_to(x, device), *case.shift).cpu() * y).sum()
    adjoint = (x * shift(moved_to(y, device), *case.adjoint).cpu()).sum()
    assert forward == adjoint, f"expected <Sx, y> == <x, S'y>, got {forward} and {adjoint}"


def is_linear(shift: Shift, case: ShiftCase, device: str = "cpu") -> None:
    """`S (a x + y) == a S x + S y`."""
    x = moved_to(_finite(case.x), device)
    y = torch.randint(-128, 128, x.shape, generator=case.generator()).double().to(device)
    scale = case.seed % 9 - 4
    combined = shift(scale * x + y, *case.shift)
    # + 0.0: a product with zero may be a negative zero
    assert_same_bits(combined + 0.0, scale * shift(x, *case.shift) + shift(y, *case.shift) + 0.0)


def clips_do_not_mix(shift: Shift, case: ShiftCase, device: str = "cpu") -> None:
    """Clips in another order give the same results in that order, and each alone gives its own."""
    shifted = shift(moved_to(case.x, device), *case.shift)
    clips = case.x.unflatten(0, (-1, case.num_segments)) if case.clips else case.x[:0, None]
    order = torch.randperm(case.clips, generator=case.generator())
    permuted = shift(moved_to(clips[order].flatten(0, 1).contiguous(), device), *case.shift)
    frames = torch.arange(case.frames).view(case.clips, case.num_segments)
    assert_same_bits(permuted, shifted[frames[order].flatten()])
    for index in range(case.clips):
        alone = shift(moved_to(clips[index].contiguous(), device), *case.shift)
        assert_same_bits(alone, shifted[frames[index]])


def untouched_channels_are_untouched(shift: Shift, case: ShiftCase, device: str = "cpu") -> None:
    """Channels behind the two groups stay, to the bit."""
    moved = case.n_future + case.n_past
    rest = (case.axis, moved, case.channels - moved)
    assert_same_bits(shift(moved_to(case.x, device), *case.shift).cpu().narrow(*rest), case.x.narrow(*rest))


def poison_reaches_only_its_readers(
    shift: Shift, case: ShiftCase, device: str = "cpu", poison: float = torch.nan
) -> None:
    """NaN or infinity in one frame is found in the channels that read this frame, and in no others."""
    if not case.frames:
        return
    frame = case.seed % case.frames
    x = torch.zeros_like(case.x)
    x[frame] = poison
    finite = shift(moved_to(x, device), *case.shift).cpu().isfinite()
    finite = finite.movedim(case.axis, -1).flatten(1, -2).all(1)
    first, second = (1, -1) if case.future_first else (-1, 1)
    n_first = case.n_future if case.future_first else case.n_past
    for t in range(case.frames):
        same_clip = t // case.num_segments == frame // case.num_segments
        for channel in range(case.channels):
            group = 0 if channel < n_first else 1 if channel < case.n_future + case.n_past else 2
            reads = same_clip and t + (first, second, 0)[group] == frame
            assert bool(finite[t, channel]) != reads, (
                f"expected channel {channel} of frame {t} {'' if reads else 'not '}to read frame {frame}"
            )


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


def packed_clips_are_each_clip_alone(packed: Shift, case: ShiftCase, device: str = "cpu") -> None:
    """Of `packed(x, boundaries, n_future, n_past, future_first, channel_dim)`: clips of any length, unmixed."""
    lengths = list(case.clip_lengths)
    boundaries = functional.clip_boundaries(lengths, case.frames, device)
    actual = packed(moved_to(case.x, device), boundaries, *case.groups)
    clips = [clip for clip in case.x.split(lengths) if len(clip)]
    alone = [reference.temporal_shift(clip, len(clip), *case.groups) for clip in clips]
    assert_same_bits(actual.cpu(), torch.cat(alone) if alone else case.x)
    expected = torch.empty_like(case.x).stride()
    assert actual.stride() == expected, f"expected strides {expected}, got {actual.stride()}"


def step_exchanges_channels_with_the_cache(step: Any, case: ShiftCase, device: str = "cpu") -> None:
    """Of `step(x, cache, channel_dim) -> (out, kept)`: the first channels come out of the cache, and go in."""
    rest = (case.axis, case.n_past, case.channels - case.n_past)
    cache = case.x.narrow(case.axis, 0, case.n_past).flip(0).contiguous()
    out, kept = step(moved_to(case.x, device), moved_to(cache, device), case.axis)
    assert_same_bits(out.cpu().narrow(case.axis, 0, case.n_past), cache)
    assert_same_bits(out.cpu().narrow(*rest), case.x.narrow(*rest))
    assert_same_bits(kept.cpu(), case.x.narrow(case.axis, 0, case.n_past))


def step_writes_the_cache_in_place(step_into: Any, case: ShiftCase, device: str = "cpu") -> None:
    """Of `step_into(x, cache, kept, channel_dim) -> out`: `kept` may be `cache`, and nothing else changes."""
    x = moved_to(case.x, device)
    before = case.x.narrow(case.axis, 0, case.n_past).flip(0).contiguous()
    cache = moved_to(before, device).clone()
    out = step_into(x, cache, cache, case.axis)
    rest = (case.axis, case.n_past, case.channels - case.n_past)
    assert_same_bits(out.cpu().narrow(case.axis, 0, case.n_past), before)
    assert_same_bits(out.cpu().narrow(*rest), case.x.narrow(*rest))
    assert_same_bits(cache.cpu(), case.x.narrow(case.axis, 0, case.n_past))


def _finite(x: Tensor) -> Tensor:
    return torch.nan_to_num(x.double(), nan=1.0, posinf=2.0, neginf=3.0)
