"""What is true of the ops that compute: the end of a residual block, and 1x1 convolutions."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .cases import ShiftCase, moved_to
from .comparison import assert_close, assert_same_bits, different_bits

__all__ = [
    "conv_arguments",
    "conv_gradients_match",
    "conv_matches",
    "convolution_arguments",
    "convolution_matches",
    "depthwise_arguments",
    "depthwise_matches",
    "residual_arguments",
    "residual_gradients_match",
    "residual_matches",
    "stem_arguments",
    "stem_matches",
    "step_conv_arguments",
    "step_conv_matches",
]

# the kernel, its stride, padding and dilation
DEPTHWISE_FORMS = (
    ((3, 3), [1, 1], [1, 1], [1, 1]),
    ((3, 3), [2, 2], [1, 1], [1, 1]),
    ((5, 5), [1, 1], [2, 2], [1, 1]),
    ((5, 3), [3, 3], [2, 1], [1, 1]),
    ((3, 3), [1, 1], [2, 2], [2, 2]),
)
# a side of the kernel, its stride and padding
STEM_FORMS = ((3, 2, 1), (7, 2, 3), (3, 1, 1), (4, 4, 2))
# a gradient is the sum of thousands of terms
GRADIENT_SCALE = 16


def residual_arguments(case: ShiftCase, activation: str) -> tuple[Any, ...]:
    """Arguments of `residual_shift` around `case.x` as the branch, `[F, C, H, W]`, on the CPU.

    Bits of the case's seed decide whether there are a scale and a bias, and whether they are fp32.
    """
    generator = case.generator()
    dtype = case.dtype if case.seed & 4 else torch.promote_types(torch.float32, case.dtype)
    identity = torch.randn(case.shape, generator=generator).to(case.dtype)
    # of stride 2, as a parameter's may be
    scale, bias = torch.randn(case.channels, 2, generator=generator, dtype=torch.float64).to(dtype).unbind(1)
    pair = (scale if case.seed & 1 else None, bias if case.seed & 2 else None)
    return (case.x, *pair, identity, *case.shift[:4], activation)


def residual_matches(op: Any, case: ShiftCase, activation: str, device: str = "cpu") -> None:
    """`y` is the reference's within one rounding; `shifted` is the shift of that very `y`, to the bit."""
    arguments = residual_arguments(case, activation)
    y, shifted = _called(op, arguments, device)
    assert_close(y, reference.residual_shift(*arguments)[0])
    assert_same_bits(shifted.cpu(), reference.temporal_shift(y.cpu(), *case.shift))
    expected = torch.empty_like(case.x).stride()
    assert y.stride() == shifted.stride() == expected, (
        f"expected strides {expected}, got {y.stride()} and {shifted.stride()}"
    )


def residual_gradients_match(op: Any, case: ShiftCase, activation: str, device: str = "cpu") -> None:
    """The gradients are those of the reference, of both outputs or, by the seed, of either alone."""
    branch, *rest = residual_arguments(case, activation)
    branch = torch.nan_to_num(branch, nan=0.5, posinf=1.5, neginf=-2.5) / 16
    weights = torch.randn(2, *case.shape, generator=case.generator()).to(case.dtype)
    used = ("both", "y", "shifted")[case.seed % 3]

    def loss(function: Any, arguments: tuple[Any, ...]) -> Tensor:
        y, shifted = function(*arguments)
        of_y, of_shifted = (y * weights[0].to(y)).sum(), (shifted * weights[1].to(y)).sum()
        return of_y + of_shifted if used == "both" else of_y if used == "y" else of_shifted

    _same_gradients(loss, op, reference.residual_shift, (branch, *rest), device)


