"""The 1x1 convolution of the shifted input: both forms against the reference, and the op inside torch."""

import os
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tsm_triton import functional, ops, reference
from tsm_triton.activations import ACTIVATIONS
from tsm_triton.testing import (
    LAYOUTS,
    ShiftCase,
    assert_close,
    assert_same_bits,
    fused,
    guarded_memory,
    laid_out,
    shift_cases,
)

settings = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
# the interpreter computes in numpy, which warns where exp overflows to the infinity it should
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

# The interpreter's matrix product of bf16 is wrong.
DTYPES = (torch.float32, torch.float16, torch.float64)
FRAMES = tuple(name for name, axis in LAYOUTS.items() if axis == 1)
SHIFTS = [(4, 2, 2, False), (2, 3, 0, True), (4, 3, 1, True), (1, 2, 1, False), (2, 0, 0, False)]
activations = st.sampled_from(list(ACTIVATIONS))


def tensors(x, c_out, biased=True, added=True) -> tuple[Any, Any, Any]:
    """Weight, bias and identity for `x`, such that results are about one."""
    frames, c_in, height, width = x.shape
    weight = torch.randn(c_out, c_in).div(c_in**0.5).to(x.dtype)
    bias = torch.randn(c_out).to(x.dtype) if biased else None
    identity = torch.randn(frames, c_out, height, width).to(x.dtype) if added else None
    return weight, bias, identity


def to(device, *values) -> list[Any]:
    return [x.to(device) if isinstance(x, torch.Tensor) else x for x in values]


@settings
@given(case=shift_cases(DTYPES, FRAMES), c_out=st.sampled_from((1, 3, 16, 40, 70)), activation=activations)
def test_matches_the_reference(device, case, c_out, activation):
    with guarded_memory():
        fused.conv_matches(ops.shift_conv1x1, case, c_out, activation, device)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bf16_matches_the_reference(activation):
    x = torch.randn(8, 16, 5, 5).bfloat16()
    arguments = (x, *tensors(x, 24), 4, 2, 3, False, activation)
    assert_close(ops.shift_conv1x1(*arguments), reference.shift_conv1x1(*arguments), roundings=2)


@pytest.mark.parametrize("fold", [0, 3, 8, 20, 50])
def test_folds_may_end_anywhere_in_a_block_of_channels_and_rows_in_a_clip(device, fold):
    # more than one block of channels, of columns and of rows, none of them whole
    x = laid_out(torch.randn(6, 100, 7, 9), "channels_last")
    arguments = to(device, x, *tensors(x, 70), 3, fold, fold, False, "relu")
    assert_close(ops.shift_conv1x1(*arguments), reference.shift_conv1x1(*arguments), roundings=2)


def test_without_a_shift_it_is_the_convolution(device):
    x = torch.randn(4, 32, 3, 3)
    weight, bias, identity = tensors(x, 16)
    expected = torch.relu(F.conv2d(x, weight[..., None, None], bias) + identity)
    out = ops.shift_conv1x1(*to(device, x, weight, bias, identity, 4, 0, 0, False, "relu"))
    assert_close(out, expected, roundings=2)


@settings
@given(case=shift_cases((torch.float32,), ("channels_last",)), data=st.data())
def test_clips_do_not_mix(device, case, data):
    x = torch.nan_to_num(case.x, nan=1.0, posinf=2.0, neginf=-3.0) / 64
    clips = x.shape[0] // case.num_segments
    order = data.draw(st.permutations(range(clips)))

    def permuted(x):
        return x.unflatten(0, (clips, case.num_segments))[order].flatten(0, 1) if clips else x

    weight, bias, _ = to(device, *tensors(x, 8))
    rest = (weight, bias, None, *case.shift[:4], "relu")
    expected = ops.shift_conv1x1(x.to(device), *rest)
    assert_close(ops.shift_conv1x1(permuted(x).to(device), *rest), permuted(expected), roundings=2)


@pytest.mark.parametrize("num_segments", [1, 2, 3])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_poisoned_frame_reaches_only_the_frames_that_read_it(device, num_segments, poison):
    # one output for each group of channels, so that each shows what it read
    weight = torch.eye(4).to(device)
    for frame in range(6):
        x = torch.zeros(6, 4, 3, 3)
        x[frame, :2] = poison
        out = ops.shift_conv1x1(x.to(device), weight, None, None, num_segments, 1, 1, False, "none")
        read = reference.temporal_shift(x, num_segments, 1, 1)
        # what a frame reads is multiplied by every weight, zeros included
        reached = (~read.isfinite()).any(1, keepdim=True).expand_as(read)
        assert torch.equal(~out.isfinite().cpu(), reached)


@settings
@given(
    case=shift_cases((torch.float64, torch.float32), ("contiguous", "channels_last"), max_clips=2),
    activation=activations,
)
def test_gradients_are_those_of_the_reference(device, case, activation):
    fused.conv_gradients_match(ops.shift_conv1x1, case, 5, activation, device)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shift", [SHIFTS[0], SHIFTS[4]])
