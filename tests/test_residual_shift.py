"""The fused end of a residual block: both forms against the reference, and the op inside torch."""

import os
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

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
    moved_to,
    shift_cases,
)

settings = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
# the interpreter computes in numpy, which warns where exp overflows to the infinity it should
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

# The interpreter truncates bf16 where a GPU rounds it.
DTYPES = (torch.float32, torch.float16, torch.float64)
FRAMES = tuple(name for name, axis in LAYOUTS.items() if axis == 1)
SHIFTS = [(4, 2, 2, False), (2, 3, 0, True), (4, 3, 1, True), (1, 2, 1, False), (2, 0, 0, False)]
activations = st.sampled_from(list(ACTIVATIONS))


@settings
@given(case=shift_cases(DTYPES, FRAMES), activation=activations)
def test_matches_the_reference_in_every_dtype_and_layout(device, case, activation):
    fused.residual_matches(ops.residual_shift, case, activation, device)


@settings
@given(case=shift_cases(DTYPES, FRAMES), activation=activations)
def test_writes_nothing_outside_its_outputs(device, case, activation):
    with guarded_memory():
        fused.residual_matches(ops.residual_shift, case, activation, device)


def test_bf16_matches_the_reference():
    branch, identity = torch.randn(2, 8, 16, 5, 5).bfloat16()
    scale, bias = torch.randn(2, 16)
    for activation in ACTIVATIONS:
        rest = (scale, bias, identity, 4, 2, 3, False, activation)
        y, shifted = ops.residual_shift(branch, *rest)
        assert_close(y, reference.residual_shift(branch, *rest)[0])
        assert_same_bits(shifted, reference.temporal_shift(y, 4, 2, 3))


@settings
@given(
    case=shift_cases((torch.float64, torch.float32), ("contiguous", "channels_last", "cropped"), max_clips=2),
    activation=activations,
)
def test_gradients_are_those_of_the_reference(device, case, activation):
    fused.residual_gradients_match(ops.residual_shift, case, activation, device)


@settings
@given(case=shift_cases(DTYPES, ("contiguous", "channels_last")), data=st.data())
def test_clips_do_not_mix(device, case, data):
    branch, scale, bias, identity, *shift = [
        moved_to(x, device) if isinstance(x, torch.Tensor) else x
        for x in fused.residual_arguments(case, "relu")
    ]
    clips = case.x.shape[0] // case.num_segments
    order = data.draw(st.permutations(range(clips)))

    def permuted(x):
        return x.unflatten(0, (clips, case.num_segments))[order].flatten(0, 1) if clips else x

    expected = ops.residual_shift(branch, scale, bias, identity, *shift)
    actual = ops.residual_shift(permuted(branch), scale, bias, permuted(identity), *shift)
    for one, other in zip(actual, expected, strict=True):
        assert_same_bits(one, permuted(other))


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("n_first", [3, 8])
@pytest.mark.parametrize("num_segments", [1, 2, 3])
def test_a_poisoned_frame_reaches_only_the_frames_that_read_it(
    device, activation, layout, n_first, num_segments
):
    shift = (num_segments, n_first, 4, False)
    for frame in (0, 2, 5):
        branch = torch.randn(6, 16, 3, 3)
        branch[frame] = torch.nan
        branch, identity = laid_out(branch, layout).to(device), torch.zeros(6, 16, 3, 3, device=device)
        y, shifted = ops.residual_shift(branch, None, None, identity, *shift, activation)
        read = reference.temporal_shift(branch.cpu(), *shift).isnan()
        assert torch.equal(y.isnan().cpu(), branch.isnan().cpu())
        assert torch.equal(shifted.isnan().cpu(), read)


@pytest.mark.parametrize("used", ["y", "shifted"])
def test_what_needs_no_gradient_gets_none(device, used):
    branch, identity = torch.randn(2, 4, 8, 3, 3, device=device)
    branch.requires_grad_()
    y, shifted = ops.residual_shift(branch, None, None, identity, 2, 2, 2, False, "relu")
    loss = (y if used == "y" else shifted).sum()
    loss.backward()
    assert branch.grad is not None
    assert identity.grad is None


