"""What `tsm-triton verify` checks, in order: the properties of `tsm_triton.testing`, then ops, then models."""

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ... import ops
from ...activations import ACTIVATIONS
from ...testing import fused, guarded_memory, properties, ragged_cases, shift_cases
from ...testing.cases import CHANNEL_DIMS
from . import model_checks, op_checks, size_checks, video_checks
from .known_cases import C_OUT, FLOATS, FRAMES, known_cases

__all__ = ["FORMS", "Check", "checks"]

# how the ops are run -> where, and whether Triton's interpreter serves CPU tensors
FORMS = {"cpu": ("copies", "interpreter"), "cuda": ("triton",)}
NAMES = st.sampled_from(list(ACTIVATIONS))


@dataclass(frozen=True)
class Check:
    """One line of the report. `run` says how much it ran, or raises what is wrong."""

    subject: str
    claim: str
    form: str
    run: Callable[[], str]

    def __str__(self) -> str:
        return f"{self.subject:<9} {self.claim:<44} {self.form:<12}"


class Failed(AssertionError):
    """A property that does not hold; `reproducer` is Python that shows it again on the smallest case."""

    def __init__(self, message: str, reproducer: str) -> None:
        super().__init__(message)
        self.reproducer = reproducer


def checks(device: str, examples: int, start: int) -> list[Check]:
    """All checks for a device, the fast and the general first: with `--fail-fast` the order is the time.

    Args:
        device: a torch device, `"cpu"` or `"cuda:1"`.
        examples: cases for each property.
        start: the seed that the cases are drawn from.
    """
    forms = FORMS[torch.device(device).type]
    found = [
        Check(subject, claim, form, partial(_hold, form, call, arguments, device, examples, start))
        for form in forms
        for subject, claim, call, arguments in _properties(form)
    ]
    found += [Check(subject, claim, device, partial(function, device)) for subject, claim, function in _ONCE]
    for form in forms:
        for subject, claim, function in _OF_EACH_FORM if form == "copies" else _OF_KERNELS + _OF_EACH_FORM:
            found.append(Check(subject, claim, form, partial(_in_form, form, function, device)))
    found += [Check(subject, claim, device, partial(function, device)) for subject, claim, function in _SLOW]
    return found