def test_gradients_of_both_orders_are_right(device, activation, shift):
    def tensor(*shape):
        return torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)

    # the interpreter takes a minute for every element by finite differences, a second for random directions
    fast: dict[str, Any] = {
        "fast_mode": torch.device(device).type == "cuda" or "TRITON_INTERPRET" in os.environ
    }
    inputs = (tensor(4, 5, 2, 1), tensor(3, 5), tensor(3), tensor(4, 3, 2, 1))

    def call(*inputs):
        return ops.shift_conv1x1(*inputs, *shift, activation)

    assert torch.autograd.gradcheck(call, inputs, **fast)
    assert torch.autograd.gradgradcheck(call, inputs, **fast)


@pytest.mark.parametrize(("activation", "kept"), [("none", 2), ("relu", 3), ("silu", 4)])
def test_the_backward_keeps_no_more_than_it_needs(activation, kept):
    x = torch.randn(4, 8, 3, 3, requires_grad=True)
    # x and weight; the output for relu; bias and identity to compute the pre-activation again for silu
    out = ops.shift_conv1x1(x, *tensors(x, 6), 2, 2, 2, False, activation)
    assert sum(saved is not None for saved in out.grad_fn.saved_tensors) == kept


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize(
    ("layout", "activation"), [("contiguous", "silu"), ("channels_last", "relu"), ("cropped", "relu")]
)
def test_opcheck(device, layout, activation):
    x = laid_out(torch.randn(4, 8, 3, 3), layout)
    values = to(device, x, *tensors(x, 6))
    shift = (2, 2, 1, False, activation)
    torch.library.opcheck(ops.shift_conv1x1, (*values, *shift))
    torch.library.opcheck(ops.shift_conv1x1, (*values[:2], None, None, *shift))
    trained = [x.detach().clone().requires_grad_() for x in values]
    torch.library.opcheck(ops.shift_conv1x1, (*trained, *shift))


@pytest.mark.parametrize(("layout", "activation"), [("channels_last", "relu"), ("contiguous", "silu")])
def test_inductor_trains_through_it_at_every_batch_size(layout, activation):
    torch.compiler.reset()
    weight = torch.randn(6, 8, requires_grad=True)

    def loss(x, identity):
        out = functional.shift_conv1x1(torch.tanh(x), weight, 4, identity=identity, activation=activation)
        return out.cos().square().sum()

    compiled = torch.compile(loss, fullgraph=True)
    for clips in (1, 2):
        x = laid_out(torch.randn(4 * clips, 8, 3, 3), layout).requires_grad_()
        identity = torch.randn(4 * clips, 6, 3, 3, requires_grad=True)
        expected = torch.autograd.grad(loss(x, identity), (x, identity, weight))
        actual = torch.autograd.grad(compiled(x, identity), (x, identity, weight))
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_exports_with_a_dynamic_number_of_clips():
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 8, 1, 1))

        def forward(self, x):
            return functional.shift_conv1x1(x, self.weight, 4)

    model, clips = Convolution().eval(), torch.export.Dim("clips", min=1, max=64)
    example = (torch.randn(8, 8, 3, 3),)
    program = torch.export.export(model, example, dynamic_shapes={"x": {0: 4 * clips}}).run_decompositions({})
    assert any(node.target is ops.shift_conv1x1 for node in program.graph.nodes)
    x = torch.randn(20, 8, 3, 3)
    assert_same_bits(program.module()(x), model(x))


