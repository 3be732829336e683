"""The convolutions of inference as ops: against torch's own, with every part, and refused where they would be wrong."""

import pytest
import torch
from torch.nn import functional as F

from tsm_triton.activations import ACTIVATIONS
from tsm_triton.ops import convolution, depthwise_convolution, stem_convolution

X = (4, 8, 9, 11)


def of(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def calls(activation: str = "relu") -> dict:
    """op -> its arguments, and the same in torch's own operators."""
    x, bias, few = of(*X), of(8), of(4, 3, 9, 11)
    plain, deep, first = of(8, 4, 3, 3), of(8, 1, 3, 5), of(8, 3, 7, 7)
    act = ACTIVATIONS[activation].function
    identity = of(4, 8, 5, 6)
    return {
        convolution: (
            (x, plain, bias, identity, [2, 2], [1, 1], [1, 1], 2, activation),
            lambda: act(F.conv2d(x, plain, bias, 2, 1, 1, 2) + identity),
        ),
        depthwise_convolution: (
            (x, deep, bias, [1, 1], [2, 4], [2, 2], activation),
            lambda: act(F.conv2d(x, deep, bias, 1, (2, 4), 2, 8)),
        ),
        stem_convolution: (
            (few, first, bias, [2, 2], [3, 3], activation),
            lambda: act(F.conv2d(few, first, bias, 2, 3)),
        ),
    }


OPS = pytest.mark.parametrize("op", list(calls()), ids=lambda op: op._schema.name)


@OPS
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_computes_what_the_separate_calls_do_in_channels_last(op, activation, layout):
    arguments, expected = calls(activation)[op]
    arguments = [
        a.contiguous(memory_format=layout) if isinstance(a, torch.Tensor) and a.dim() == 4 else a
        for a in arguments
    ]
    out = op(*arguments)
    torch.testing.assert_close(out, expected())
    assert out.is_contiguous(memory_format=torch.channels_last)


@OPS
def test_is_a_well_made_op(op):
    arguments, _ = calls()[op]
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(op, arguments, test_utils=tests)


@OPS
def test_refuses_what_is_of_another_shape_dtype_or_activation(op):
    arguments, _ = calls()[op]
    x, weight, bias, *rest = arguments
    with pytest.raises(ValueError, match="weight must have shape"):
        op(x[:, :-1], weight, bias, *rest)
    with pytest.raises(ValueError, match="weight must be torch.float64 on cpu, got torch.float32"):
        op(x, weight.float(), bias, *rest)
    with pytest.raises(ValueError, match=r"bias must have shape \(8,\), got \(7,\)"):
        op(x, weight, bias[:7], *rest)
    with pytest.raises(ValueError, match="activation must be one of"):
        op(x, weight, bias, *rest[:-1], "gelu")


def test_refuses_an_identity_of_another_shape():
    x, weight, bias, identity, *rest = calls()[convolution][0]
    with pytest.raises(ValueError, match=r"identity must have shape \(4, 8, 5, 6\), got \(1, 8, 5, 6\)"):
        convolution(x, weight, bias, identity[:1], *rest)


@OPS
def test_refuses_gradients(op):
    (x, weight, *rest), _ = calls()[op]
    with pytest.raises(RuntimeError, match="in inference, got an argument that requires a gradient"):
        op(x, weight.requires_grad_(), *rest)
    with torch.no_grad():
        op(x, weight, *rest)
