"""What `tsm-triton verify` checks of the ops on inputs of its own: torch's tests, forms, slopes and repeats."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ... import ops, reference
from ...activations import ACTIVATIONS
from ...functional import clip_boundaries
from ...testing import LAYOUTS, ShiftCase, assert_close, fused, laid_out, moved_to, properties

__all__ = ["activations", "gradcheck", "opcheck", "portable_forms", "repeats"]

Call = tuple[Any, tuple[Any, ...]]


def opcheck(device: str) -> str:
    """torch's own tests of a registration: schema, fake, autograd, aot_autograd."""
    calls = 0
    for layout in ("channels_last", "cropped"):
        differentiable, others = _samples(device, layout)
        for op, arguments in others:
            torch.library.opcheck(op, arguments)
            calls += 1
        for op, arguments in differentiable:
            torch.library.opcheck(op, arguments)
            wanted = [
                v.detach().clone().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v
                for v in arguments
            ]
            torch.library.opcheck(op, tuple(wanted))
            calls += 2
    return f"{calls} calls"


def _samples(device: str, layout: str) -> tuple[list[Call], list[Call]]:
    """Each op and its arguments: those with a derivative, and those that stand below autograd or refuse it."""
    shift = (2, 1, 2, False)
    x = laid_out(torch.randn(4, 8, 3, 3), layout).to(device)
    vectors, weight = torch.randn(2, 8, device=device), torch.randn(5, 8, device=device)
    cache, identity = x[:, :2].flip(0), torch.randn(4, 5, 3, 3, device=device)
    kernel, apiece = torch.randn(5, 8, 3, 3, device=device), torch.randn(8, 1, 3, 3, device=device)
    form = ([1, 1], [1, 1], [1, 1])
    differentiable: list[Call] = [
        (ops.temporal_shift, (x, *shift, 1)),
        (ops.temporal_shift_packed, (x, clip_boundaries([1, 3], 4, device), 1, 2, False, 1)),
        (ops.residual_shift, (x, *vectors, x.clone(), *shift, "relu")),
        (ops.shift_conv1x1, (x, weight, None, identity, *shift, "relu")),
        (ops.shift_step, (x, cache, 1)),
        (ops.shift_step_conv1x1, (x, cache, weight, None, identity, "relu")),
    ]
    others: list[Call] = [
        (ops.shift_step_into, (x, cache, torch.empty_like(cache), 1)),
        (
            ops.residual_shift_backward,
            (x, x.clone(), x.clone(), None, vectors[0], None, None, *shift, "relu"),
        ),
        (ops.convolution, (x, kernel, None, identity, *form, 1, "relu")),
        (ops.convolution, (x, kernel, None, None, [2, 1], [2, 1], [2, 1], 1, "relu")),
        (ops.depthwise_convolution, (x, apiece, vectors[0], *form, "relu")),
        (ops.stem_convolution, (x[:, :3], kernel[:, :3], vectors[0][:5], *form[:2], "relu")),
    ]
    return differentiable, others


def portable_forms(device: str) -> str:
    """What a file is given in the place of an op, in torch's own operators, computes the same."""
    samples = [
        call for layout in ("channels_last", "cropped") for part in _samples(device, layout) for call in part
    ]
    for layout in ("contiguous", "tokens"):
        x = laid_out(torch.randn(12, 8, 3, 3), layout).to(device)
        shifts = ((4, 3, 1, True), (4, 1, 3, False), (1, 2, 2, False), (12, 0, 8, True))
        samples += [(ops.temporal_shift, (x, *shift, LAYOUTS[layout])) for shift in shifts]
    # what others write is no result
    samples = [(op, arguments) for op, arguments in samples if op in ops.ATEN_FORMS]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for op, arguments in samples:
            pairs = zip(_as_list(op(*arguments)), _as_list(ops.ATEN_FORMS[op](*arguments)), strict=True)
            for expected, actual in pairs:
                assert_close(actual, expected, roundings=2)
    return f"{len(samples)} calls"