@pytest.mark.parametrize(
    ("activation", "trained_scale", "kept"),
    [
        ("none", False, {"scale"}),
        ("relu", False, {"y", "scale"}),
        ("relu6", False, {"y", "scale"}),
        ("relu", True, {"y", "branch", "scale"}),
        ("silu", False, {"branch", "scale", "bias", "identity"}),
        ("hardswish", True, {"branch", "scale", "bias", "identity"}),
    ],
)
def test_the_backward_keeps_no_more_than_it_needs(activation, trained_scale, kept):
    tensors = {
        "branch": torch.randn(4, 8, 3, 3, requires_grad=True),
        "scale": torch.randn(8, requires_grad=trained_scale),
        "bias": torch.randn(8),
        "identity": torch.randn(4, 8, 3, 3),
    }
    y, _ = ops.residual_shift(*tensors.values(), 2, 2, 2, False, activation)
    saved = {x.data_ptr() for x in y.grad_fn.saved_tensors if x is not None}
    names = {name for name, x in (tensors | {"y": y}).items() if x.data_ptr() in saved}
    assert names == kept


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "frames_inner"])
def test_the_gradient_keeps_the_memory_format(device, layout):
    branch = laid_out(torch.randn(4, 8, 3, 3), layout).to(device).requires_grad_()
    identity = torch.randn(4, 8, 3, 3, device=device, requires_grad=True)
    y, shifted = ops.residual_shift(branch, None, None, identity, 2, 2, 2, False, "relu")
    torch.autograd.backward((y, shifted), (torch.ones_like(y), torch.randn_like(shifted)))
    assert branch.grad is not None
    assert branch.grad.stride() == branch.stride()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("layout", "shift"), [("contiguous", SHIFTS[0]), ("channels_last", SHIFTS[2]), ("contiguous", SHIFTS[1])]
)
def test_gradients_of_both_orders_are_right(device, activation, layout, shift):
    def tensor(*shape):
        x = torch.randn(shape, dtype=torch.float64)
        return (laid_out(x, layout) if len(shape) == 4 else x).to(device).detach().requires_grad_()

    # the interpreter takes a minute for every element by finite differences, a second for random directions
    fast: dict[str, Any] = {
        "fast_mode": torch.device(device).type == "cuda" or "TRITON_INTERPRET" in os.environ
    }
    inputs = (tensor(4, 6, 2, 1), tensor(6), tensor(6), tensor(4, 6, 2, 1))

    def call(*inputs):
        return ops.residual_shift(*inputs, *shift, activation)

    assert torch.autograd.gradcheck(call, inputs, **fast)
    if shift is SHIFTS[0]:
        assert torch.autograd.gradgradcheck(call, inputs, **fast)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize(
    ("layout", "activation"), [("contiguous", "silu"), ("channels_last", "relu"), ("cropped", "relu")]
)
def test_opcheck(device, layout, activation):
    branch, identity = (laid_out(torch.randn(4, 8, 3, 3), layout).to(device) for _ in range(2))
    scale, bias = torch.randn(2, 8, device=device)
    shift = (2, 2, 1, False, activation)
    torch.library.opcheck(ops.residual_shift, (branch, scale, bias, identity, *shift))
    torch.library.opcheck(ops.residual_shift, (branch, None, None, identity, *shift))
    trained = [x.detach().clone().requires_grad_() for x in (branch, scale, bias, identity)]
    torch.library.opcheck(ops.residual_shift, (*trained, *shift))
    y = torch.relu(branch)
    for grads in ((branch, identity), (branch, None), (None, identity)):
        saved = (y, None, scale, None, None) if activation == "relu" else (None, branch, None, bias, identity)
        torch.library.opcheck(ops.residual_shift_backward, (*grads, *saved, *shift))


