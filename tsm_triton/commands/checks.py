"""What `tsm-triton verify` checks: the properties of `tsm_triton.testing`, and how the ops stand in torch."""

import copy
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import timm
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from .. import ops, reference
from ..finding import find_sites
from ..functional import clip_boundaries, fold_counts, temporal_shift
from ..hooks import is_patched, shift_disabled
from ..patching import patch, unpatch
from ..streaming import Streaming
from ..testing import (
    LAYOUTS,
    ShiftCase,
    assert_same_bits,
    fused,
    guarded_memory,
    laid_out,
    properties,
    ragged_cases,
    shift_cases,
)

__all__ = ["FORMS", "Check", "checks"]

# how the ops are run -> where, and whether Triton's interpreter serves CPU tensors
FORMS = {"cpu": ("copies", "interpreter"), "cuda": ("triton",)}
FRAMES = tuple(name for name, axis in LAYOUTS.items() if axis == 1)
# The interpreter truncates bf16 where a GPU rounds it, and its matrix product of bf16 is wrong.
FLOATS = {
    "copies": (torch.float32, torch.float16, torch.float64, torch.bfloat16),
    "interpreter": (torch.float32, torch.float16, torch.float64),
    "triton": (torch.float32, torch.float16, torch.float64, torch.bfloat16),
}
ACTIVATIONS = st.sampled_from(list(ops.ACTIVATIONS))


@dataclass(frozen=True)
class Check:
    """One line of the report. `run` says how much it ran, or raises what is wrong."""

    subject: str
    claim: str
    form: str
    run: Callable[[], str]


class Failed(AssertionError):
    """A property that does not hold; `reproducer` is Python that shows it again on the smallest case."""

    def __init__(self, message: str, reproducer: str) -> None:
        super().__init__(message)
        self.reproducer = reproducer


def checks(device: str, examples: int, start: int) -> list[Check]:
    """All checks for a device, the fast and the general first.

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
    return found


def _properties(form: str) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Subject, claim, the call that a reproducer prints, and the strategies of its arguments."""
    plain = {"case": shift_cases()}
    exact = {"case": shift_cases(dtypes=(torch.float64,), layouts=("contiguous", "channels_last", "tokens"))}
    whole = {"case": shift_cases(layouts=("contiguous", "channels_last", "nhwc", "tokens"))}
    poisoned = {"case": shift_cases(dtypes=(torch.float32, torch.bfloat16))}
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
        {"case": ragged_cases()},
    )
    yield (
        "step",
        "exchanges channels with the cache",
        "properties.step_exchanges_channels_with_the_cache",
        plain,
    )
    computed = {"case": shift_cases(FLOATS[form], FRAMES), "activation": ACTIVATIONS}
    trained = {
        "case": shift_cases((torch.float64, torch.float32), ("contiguous", "channels_last", "cropped"), 2),
        "activation": ACTIVATIONS,
    }
    outputs = {"c_out": st.sampled_from((1, 3, 16, 40, 70))}
    yield "residual", "matches the reference", "fused.residual_matches", computed
    yield "residual", "gradients match", "fused.residual_gradients_match", trained
    yield "conv1x1", "matches the reference", "fused.conv_matches", computed | outputs
    yield "conv1x1", "gradients match", "fused.conv_gradients_match", trained | outputs


_OPS = {
    "properties.packed_clips_are_each_clip_alone": "ops.temporal_shift_packed",
    "properties.step_exchanges_channels_with_the_cache": "ops.shift_step",
    "fused.residual_matches": "ops.residual_shift",
    "fused.residual_gradients_match": "ops.residual_shift",
    "fused.conv_matches": "ops.shift_conv1x1",
    "fused.conv_gradients_match": "ops.shift_conv1x1",
}


def _hold(form: str, call: str, arguments: dict[str, Any], device: str, examples: int, start: int) -> str:
    """Try a property on many cases; of a failure keep the smallest."""
    module, name = call.split(".")
    function = getattr({"properties": properties, "fused": fused}[module], name)
    op = _OPS.get(call, "ops.temporal_shift")
    last: dict[str, Any] = {}

    @seed(start + zlib.crc32(f"{form} {call}".encode()))  # other cases for each property
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=[*HealthCheck.__members__.values()],
        phases=(Phase.generate, Phase.shrink),
    )
    @given(**arguments)
    def hold(**values: Any) -> None:
        last.update(values)
        with guarded_memory():
            function(getattr(ops, op.removeprefix("ops.")), **values, device=device)

    try:
        with interpreted(form):
            hold()
    except Exception as error:
        said = ", ".join(f"{name}={value!r}" for name, value in last.items())
        raise Failed(
            f"{type(error).__name__}: {error}", f"{call}({op}, {said}, device={device!r})"
        ) from error
    return f"{examples} cases"


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


