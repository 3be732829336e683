"""All that is true of a shift, tried on one of your own."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from torch import Tensor

from . import properties
from .cases import CHANNEL_DIMS, DTYPES, LAYOUTS, ShiftCase, axes_of, shift_cases

__all__ = ["check_shift"]

WHOLE = ("contiguous", "channels_last", "nhwc", "tokens")  # the memory formats that a result keeps
# in this order: what a result is, before what is in it
PROPERTIES = (
    properties.matches_reference,
    properties.keeps_the_memory_format,
    properties.is_deterministic,
    properties.poison_reaches_only_its_readers,
    properties.clips_do_not_mix,
    properties.untouched_channels_are_untouched,
    properties.is_linear,
    properties.the_adjoint_undoes_the_inner_product,
)
# the first case, where everything happens: what fails everywhere is told on it, not on the smallest
FIRST = ShiftCase(clips=2, num_segments=3, channels=6, height=2, n_first=2, n_second=2)
GRADIENTS = (properties.the_gradient_is_the_adjoint, properties.the_gradient_has_a_gradient)


def check_shift(
    shift: Callable[..., Tensor],
    *,
    device: str = "cpu",
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    layouts: tuple[str, ...] = tuple(LAYOUTS),
    gradients: bool = True,
    examples: int = 50,
    seed: int = 0,
) -> None:
    """Run every property of a shift, and its gradients, on chosen and drawn cases; of these show the smallest failure.

    The values to the bit in each dtype and memory layout that is named, empty batches and one-frame clips among them;
    the input not written and not returned; shape, dtype, device and memory format; NaN and clips that stay where they
    are; the same bits each time; the first and the second gradient.

    Args:
        shift: one of two signatures.
            `shift(x, num_segments, n_first, n_second, reverse, channel_dim)`, as
            `torch.ops.tsm_triton.temporal_shift`: the first `n_first` channels read the next frame, the `n_second`
            behind them the previous one, with `reverse` the other way round, all given by place.
            `shift(x, num_segments, *, shift_div, direction, channel_dim)`, as `tsm_triton.temporal_shift`: told by a
            parameter called `shift_div`; those of the three that it has are given by name, and without `direction` it
            is bidirectional, without `channel_dim` the channels are axis 1.
        device: where its tensors lie.
        dtypes, layouts: which it takes; layouts are names of `LAYOUTS`, which is maps `[F, C, H, W]` and tokens
            `[F, L, C]`, and of `OTHER_RANKS`, which it is tried on where they are named: two and five axes.
        gradients: whether it has a backward.
        examples: cases for each property.
        seed: they are drawn from.

    Raises:
        AssertionError: what was expected, what came, at which frame and channel, and lines that show it again.

    Example:
        >>> import torch, tsm_triton
        >>> check_shift(tsm_triton.temporal_shift, examples=5)
        >>> check_shift(lambda x, num_segments, *shift: x.clone(), examples=5)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        AssertionError: matches_reference: expected -92.0 at frame 0, channel 0, got 44.0 (the first of 48 of 72 ...
    """
    names = _parameters(shift)
    by_division = "shift_div" in names
    if by_division and "channel_dim" not in names:
        layouts = tuple(name for name in layouts if CHANNEL_DIMS[name] == 1)
    called = _with_counts(shift, names) if by_division else shift
    for hold in PROPERTIES + (GRADIENTS if gradients else ()):
        kwargs: dict[str, Any] = {"dtypes": dtypes, "layouts": layouts}
        more: dict[str, Any] = {}
        if hold is properties.keeps_the_memory_format:
            kwargs["layouts"], more = tuple(name for name in layouts if name in WHOLE), {"exact": False}
        elif hold in GRADIENTS:
            kwargs["dtypes"] = tuple(dtype for dtype in dtypes if dtype.is_floating_point)
        elif hold is properties.the_adjoint_undoes_the_inner_product and by_division:
            continue  # its signature cannot say the adjoint
        if kwargs["layouts"] and kwargs["dtypes"]:
            cases = _divided_cases("direction" in names, **kwargs) if by_division else shift_cases(**kwargs)
            known = _known_cases(kwargs["dtypes"], kwargs["layouts"], by_division)
            _hold(hold, called, known, cases, examples, seed, device=device, **more)


def _known_cases(
    dtypes: tuple[torch.dtype, ...], layouts: tuple[str, ...], by_division: bool
) -> Iterator[ShiftCase]:
    """Each dtype and its bits, each layout with its axis in both spellings, and what is easily forgotten."""
    dtype = torch.float32 if torch.float32 in dtypes else dtypes[0]
    plain = replace(FIRST, dtype=dtype, layout="contiguous" if "contiguous" in layouts else layouts[0])
    yield from (plain, replace(plain, special=True, width=8))
    yield from (replace(plain, dtype=dtype, special=special) for special in (False, True) for dtype in dtypes)
    for layout in layouts:
        for axis in (CHANNEL_DIMS[layout], CHANNEL_DIMS[layout] % axes_of(layout)):
            yield replace(plain, layout=layout, channel_dim=axis, width=3)
    yield from (replace(plain, clips=0), replace(plain, num_segments=1), replace(plain, num_segments=17))
    yield replace(plain, channels=130, n_first=16, n_second=16)
    if not by_division:
        for n_first, n_second in ((2, 2), (1, 3), (2, 0), (0, 2), (0, 0), (3, 3), (6, 0)):
            for reverse in (False, True):
                yield replace(plain, n_first=n_first, n_second=n_second, reverse=reverse)


def _hold(
    hold: Callable[..., None],
    shift: Callable[..., Tensor],
    known: Iterable[ShiftCase],
    cases: Any,
    examples: int,
    seed: int,
    **kwargs: Any,
) -> None:
    def attempt(case: ShiftCase) -> None:
        try:
            hold(shift, case, **kwargs)
        except AssertionError:
            raise
        except Exception as error:
            arguments = ", ".join(map(repr, case.shift))
            raise AssertionError(
                f"expected a result of shift(x, {arguments}), got {type(error).__name__}: {error}\n"
                f"    of x {case.shape} {case.dtype} and {case!r}"
            ) from error

    @seeded(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list[Any](HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(case=cases)
    def drawn(case: ShiftCase) -> None:
        attempt(case)

    try:
        for case in known:
            attempt(case)
        drawn()
    except AssertionError as error:
        # Hypothesis adds notes and its own frames: the finding stands alone
        raise AssertionError(f"{hold.__name__}: {error}") from error.__cause__


def _parameters(shift: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(shift).parameters)
    except (TypeError, ValueError):  # of an operator, or of C
        return ()


def _with_counts(shift: Callable[..., Tensor], names: tuple[str, ...]) -> Callable[..., Tensor]:
    """A shift that takes `shift_div`, called with the counts that came of it."""

    def counted(x: Tensor, num_segments: int, n_first: int, _: int, causal: bool, channel_dim: int) -> Tensor:
        channels = x.shape[channel_dim]
        divs = range(1 if causal else 2, channels + 1)
        named = {
            "shift_div": next(div for div in divs if channels // div == n_first),
            "direction": "causal" if causal else "bidirectional",
            "channel_dim": channel_dim,
        }
        return shift(x, num_segments, **{name: value for name, value in named.items() if name in names})

    return counted


@st.composite
def _divided_cases(draw: Any, directed: bool, **kwargs: Any) -> ShiftCase:
    """`shift_cases` whose counts come of a `shift_div` and a direction."""
    case = draw(shift_cases(**kwargs))
    if case.channels < 2 and not directed:
        case = replace(case, channels=2)
    causal = case.channels < 2 or (directed and draw(st.booleans()))
    fold = case.channels // draw(st.integers(1 if causal else 2, case.channels))
    return replace(case, n_first=fold, n_second=0 if causal else fold, reverse=causal)