@pytest.mark.parametrize(("layout", "activation"), [("channels_last", "relu"), ("contiguous", "silu")])
def test_inductor_trains_through_it_at_every_batch_size(layout, activation):
    torch.compiler.reset()
    scale, bias = torch.randn(8, requires_grad=True), torch.randn(8)

    def loss(branch, identity):
        y, shifted = functional.residual_shift(
            torch.tanh(branch), identity, 4, scale=scale, bias=bias, activation=activation
        )
        return (y * shifted.cos()).sum()

    compiled = torch.compile(loss, fullgraph=True)
    for clips in (1, 2):
        inputs = [laid_out(torch.randn(4 * clips, 8, 3, 3), layout).requires_grad_() for _ in range(2)]
        wanted = (*inputs, scale)
        expected = torch.autograd.grad(loss(*inputs), wanted)
        for actual, gradient in zip(torch.autograd.grad(compiled(*inputs), wanted), expected, strict=True):
            torch.testing.assert_close(actual, gradient, rtol=1e-4, atol=1e-4)


def test_exports_with_a_dynamic_number_of_clips():
    class Block(nn.Module):
        def forward(self, branch, identity):
            return functional.residual_shift(branch, identity, 4)

    clips = torch.export.Dim("clips", min=1, max=64)
    example = (torch.randn(8, 8, 3, 3), torch.randn(8, 8, 3, 3))
    shapes = {"branch": {0: 4 * clips}, "identity": {0: 4 * clips}}
    program = torch.export.export(Block(), example, dynamic_shapes=shapes).run_decompositions({})
    assert any(node.target is ops.residual_shift for node in program.graph.nodes)
    inputs = (torch.randn(20, 8, 3, 3), torch.randn(20, 8, 3, 3))
    for actual, expected in zip(program.module()(*inputs), Block()(*inputs), strict=True):
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
def test_the_function_is_the_plain_shift_of_the_block(device, direction):
    branch, identity = torch.randn(2, 8, 16, 3, 3, device=device)
    y, shifted = functional.residual_shift(branch, identity, 4, direction=direction)
    torch.testing.assert_close(y, torch.relu(branch + identity))
    assert_same_bits(shifted, functional.temporal_shift(y, 4, direction=direction))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(branch=[1]), TypeError, "branch must be a torch.Tensor, got list"),
        (dict(branch=torch.zeros(8, 16).int()), TypeError, "branch must hold floats, got torch.int32"),
        (dict(branch=torch.zeros(8)), ValueError, r"branch must have shape \[N\*T, C, ...\] .*, got \(8,\)"),
        (dict(identity=None), TypeError, "identity must be a torch.Tensor, got NoneType"),
        (
            dict(identity=torch.zeros(8, 8, 2, 2)),
            ValueError,
            r"identity must have shape .*, got \(8, 8, 2, 2\)",
        ),
        (
            dict(identity=torch.zeros(8, 16, 2, 2).half()),
            ValueError,
            "torch.float32 on cpu, got torch.float16",
        ),
        (dict(scale=torch.zeros(8)), ValueError, r"scale must have shape \(16,\), got \(8,\)"),
        (dict(bias=1.0), TypeError, "bias must be a torch.Tensor, got float"),
        (dict(bias=torch.zeros(16).double()), ValueError, "bias must be torch.float32 on cpu"),
        (dict(num_segments=3), ValueError, "branch must hold whole clips: .*num_segments=3, got 8 frames"),
        (dict(num_segments=True), TypeError, "num_segments must be an int"),
        (dict(shift_div=17), ValueError, "at least shift_div=17 channels on axis 1, got 16"),
        (dict(direction="left"), ValueError, "one of 'bidirectional', 'causal', got 'left'"),
        (dict(activation="gelu"), ValueError, "one of 'none', 'relu', .*, got 'gelu'"),
    ],
)
def test_bad_arguments_say_what_was_expected_and_got(arguments, error, message):
    good = dict(branch=torch.zeros(8, 16, 2, 2), identity=torch.zeros(8, 16, 2, 2), num_segments=4)
    with pytest.raises(error, match=message):
        functional.residual_shift(**(good | arguments))


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ((3, 1, 1, False, "relu"), "divisible by num_segments=3, got 8 frames"),
        ((4, 9, 8, False, "relu"), "between 0 and the 16 channels of axis 1, got 9 \\+ 8"),
        ((4, 1, 1, False, "gelu"), "got 'gelu'"),
    ],
)
def test_the_op_refuses_what_would_leave_its_memory(device, shift, message):
    branch, identity = torch.zeros(2, 8, 16, 2, 2, device=device)
    with pytest.raises(ValueError, match=message):
        ops.residual_shift(branch, None, None, identity, *shift)
    with pytest.raises(ValueError, match=r"identity must have shape \(8, 16, 2, 2\), got \(4, 16, 2, 2\)"):
        ops.residual_shift(branch, None, None, identity[:4], 4, 1, 1, False, "relu")
    with pytest.raises(ValueError, match=r"scale must have shape \(16,\), got \(8,\)"):
        ops.residual_shift(branch, branch[0, :8, 0, 0], None, identity, 4, 1, 1, False, "relu")