def conv_arguments(case: ShiftCase, c_out: int, activation: str) -> tuple[Any, ...]:
    """Arguments of `shift_conv1x1` on `case.x`, on the CPU, such that results are about one.

    Bits of the case's seed decide whether there are a bias and an identity, and the weight's rank.
    """
    generator = case.generator()
    x = torch.nan_to_num(case.x, nan=1.0, posinf=2.0, neginf=-3.0) / 64
    frames, channels, height, width = case.shape
    weight = torch.randn(c_out, channels, generator=generator).div(channels**0.5).to(case.dtype)
    weight = weight.t().contiguous().t() if case.seed & 8 else weight
    weight = weight[..., None, None] if case.seed & 4 else weight
    bias = torch.randn(c_out, generator=generator).to(case.dtype)
    identity = torch.randn(frames, c_out, height, width, generator=generator).to(case.dtype)
    pair = (bias if case.seed & 1 else None, identity if case.seed & 2 else None)
    return (x, weight, *pair, *case.shift[:4], activation)


def conv_matches(op: Any, case: ShiftCase, c_out: int, activation: str, device: str = "cpu") -> None:
    """The result is the reference's within two roundings, channels_last, and the input is as it was."""
    arguments = conv_arguments(case, c_out, activation)
    actual = _called(op, arguments, device)
    assert_close(actual, reference.shift_conv1x1(*arguments), roundings=2)
    _assert_channels_last(actual)


def convolution_arguments(case: ShiftCase, c_out: int, activation: str) -> tuple[Any, ...]:
    """Arguments of a 3x3 `convolution` of `case.x`, on the CPU; a bias and an identity as in `conv_arguments`."""
    x, _, bias, identity, *_ = conv_arguments(case, c_out, activation)
    weight = _kernel(case, (c_out, case.channels, 3, 3))
    return x, weight, bias, identity, [1, 1], [1, 1], [1, 1], 1, activation


def convolution_matches(op: Any, case: ShiftCase, c_out: int, activation: str, device: str = "cpu") -> None:
    """A 3x3 convolution with bias, residual and activation is torch's own within two roundings, channels_last."""
    arguments = convolution_arguments(case, c_out, activation)
    _convolves(op, arguments, arguments, device)