def _properties(form: str) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Subject, claim, the call that a reproducer prints, and the strategies of its arguments."""
    plain = {"case": shift_cases(layouts=tuple(CHANNEL_DIMS))}
    # the interpreter walks the programs of each frame one by one
    clips = 1 if form == "interpreter" else 3
    exact = {
        "case": shift_cases((torch.float64,), ("contiguous", "channels_last", "tokens"), max_clips=clips),
    }
    whole = {"case": shift_cases(layouts=("contiguous", "channels_last", "nhwc", "tokens"))}
    poisoned = {"case": shift_cases(dtypes=(torch.float32, torch.bfloat16), max_clips=clips)}
    yield "shift", "matches the reference, writes nowhere else", "properties.matches_reference", plain
    yield "shift", "keeps the memory format", "properties.keeps_the_memory_format", plain
    yield "shift", "clips do not mix", "properties.clips_do_not_mix", whole
    yield "shift", "untouched channels are untouched", "properties.untouched_channels_are_untouched", plain
    yield "shift", "a poisoned frame stays", "properties.poison_reaches_only_its_readers", poisoned
    yield "shift", "is linear", "properties.is_linear", exact
    yield "shift", "has its adjoint", "properties.the_adjoint_undoes_the_inner_product", exact
    yield (
        "packed",
        "clips of any length stay apart",
        "properties.packed_clips_are_each_clip_alone",
        {"case": ragged_cases(layouts=tuple(CHANNEL_DIMS))},
    )
    yield (
        "step",
        "exchanges channels with the cache",
        "properties.step_exchanges_channels_with_the_cache",
        plain,
    )
    yield "step", "writes the cache where it reads it", "properties.step_writes_the_cache_in_place", plain
    computed = {"case": shift_cases(FLOATS[form], FRAMES), "activation": NAMES}
    trained = {
        "case": shift_cases((torch.float64, torch.float32), ("contiguous", "channels_last", "cropped"), 2),
        "activation": NAMES,
    }
    outputs = {"c_out": st.sampled_from(C_OUT)}
    yield "residual", "matches the reference", "fused.residual_matches", computed
    yield "residual", "gradients match", "fused.residual_gradients_match", trained
    yield "conv1x1", "matches the reference", "fused.conv_matches", computed | outputs
    yield "conv1x1", "gradients match", "fused.conv_gradients_match", trained | outputs
    yield "conv1x1", "of a step is the step and it", "fused.step_conv_matches", computed | outputs
    yield "convolve", "3x3 matches torch's", "fused.convolution_matches", computed | outputs
    few = {"case": shift_cases(FLOATS[form], FRAMES, max_clips=clips).map(partial(replace, num_segments=1))}
    yield "convolve", "each channel matches torch's", "fused.depthwise_matches", computed | few
    yield "convolve", "the stem matches torch's", "fused.stem_matches", computed | outputs


_OPS = {
    "properties.packed_clips_are_each_clip_alone": "ops.temporal_shift_packed",
    "properties.step_exchanges_channels_with_the_cache": "ops.shift_step",
    "properties.step_writes_the_cache_in_place": "ops.shift_step_into",
    "fused.residual_matches": "ops.residual_shift",
    "fused.residual_gradients_match": "ops.residual_shift",
    "fused.conv_matches": "ops.shift_conv1x1",
    "fused.conv_gradients_match": "ops.shift_conv1x1",
    "fused.step_conv_matches": "ops.shift_step_conv1x1",
    "fused.convolution_matches": "ops.convolution",
    "fused.depthwise_matches": "ops.depthwise_convolution",
    "fused.stem_matches": "ops.stem_convolution",
}


def _hold(form: str, call: str, arguments: dict[str, Any], device: str, examples: int, start: int) -> str:
    """Try a property on drawn cases, of which a failure comes as the smallest, and on known ones."""
    module, name = call.split(".")
    function = getattr({"properties": properties, "fused": fused}[module], name)
    op = _OPS.get(call, "ops.temporal_shift")
    last: dict[str, Any] = {}
    known: list[dict[str, Any]] = []
    if call == "properties.matches_reference" or (call in _OPS and "gradients" not in call):
        known = list(known_cases(form, arguments, packed="packed" in call))

    def attempt(**values: Any) -> None:
        last.update(values)
        with guarded_memory():
            function(getattr(ops, op.removeprefix("ops.")), **values, device=device)

    @seed(start + zlib.crc32(f"{form} {call}".encode()))  # other cases for each property
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list[Any](HealthCheck),  # its members that are not deprecated
        phases=(Phase.generate, Phase.shrink),
    )
    @given(**arguments)
    def hold(**values: Any) -> None:
        attempt(**values)

    try:
        with interpreted(form):
            hold()
            for values in known:
                attempt(**values)
    except Exception as error:
        said = ", ".join(f"{name}={value!r}" for name, value in last.items())
        raise Failed(
            f"{type(error).__name__}: {error}",
            f"with guarded_memory(): {call}({op}, {said}, device={device!r})",
        ) from error
    return f"{len(known) + examples} cases"


@contextmanager
def interpreted(form: str) -> Iterator[None]:
    """Let Triton's interpreter serve CPU tensors, or not."""
    with mock.patch.dict(os.environ):
        if form == "interpreter":
            os.environ["TRITON_INTERPRET"] = "1"
        else:
            os.environ.pop("TRITON_INTERPRET", None)
        yield


def _in_form(form: str, function: Callable[[str], str], device: str) -> str:
    with interpreted(form):
        return function(device)


_OF_EACH_FORM = (
    ("ops", "activations are torch's where they bend", op_checks.activations),
    ("ops", "torch.library.opcheck", op_checks.opcheck),
    ("ops", "gradients of both orders", op_checks.gradcheck),
    ("fuse", "a fused copy computes the same", model_checks.fused_model),
    ("fuse", "a fused stream computes the same", model_checks.fused_stream),
    ("ops", "repeats give the same bits", op_checks.repeats),
)
_OF_KERNELS = (
    ("shift", "frames beyond 2**31 elements", size_checks.frames_beyond_32_bits),
    ("conv1x1", "on the copy engine matches", size_checks.copy_engine),
    ("ops", "many small tiles match", size_checks.many_tiles),
)
_ONCE = (
    ("shift", "large maps match", size_checks.large_maps),
    ("ops", "forms for files compute the same", op_checks.portable_forms),
    ("shift", "tensors beyond 2**31 elements", size_checks.tensors_beyond_32_bits),
    ("model", "each branch is shifted, no identity is", model_checks.patched_model),
    ("model", "gradients are those of shifted copies", model_checks.trained_model),
    ("model", "a compiled model runs its own shifts", model_checks.patched_and_compiled),
    ("model", "a module that is replaced hands its shift on", model_checks.replaced_modules),
    ("frames", "are prepared as the model says", model_checks.prepared),
    ("frames", "come in the order they are shown in", video_checks.displayed_order),
    ("stream", "frame by frame equals the clip", model_checks.streams),
)
_SLOW = (
    ("model", "exports with a dynamic batch", model_checks.exports),
    ("shift", "torch.compile, fullgraph", model_checks.compiles),
)
