"""The two convolutions around a shift as one op: its kernel and its separate form against the reference."""

from typing import Any

import pytest
import torch

from tsm_triton import ops, reference
from tsm_triton.testing import assert_same_bits, laid_out

# Of results of about one, two roundings in half precision.
TOLERANCES: dict[torch.dtype, dict[str, Any]] = {
    torch.float64: dict(rtol=1e-12, atol=1e-12),
    torch.float32: dict(rtol=1e-5, atol=1e-5),
    torch.float16: dict(rtol=8e-3, atol=8e-3),
}
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


def tensors(frames, c_in, c_mid, c_out, size, dtype=torch.float32, biased=True) -> list[torch.Tensor | None]:
    """x, weight, bias, identity, next_weight and next_bias, such that results are about one."""
    x, identity = torch.randn(frames, c_in, *size), torch.randn(frames, c_mid, *size)
    weight, next_weight = torch.randn(c_mid, c_in) / c_in**0.5, torch.randn(c_out, c_mid) / c_mid**0.5
    biases = (torch.randn(c_mid), torch.randn(c_out)) if biased else (None, None)
    values = (laid_out(x, "channels_last"), weight, biases[0], identity, next_weight, biases[1])
    return [None if value is None else value.to(dtype) for value in values]


def to(device, values) -> list[Any]:
    return [x.to(device) if isinstance(x, torch.Tensor) else x for x in values]


def close(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(
            one.cpu(), other.cpu(), equal_nan=True, check_stride=False, **TOLERANCES[one.dtype]
        )


@pytest.mark.parametrize(
    ("sizes", "shift"),
    [
        ((8, 16, 64, 16, (4, 4)), (8, 8, 8, True)),  # whole blocks of everything
        ((8, 16, 64, 16, (5, 3)), (4, 8, 8, False)),  # pixels that fill no tile
        ((6, 20, 100, 24, (3, 3)), (3, 12, 12, True)),  # clips, channels and folds that fill none
        ((4, 16, 40, 130, (2, 2)), (4, 5, 5, True)),  # too wide for the kernel
        ((4, 96, 32, 16, (2, 2)), (4, 4, 4, True)),  # in float32
        ((10, 8, 32, 8, (3, 1)), (5, 0, 4, True)),  # causal
        ((4, 8, 32, 8, (3, 1)), (1, 4, 4, True)),  # clips of one frame: nothing is read from elsewhere
        ((70, 8, 32, 8, (1, 2)), (70, 4, 4, True)),  # longer than a tile
        ((4, 8, 32, 8, (2, 2)), (2, 16, 16, True)),  # nothing stays
        ((4, 8, 32, 8, (2, 2)), (2, 0, 0, True)),  # nothing moves
        ((0, 8, 32, 8, (2, 2)), (2, 4, 4, True)),
    ],
)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_matches_the_reference(device, sizes, shift, dtype):
    arguments = to(device, tensors(*sizes, dtype))
    out = ops.conv1x1_shift_conv1x1(*arguments, *shift, "relu", "relu")
    close(out, reference.conv1x1_shift_conv1x1(*arguments, *shift))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in out)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_every_activation_with_and_without_bias(device, activation):
    for biased in (True, False):
        arguments = to(device, tensors(8, 16, 64, 16, (3, 3), biased=biased))
        rest = (4, 8, 8, True, activation, "none")
        close(
            ops.conv1x1_shift_conv1x1(*arguments, *rest), reference.conv1x1_shift_conv1x1(*arguments, *rest)
        )


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_poisoned_frame_reaches_only_the_frames_that_read_it(device, poison):
    x, weight, _, identity, next_weight, _ = tensors(6, 8, 32, 8, (2, 1), biased=False)
    for frame in range(6):
        poisoned = identity.clone()
        poisoned[frame, :2] = poison  # channels that t-1 reads
        arguments = to(device, (x, weight, None, poisoned, next_weight, None))
        y, z = ops.conv1x1_shift_conv1x1(*arguments, 3, 4, 4, True, "none", "none")
        assert [not y[t].isfinite().all() for t in range(6)] == [t == frame for t in range(6)]
        reached = [t == frame - 1 and t // 3 == frame // 3 for t in range(6)]
        assert [not z[t].isfinite().all() for t in range(6)] == reached


def test_gradients_are_those_of_the_two_convolutions(device):
    def tensor(*shape):
        return torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)

    inputs = (tensor(4, 3, 2, 1), tensor(8, 3), tensor(8), tensor(4, 8, 2, 1), tensor(3, 8), tensor(3))
    assert torch.autograd.gradcheck(
        lambda *inputs: ops.conv1x1_shift_conv1x1(*inputs, 2, 1, 1, True, "silu", "silu"),
        inputs,
        fast_mode=True,
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_opcheck(device):
    arguments = to(device, tensors(4, 8, 32, 8, (2, 2)))
    torch.library.opcheck(ops.conv1x1_shift_conv1x1, (*arguments, 2, 4, 4, True, "relu", "relu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(weight=torch.zeros(32, 9)), "weight must have shape"),
        (dict(identity=torch.zeros(4, 31, 2, 2)), "identity must have shape"),
        (dict(next_weight=torch.zeros(8, 31)), "weight must have shape"),
        (dict(next_bias=torch.zeros(9)), "bias must have shape"),
        (dict(num_segments=3), "divisible by num_segments=3"),
        (dict(n_future=40), "got 40 \\+ 4"),
        (dict(next_activation="gelu"), "got 'gelu'"),
    ],
)
def test_the_op_refuses_what_would_leave_its_memory(device, change, message):
    names = ("x", "weight", "bias", "identity", "next_weight", "next_bias")
    good: dict[str, Any] = dict(zip(names, tensors(4, 8, 32, 8, (2, 2)), strict=True))
    good |= dict(num_segments=2, n_future=4, n_past=4, future_first=True)
    good |= dict(activation="relu", next_activation="relu")
    with pytest.raises(ValueError, match=message):
        ops.conv1x1_shift_conv1x1(*to(device, (good | change).values()))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_on_a_gpu_matches_the_reference(dtype):
    arguments = to("cuda", tensors(16, 64, 256, 64, (14, 14), dtype))
    out = ops.conv1x1_shift_conv1x1(*arguments, 8, 32, 32, True, "relu", "relu")
    close(out, reference.conv1x1_shift_conv1x1(*arguments, 8, 32, 32))
    again = ops.conv1x1_shift_conv1x1(*arguments, 8, 32, 32, True, "relu", "relu")
    for one, other in zip(out, again, strict=True):
        assert_same_bits(one.cpu(), other.cpu())