@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
def test_the_function_is_the_convolution_of_the_plain_shift(device, direction):
    x = torch.randn(8, 16, 3, 3)
    weight, bias, _ = tensors(x, 12)
    expected = F.conv2d(functional.temporal_shift(x, 4, direction=direction), weight[..., None, None], bias)
    x, weight, bias = to(device, x, weight, bias)
    assert_close(
        functional.shift_conv1x1(x, weight, 4, bias=bias, direction=direction), expected, roundings=2
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(x=[1]), TypeError, "x must be a torch.Tensor, got list"),
        (dict(x=torch.zeros(8, 16, 2, 2).int()), TypeError, "x must hold floats, got torch.int32"),
        (dict(x=torch.zeros(8, 16, 2)), ValueError, r"shape \[N\*T, C_in, H, W\], got \(8, 16, 2\)"),
        (dict(weight=None), TypeError, "weight must be a torch.Tensor, got NoneType"),
        (dict(weight=torch.zeros(4, 8)), ValueError, r"\[C_out, 16\] or .*, got \(4, 8\)"),
        (dict(weight=torch.zeros(4, 16, 3, 3)), ValueError, r"got \(4, 16, 3, 3\)"),
        (dict(weight=torch.zeros(4, 16).half()), ValueError, "weight must be torch.float32 on cpu"),
        (dict(bias=torch.zeros(16)), ValueError, r"bias must have shape \(4,\), got \(16,\)"),
        (dict(identity=torch.zeros(8, 16, 2, 2)), ValueError, r"identity must have shape \(8, 4, 2, 2\)"),
        (dict(num_segments=3), ValueError, "x must hold whole clips: .*num_segments=3, got 8 frames"),
        (dict(shift_div=17), ValueError, "at least shift_div=17 channels on axis 1, got 16"),
        (dict(direction="left"), ValueError, "one of 'bidirectional', 'causal', got 'left'"),
        (dict(activation="gelu"), ValueError, "one of 'none', 'relu', .*, got 'gelu'"),
    ],
)
def test_bad_arguments_say_what_was_expected_and_got(arguments, error, message):
    good = dict(x=torch.zeros(8, 16, 2, 2), weight=torch.zeros(4, 16), num_segments=4)
    with pytest.raises(error, match=message):
        functional.shift_conv1x1(**(good | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(x=torch.zeros(8, 16, 4)), r"shape \[N\*T, C_in, H, W\], got \(8, 16, 4\)"),
        (dict(weight=torch.zeros(4, 8)), r"\[C_out, 16\] or \[C_out, 16, 1, 1\], got \(4, 8\)"),
        (dict(bias=torch.zeros(3)), r"bias must have shape \(4,\), got \(3,\)"),
        (dict(identity=torch.zeros(4, 4, 2, 2)), r"identity must have shape \(8, 4, 2, 2\)"),
        (dict(bias=torch.zeros(4).half()), "bias must be torch.float32 .* got torch.float16"),
        (dict(num_segments=3), "divisible by num_segments=3, got 8 frames"),
        (dict(n_first=16), "got 16 \\+ 1"),
        (dict(activation="gelu"), "got 'gelu'"),
    ],
)
def test_the_op_refuses_what_would_leave_its_memory(device, arguments, message):
    good = dict(x=torch.zeros(8, 16, 2, 2), weight=torch.zeros(4, 16), bias=None, identity=None)
    good |= dict(num_segments=4, n_first=1, n_second=1, reverse=False, activation="none")
    with pytest.raises(ValueError, match=message):
        ops.shift_conv1x1(*to(device, *(good | arguments).values()))


@pytest.mark.parametrize(
    ("rows", "c_out", "expected"),
    [
        (10**5, 3, {64}),
        (10**5, 128, {64, 128}),
        (10**5, 300, {64, 128}),
        (10**5, 512, {128, 256}),
        (64, 512, {64, 128}),
    ],
)
def test_the_tuner_tries_few_tiles_that_the_output_fills(rows, c_out, expected):
    from tsm_triton.kernels import shift_conv1x1 as kernel

    tuner = kernel._shift_conv1x1_kernel
    tuner.nargs = {}  # what the launcher's call, by name alone, leaves the tuner with
    arguments = {"x_ptr": torch.empty(0), "C_OUT": c_out, "rows": rows, "grid": None}
    tried = tuner.prune_configs(arguments)
    assert {config.kwargs["BLOCK_N"] for config in tried} == expected
    assert len(tried) <= 3
    assert tuner.prune_configs(arguments | {"x_ptr": torch.empty(0).double()}) == [kernel.FLOAT64_CONFIG]


def test_batches_of_like_sizes_share_a_tuning():
    from tsm_triton.kernels.shift_conv1x1 import _rows_bucket

    assert [_rows_bucket(rows) for rows in (1, 4, 5, 16, 17, 65537, 10**6)] == [
        1,
        4,
        16,
        16,
        64,
        65536,
        65536,
    ]


def test_tf32_is_used_where_torch_uses_it(monkeypatch):
    from tsm_triton.kernels import shift_conv1x1 as kernel

    monkeypatch.setattr(torch.version, "hip", None)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for chosen, expected in (("tf32", "tf32"), ("ieee", "ieee"), ("none", "ieee")):
            torch.backends.cuda.matmul.fp32_precision = chosen
            assert kernel.fp32_precision() == expected
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("c_out", [64, 200])
def test_on_a_gpu_matches_the_reference(dtype, c_out):
    x = laid_out(torch.randn(16, 256, 14, 14), "channels_last").to(dtype)
    arguments = to("cuda", x, *tensors(x, c_out), 8, 32, 32, False, "relu")
    assert_close(ops.shift_conv1x1(*arguments), reference.shift_conv1x1(*arguments), roundings=2)


@pytest.mark.cuda
def test_is_captured_by_a_cuda_graph():
    x = laid_out(torch.randn(8, 16, 7, 7), "channels_last").cuda()
    weight = torch.randn(8, 16, device="cuda")

    def call():
        return ops.shift_conv1x1(x, weight, None, None, 4, 2, 2, False, "relu")

    call()  # tunes
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert_same_bits(captured.cpu(), call().cpu())


def test_frames_that_the_kernel_cannot_count_take_torchs_operators(device, monkeypatch):
    monkeypatch.setattr(import_module("tsm_triton.ops.shift_conv1x1"), "MAX_FRAME", 0)
    monkeypatch.setattr("tsm_triton.kernels.shift_conv1x1.shift_conv1x1", None)  # not called
    case = ShiftCase(num_segments=3, channels=8, height=3, width=3, n_first=2, n_second=1, seed=3)
    fused.conv_matches(ops.shift_conv1x1, case, 5, "relu", device)