def _as_list(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def activations(device: str) -> str:
    """Values and slopes are torch's where an activation bends, far out where it is flat, and of NaN."""
    points = [-200.0, -6.0, -3.0, -1.0, -0.0, 0.0, 1.0, 3.0, 6.0, 200.0, torch.nan]
    for name in ACTIVATIONS:
        z = torch.tensor([points], dtype=torch.float64, requires_grad=True)
        expected = reference.activate(z, name)
        (slope,) = torch.autograd.grad(expected.sum(), z)
        branch = z.detach().float().to(device).requires_grad_()
        y, _ = ops.residual_shift(branch, None, None, torch.zeros_like(branch), 1, 0, 0, False, name)
        (actual,) = torch.autograd.grad(y.sum(), branch)
        assert_close(y.detach(), expected.detach().float())
        assert_close(actual, slope.float())
    return f"{len(ACTIVATIONS) * len(points)} values"


def gradcheck(device: str) -> str:
    """Both orders, forward and backward mode, against finite differences."""
    x, shift = _drawn(device, 2, 4, 1, 1), (2, 1, 2, False)
    samples: list[Call] = []
    # one whose derivative reads the output, one whose reads the input
    names = {activation.reads: name for name, activation in ACTIVATIONS.items() if activation.reads}
    for activation in names.values():
        normalised = (x, *_drawn(device, 2, 4), torch.randn_like(x))
        samples.append((ops.residual_shift, (*normalised, *shift, activation)))
    convolved = (x, _drawn(device, 3, 4), _drawn(device, 3), _drawn(device, 2, 3, 1, 1))
    packed = (_drawn(device, 4, 4, 1, 1), clip_boundaries([1, 3], 4, device))
    samples += [
        (ops.shift_conv1x1, (*convolved, *shift, names["input"])),
        (ops.temporal_shift_packed, (*packed, *shift[1:], 1)),
        (ops.shift_step, (x, _drawn(device, 2, 1, 1, 1), 1)),
    ]
    shifts = {"contiguous": (2, 1, 2, False), "channels_last": (1, 0, 2, True), "tokens": (4, 0, 3, False)}
    for layout, counts in shifts.items():
        x = laid_out(torch.randn(4, 4, 2, 1, dtype=torch.float64), layout).to(device)
        samples.append((ops.temporal_shift, (x, *counts, LAYOUTS[layout])))
    for op, arguments in samples:
        places = [i for i, v in enumerate(arguments) if isinstance(v, Tensor) and v.is_floating_point()]
        call = partial(_called_with, op, arguments, places)
        values = tuple(arguments[i].detach().requires_grad_() for i in places)
        torch.autograd.gradcheck(call, values, check_forward_ad=True, fast_mode=True)
        torch.autograd.gradgradcheck(call, values, fast_mode=True)
    return f"{2 * len(samples)} calls"


def _drawn(device: str, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(device)


def _called_with(op: Any, arguments: tuple[Any, ...], places: list[int], *values: Tensor) -> Any:
    given = dict(zip(places, values, strict=True))
    return op(*(given.get(i, value) for i, value in enumerate(arguments)))


def repeats(device: str) -> str:
    """The same bits again and again: a race, or memory that nobody wrote, would show."""
    # a hundred times, in frames of several programs, where programs run side by side
    size, times = (56, 100) if torch.device(device).type == "cuda" else (3, 3)
    calls = 0
    for layout in ("contiguous", "channels_last"):
        # the seed asks for every operand
        case = ShiftCase(
            num_segments=2, channels=24, height=size, width=size, n_first=3, n_second=3, layout=layout, seed=7
        )
        for call in _calls(case, device):
            properties.is_deterministic(call, case, device, repeats=times)
            calls += times
    return f"{calls} calls"


def _calls(case: ShiftCase, device: str) -> Iterator[Callable[..., Tensor | tuple[Tensor, ...]]]:
    """Each op on a case, as functions of what a shift takes."""
    yield ops.temporal_shift
    prepared = (
        (ops.residual_shift, fused.residual_arguments(case, "relu")),
        (ops.shift_conv1x1, fused.conv_arguments(case, 40, "relu")),
        (ops.shift_step, (case.x, case.x[:, :3].clone(), 1)),
        (ops.shift_step_conv1x1, fused.step_conv_arguments(case, 40, "relu")),
        (ops.convolution, fused.convolution_arguments(case, 40, "relu")),
        (ops.depthwise_convolution, fused.depthwise_arguments(case, "relu")),
        (ops.stem_convolution, fused.stem_arguments(case, 40, "relu")),
    )
    for op, arguments in prepared:
        values: list[Any] = [moved_to(x, device) if isinstance(x, Tensor) else x for x in arguments]
        yield lambda *_, op=op, values=values: op(*values)
        if op is ops.residual_shift:
            tracked = [x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in values]
            yield partial(_gradients_of_residual, tracked)


def _gradients_of_residual(tracked: list[Any], *_: Any) -> tuple[Tensor, ...]:
    y, shifted = ops.residual_shift(*tracked)
    return torch.autograd.grad((y * shifted).sum(), tracked[:4])