def _opcheck(device: str) -> str:
    """torch's own tests of a registration: schema, fake, autograd, aot_autograd."""
    shift = (2, 1, 2, True)
    calls = 0
    for layout in ("channels_last", "cropped"):
        x = laid_out(torch.randn(4, 8, 3, 3), layout).to(device)
        vectors, weight = torch.randn(2, 8, device=device), torch.randn(5, 8, device=device)
        samples = (
            (ops.temporal_shift, (x, *shift, 1)),
            (ops.temporal_shift_packed, (x, clip_boundaries([1, 3], 4, device), 1, 2, True, 1)),
            (ops.residual_shift, (x, *vectors, x.clone(), *shift, "relu")),
            (ops.shift_conv1x1, (x, weight, None, None, *shift, "relu")),
            (ops.shift_step, (x, x[:, :2].clone(), 1)),
        )
        for op, arguments in samples:
            torch.library.opcheck(op, arguments)
            wanted = [
                v.detach().clone().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v
                for v in arguments
            ]
            torch.library.opcheck(op, tuple(wanted))
            calls += 2
    return f"{calls} calls"


def _gradcheck(device: str) -> str:
    """Both orders, forward and backward mode, against finite differences."""
    calls = 0
    shifts = {"contiguous": (2, 1, 2, True), "channels_last": (1, 2, 0, False), "tokens": (4, 0, 3, True)}
    for layout, shift in shifts.items():
        x = laid_out(torch.randn(4, 4, 2, 1, dtype=torch.float64), layout).to(device).requires_grad_()
        call = partial(_call_shift, shift, LAYOUTS[layout])
        torch.autograd.gradcheck(call, x, check_forward_ad=True, fast_mode=True)
        torch.autograd.gradgradcheck(call, x, fast_mode=True)
        calls += 2
    return f"{calls} calls"


def _call_shift(shift: tuple[Any, ...], channel_dim: int, x: Tensor) -> Tensor:
    return ops.temporal_shift(x, *shift, channel_dim)


def _repeats(device: str) -> str:
    """The same bits a hundred times: a race, or memory that nobody wrote, would show."""
    # frames of several programs where a GPU runs them, of one where the interpreter does
    size = 56 if torch.device(device).type == "cuda" else 3
    for layout in ("contiguous", "channels_last"):
        case = ShiftCase(
            num_segments=2, channels=24, height=size, width=size, n_future=3, n_past=3, layout=layout
        )
        properties.is_deterministic(ops.temporal_shift, case, device, repeats=100)
    return "200 calls"


def _frames_beyond_32_bits(device: str) -> str:
    """Every frame counts as larger than 2**31 elements, so that its offsets are computed in 64 bits."""
    from ..kernels import temporal_shift as kernel

    with mock.patch.object(kernel, "INT32_FRAME", 0):
        for layout in LAYOUTS:
            case = ShiftCase(2, 3, channels=24, height=3, width=3, n_future=3, n_past=5, layout=layout)
            properties.matches_reference(kernel.temporal_shift, case, device)
    return f"{len(LAYOUTS)} calls"


def _tensors_beyond_32_bits(device: str) -> str:
    """More than 2**31 elements, where there is a GPU to hold them; their shapes everywhere."""
    for shape in ((2**16, 2**16, 2), (8, 2**33)):
        assert ops.temporal_shift(torch.empty(shape, device="meta"), 8, 1, 1, True, 1).shape == shape
    if torch.device(device).type != "cuda":
        return "shapes only"
    x = torch.empty(8, 64, 2049, 2048, dtype=torch.int8, device=device).random_(-128, 128)
    y = ops.temporal_shift(x, 8, 8, 8, True, 1)
    assert torch.equal(y[:-1, :8], x[1:, :8]), "expected the next frame's channels"
    assert torch.equal(y[1:, 8:16], x[:-1, 8:16]), "expected the previous frame's channels"
    assert torch.equal(y[:, 16:], x[:, 16:]), "expected the other channels unchanged"
    assert not y[-1, :8].any(), "expected zeros behind the clip's end"
    assert not y[0, 8:16].any(), "expected zeros before the clip's start"
    return "2 GiB"