@pytest.mark.cuda
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bf16_on_a_gpu_matches_the_reference(layout, activation):
    branch, identity = (laid_out(torch.randn(8, 24, 7, 7), layout).bfloat16().cuda() for _ in range(2))
    scale, bias = torch.randn(2, 24, device="cuda")
    y, shifted = ops.residual_shift(branch, scale, bias, identity, 4, 3, 3, False, activation)
    expected = reference.residual_shift(branch, scale, bias, identity, 4, 3, 3, False, activation)[0]
    assert_close(y, expected)
    assert_same_bits(shifted.cpu(), reference.temporal_shift(y.cpu(), 4, 3, 3))


@pytest.mark.cuda
def test_is_captured_by_a_cuda_graph():
    branch, identity = torch.randn(2, 8, 16, 7, 7, device="cuda")

    def call():
        return ops.residual_shift(branch, None, None, identity, 4, 2, 2, False, "relu")

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    branch.copy_(torch.randn_like(branch))
    graph.replay()
    for actual, expected in zip(captured, call(), strict=True):
        assert_same_bits(actual.cpu(), expected.cpu())


def test_frames_that_the_kernel_cannot_count_take_torchs_operators(device, monkeypatch):
    monkeypatch.setattr(import_module("tsm_triton.ops.residual_shift"), "MAX_FRAME", 0)
    monkeypatch.setattr("tsm_triton.kernels.residual_shift.residual_shift", None)  # not called
    monkeypatch.setattr("tsm_triton.kernels.residual_shift.residual_shift_backward", None)
    case = ShiftCase(num_segments=3, channels=8, height=3, width=3, n_first=2, n_second=1, seed=3)
    fused.residual_matches(ops.residual_shift, case, "relu", device)
    fused.residual_gradients_match(ops.residual_shift, case, "silu", device)


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("fold", [(8, 8, False), (16, 0, True), (24, 8, True), (0, 0, False)])
def test_the_gather_of_narrow_pixels_gives_the_bits_of_the_scatter(device, monkeypatch, activation, fold):
    # vectors of 4 on fp32, so that no fold cuts one; the last channels' block reaches past the frame
    branch, identity = (laid_out(torch.randn(6, 32, 5, 3), "channels_last").to(device) for _ in range(2))
    scale, bias = torch.randn(2, 32, device=device)
    gathered = ops.residual_shift(branch, scale, bias, identity, 3, *fold, activation)
    monkeypatch.setattr("tsm_triton.kernels.residual_shift.GATHER_CHANNELS", 0)
    scattered = ops.residual_shift(branch, scale, bias, identity, 3, *fold, activation)
    for actual, expected in zip(gathered, scattered, strict=True):
        assert_same_bits(actual.cpu(), expected.cpu())