def depthwise_arguments(case: ShiftCase, activation: str) -> tuple[Any, ...]:
    """Arguments of a `depthwise_convolution` of `case.x`, of one of `DEPTHWISE_FORMS` by its seed, on the CPU."""
    x, _, bias, *_ = conv_arguments(case, case.channels, activation)
    size, *form = DEPTHWISE_FORMS[case.seed // 16 % len(DEPTHWISE_FORMS)]
    return x, _kernel(case, (case.channels, 1, *size)), bias, *form, activation


def depthwise_matches(op: Any, case: ShiftCase, activation: str, device: str = "cpu") -> None:
    """A convolution of each channel by itself is torch's own within two roundings, channels_last."""
    arguments = depthwise_arguments(case, activation)
    x, weight, bias, *form, _ = arguments
    _convolves(op, arguments, (x, weight, bias, None, *form, case.channels, activation), device)


def stem_arguments(case: ShiftCase, c_out: int, activation: str) -> tuple[Any, ...]:
    """Arguments of a `stem_convolution` of the first three channels of `case.x`, of one of `STEM_FORMS`, on the CPU."""
    x, *_ = conv_arguments(case, c_out, activation)
    size, stride, padding = STEM_FORMS[case.seed // 16 % len(STEM_FORMS)]
    x, weight = x[:, :3], _kernel(case, (c_out, min(3, case.channels), size, size))
    bias = torch.randn(c_out, generator=case.generator()).to(case.dtype)
    return x, weight, bias, [stride] * 2, [padding] * 2, activation


def stem_matches(op: Any, case: ShiftCase, c_out: int, activation: str, device: str = "cpu") -> None:
    """A convolution of few channels is torch's own within two roundings, channels_last."""
    arguments = stem_arguments(case, c_out, activation)
    x, weight, bias, *form, _ = arguments
    _convolves(op, arguments, (x, weight, bias, None, *form, [1, 1], 1, activation), device)


def _kernel(case: ShiftCase, shape: tuple[int, ...]) -> Tensor:
    fan_in = shape[1] * shape[2] * shape[3]
    return torch.randn(shape, generator=case.generator()).div(fan_in**0.5).to(case.dtype)


def _convolves(op: Any, arguments: tuple[Any, ...], of_torch: tuple[Any, ...], device: str) -> None:
    """Whether the op is torch's convolution of x, weight, bias, identity, its four numbers, and the activation."""
    *tensors, stride, padding, dilation, groups, activation = of_torch
    x, weight, bias, identity = (None if tensor is None else tensor.double() for tensor in tensors)
    convolve: Any = torch.nn.functional.conv2d
    wanted = convolve(x, weight, bias, stride, padding, dilation, groups)
    wanted = reference.activate(wanted if identity is None else wanted + identity, activation)
    actual = _called(op, arguments, device)
    assert_close(actual, wanted.to(tensors[0].dtype), roundings=2)
    _assert_channels_last(actual)


def conv_gradients_match(op: Any, case: ShiftCase, c_out: int, activation: str, device: str = "cpu") -> None:
    """The gradients of input, weight, bias and identity are those of the reference."""
    arguments = conv_arguments(case, c_out, activation)
    weights = torch.randn(case.frames, c_out, *case.shape[2:], generator=case.generator()).to(case.dtype)

    def loss(function: Any, arguments: tuple[Any, ...]) -> Tensor:
        y = function(*arguments)
        return (y * weights.to(y)).sum()

    _same_gradients(loss, op, reference.shift_conv1x1, arguments, device)


def step_conv_arguments(case: ShiftCase, c_out: int, activation: str) -> tuple[Any, ...]:
    """Arguments of `shift_step_conv1x1` on `case.x`, with a cache of `case.n_first` channels, on the CPU."""
    x, weight, bias, identity, *_ = conv_arguments(case, c_out, activation)
    return x, x[:, : case.n_first].flip(0), weight, bias, identity, activation


def step_conv_matches(op: Any, case: ShiftCase, c_out: int, activation: str, device: str = "cpu") -> None:
    """The result is the reference's of `x` behind its cache, and the new cache is `x`'s first channels."""
    arguments = step_conv_arguments(case, c_out, activation)
    x, cache, weight, bias, identity, _ = arguments
    out, kept = _called(op, arguments, device)
    shifted = torch.cat([cache, x[:, case.n_first :]], 1)
    expected = reference.shift_conv1x1(shifted, weight, bias, identity, 1, 0, 0, False, activation)
    assert_close(out, expected, roundings=2)
    assert_same_bits(kept.cpu(), x[:, : case.n_first])
    _assert_channels_last(out)


def _assert_channels_last(out: Tensor) -> None:
    assert out.is_contiguous(memory_format=torch.channels_last), (
        f"expected channels_last, got strides {out.stride()}"
    )


def _called(op: Any, arguments: tuple[Any, ...], device: str) -> Any:
    """What the op returns, and on its device each argument is as it was."""
    values = _on(device, arguments)
    before = [value.clone() if isinstance(value, Tensor) else value for value in values]
    results = op(*values)
    for number, (value, old) in enumerate(zip(values, before, strict=True)):
        if isinstance(value, Tensor) and different_bits(value, old).any():
            raise AssertionError(f"expected each argument left as it was, got argument {number} written")
    return results


def _on(device: str, arguments: tuple[Any, ...]) -> list[Any]:
    return [moved_to(value, device) if isinstance(value, Tensor) else value for value in arguments]


def _same_gradients(loss: Any, op: Any, expected: Any, arguments: tuple[Any, ...], device: str) -> None:
    gradients = []
    for function, where in ((op, device), (expected, "cpu")):
        values = [x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in _on(where, arguments)]
        tensors = [value for value in values if isinstance(value, Tensor)]
        gradients.append(torch.autograd.grad(loss(function, tuple(values)), tensors))
    for actual, wanted in zip(*gradients, strict=True):
        assert_close(actual / GRADIENT_SCALE, wanted / GRADIENT_SCALE, roundings=2)