def _compiles(device: str) -> str:
    """Inductor, one graph, two batch sizes, forward and backward."""
    conv = nn.Conv2d(16, 16, 1).to(device)

    def loss(x: Tensor) -> Tensor:
        return conv(temporal_shift(torch.relu(x), 4)).square().sum()

    compiled = torch.compile(loss, fullgraph=True)
    for clips in (1, 2):
        x = torch.randn(4 * clips, 16, 3, 3, device=device, requires_grad=True)
        (expected,) = torch.autograd.grad(loss(x), x)
        (actual,) = torch.autograd.grad(compiled(x), x)
        torch.testing.assert_close(actual, expected)
    return "2 batch sizes"


def _exports(device: str) -> str:
    """`torch.export` with a dynamic number of clips."""
    model = patch(_small_model().to(device), num_segments=2)
    clips = torch.export.Dim("clips", min=1, max=8)
    frames = torch.randn(4, 3, 32, 32, device=device)
    program = torch.export.export(model, (frames,), dynamic_shapes=({0: 2 * clips},))
    frames = torch.randn(6, 3, 32, 32, device=device)
    torch.testing.assert_close(program.module()(frames), model(frames))
    return "2 batch sizes"


def _patched_model(device: str) -> str:
    """Each residual branch is shifted, no identity is, and the patch comes off to the bit."""
    model = _small_model().to(device)
    frames = torch.randn(8, 3, 32, 32, device=device)
    by_hand = copy.deepcopy(model)
    branches = [name for name, _ in model.named_modules() if name.endswith(".conv1")]
    for name in branches:
        by_hand.get_submodule(name).register_forward_pre_hook(_shift_by_reference)
    before, expected = model(frames), by_hand(frames)
    assert not torch.equal(before, expected), "expected a shift to change the output"

    found = [site.name for site in find_sites(model)]
    assert found == branches, f"expected sites {branches}, got {found}"
    patch(model, num_segments=4)
    assert_same_bits(model(frames), expected)
    with shift_disabled(model):
        assert_same_bits(model(frames), before)
    assert not is_patched(unpatch(model)), "expected no hook after unpatch"
    assert_same_bits(model(frames), before)
    return f"{len(branches)} sites"


def _streams(device: str) -> str:
    """Frame by frame equals the whole clip, with one of two streams reset in the middle."""
    model = patch(_small_model().to(device).double(), num_segments=3, direction="causal")
    first, second, other = torch.randn(3, 3, 3, 32, 32, device=device, dtype=torch.float64)
    stream = Streaming(model)
    long = torch.cat([other, torch.randn_like(other)])
    logits = [stream(torch.stack([a, b])) for a, b in zip(first, long, strict=False)]
    stream.reset([0])
    logits += [stream(torch.stack([a, b])) for a, b in zip(second, long[3:], strict=True)]
    streamed = torch.stack(logits)
    torch.testing.assert_close(streamed[:3, 0], model(first))
    torch.testing.assert_close(streamed[3:, 0], model(second))
    patch(unpatch(model), num_segments=6, direction="causal")
    torch.testing.assert_close(streamed[:, 1], model(long))
    return "2 streams"


def _small_model() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        # residual branches begin at zero in training: here they must be seen
        if parameter.dim() == 1 and name.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def _shift_by_reference(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *rest = args
    return reference.temporal_shift(x, 4, *fold_counts(x.shape[1], 8, "bidirectional")), *rest


_OF_EACH_FORM = (
    ("shift", "100 repeats give the same bits", _repeats),
    ("ops", "torch.library.opcheck", _opcheck),
    ("shift", "gradients of both orders", _gradcheck),
)
_OF_KERNELS = (("shift", "frames beyond 2**31 elements", _frames_beyond_32_bits),)
_ONCE = (
    ("shift", "tensors beyond 2**31 elements", _tensors_beyond_32_bits),
    ("model", "each branch is shifted, no identity is", _patched_model),
    ("stream", "frame by frame equals the clip", _streams),
    ("model", "exports with a dynamic batch", _exports),
    ("shift", "torch.compile, fullgraph", _compiles),
)
