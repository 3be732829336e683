"""The op inside torch: registration, autograd, transforms, compile and export."""

import os

import pytest
import torch
from torch import nn

import tsm_triton
from tsm_triton import ops, reference
from tsm_triton.testing import LAYOUTS, assert_same_bits, laid_out

SHIFTS = [(4, 2, 2, False), (2, 3, 0, True), (4, 3, 1, True), (1, 2, 1, False), (4, 0, 0, False)]
DENSE = ("contiguous", "channels_last", "nhwc", "tokens", "frames_inner", "chunk_of_channels")


def frames(layout: str = "contiguous", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return laid_out(torch.randn(8, 8, 3, 3).to(dtype), layout)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shift", SHIFTS[:2])
def test_opcheck(device, layout, shift):
    x = frames(layout).to(device)
    arguments = (*shift, LAYOUTS[layout])
    torch.library.opcheck(ops.temporal_shift, (x, *arguments))
    torch.library.opcheck(ops.temporal_shift, (x.detach().clone().requires_grad_(), *arguments))


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("shift", SHIFTS)
def test_gradients_of_both_orders_and_modes_are_right(device, layout, shift):
    x = laid_out(torch.randn(4, 6, 2, 1, dtype=torch.float64), layout).to(device).detach().requires_grad_()

    def call(x):
        return ops.temporal_shift(x, *shift, LAYOUTS[layout])

    # the interpreter takes a minute for every element by finite differences, a second for random directions
    fast = x.is_cuda or "TRITON_INTERPRET" in os.environ
    assert torch.autograd.gradcheck(call, x, check_forward_ad=True, fast_mode=fast)
    assert torch.autograd.gradgradcheck(call, x, fast_mode=fast)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "tokens"])
def test_the_gradient_keeps_the_memory_format(device, layout):
    x = frames(layout).to(device).requires_grad_()
    y = ops.temporal_shift(x, 4, 2, 2, False, LAYOUTS[layout])
    (grad,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert grad.stride() == x.stride()


def test_no_graph_is_kept_where_no_gradient_is_wanted(device):
    assert ops.temporal_shift(frames().to(device), 4, 2, 2, False, 1).grad_fn is None
    with torch.no_grad():
        assert ops.temporal_shift(frames().to(device).requires_grad_(), 4, 2, 2, False, 1).grad_fn is None


def test_autocast_leaves_the_dtype_alone(device):
    with torch.autocast(device, dtype=torch.bfloat16):
        assert tsm_triton.temporal_shift(frames().to(device), 4).dtype == torch.float32
        half = frames().to(device).half()
        assert tsm_triton.temporal_shift(half, 4).dtype == torch.float16


@pytest.mark.parametrize("in_dim", [0, 1, 2, -1])
def test_vmap_is_the_shift_of_each(device, in_dim):
    x = torch.randn(5, 4, 8, 3, device=device)
    batched = torch.vmap(lambda x: tsm_triton.temporal_shift(x, 2), in_dims=in_dim, out_dims=in_dim)
    each = torch.stack([tsm_triton.temporal_shift(one, 2) for one in x])
    assert_same_bits(batched(x.movedim(0, in_dim)).movedim(in_dim, 0), each)
    tokens = torch.vmap(lambda x: tsm_triton.temporal_shift(x, 2, channel_dim=-1))(x.transpose(2, 3))
    assert_same_bits(tokens.transpose(2, 3), each)


@pytest.mark.parametrize("shape", [(2**16, 2**16, 2), (2**31 + 8, 8), (8, 2**33)])
def test_the_fake_takes_more_than_two_to_the_31_elements(shape):
    x = torch.empty(shape, device="meta")
    assert ops.temporal_shift(x, 8, 1, 1, False, 1).shape == shape


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "tokens"])
def test_compiles_in_one_graph_for_every_batch_size(layout):
    calls = []

    def counting_backend(graph, _):
        calls.append(graph)
        return graph.forward

    def model(x):
        shifted = tsm_triton.temporal_shift(torch.relu(x), 4, channel_dim=LAYOUTS[layout])
        return torch.relu(shifted)

    x = torch.randn(24, 16, 3, 3)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counting_backend)
    for clips in (2, 3, 6):
        batch = laid_out(x[: 4 * clips], layout)
        assert_same_bits(compiled(batch), model(batch))
    assert len(calls) == 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_inductor_trains_through_it(layout):
    torch.compiler.reset()
    conv = nn.Conv2d(8, 8, 1)

    def loss(x):
        return conv(tsm_triton.temporal_shift(torch.relu(x), 4)).square().sum()

    compiled = torch.compile(loss, fullgraph=True)
    for clips in (1, 2):
        x = laid_out(torch.randn(4 * clips, 8, 3, 3), layout).requires_grad_()
        (expected,) = torch.autograd.grad(loss(x), x)
        (actual,) = torch.autograd.grad(compiled(x), x)
        torch.testing.assert_close(actual, expected)


def test_inductor_keeps_the_op_on_cpu_and_decomposes_it_on_cuda():
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def targets(device):
        with FakeTensorMode():
            x = torch.empty(8, 16, 4, 4, device=device)
            tsm_triton.temporal_shift(x, 4)  # the first fake call is what registers the decomposition
            graph = make_fx(
                lambda x: tsm_triton.temporal_shift(x, 4), decomposition_table=select_decomp_table()
            )(x)
        return [node.target for node in graph.graph.nodes if node.op == "call_function"]

    assert targets("cpu") == [ops.temporal_shift]
    on_cuda = targets("cuda")
    assert ops.temporal_shift not in on_cuda
    assert torch.ops.aten.cat.default in on_cuda


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shift", SHIFTS)
def test_the_flat_form_is_the_shift(layout, shift):
    x = frames(layout)
    expected = reference.temporal_shift(x, *shift, channel_dim=LAYOUTS[layout])
    assert_same_bits(ops.ATEN_FORMS[ops.temporal_shift](x, *shift, LAYOUTS[layout]), expected)


@pytest.mark.parametrize("strict", [True, False])
def test_exports_with_a_dynamic_number_of_clips(strict):
    class Shift(nn.Module):
        def forward(self, x):
            return tsm_triton.temporal_shift(x, 4) + 1

    clips = torch.export.Dim("clips", min=1, max=64)
    program = torch.export.export(
        Shift(), (torch.randn(8, 8, 3, 3),), dynamic_shapes={"x": {0: 4 * clips}}, strict=strict
    )
    decomposed = program.run_decompositions({})
    assert any(node.target is ops.temporal_shift for node in decomposed.graph.nodes)
    x = torch.randn(20, 8, 3, 3)
    assert_same_bits(program.module()(x), Shift()(x))


@pytest.mark.cuda
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_tensor_beyond_32_bit_indices(layout):
    x = torch.empty(8, 64, 2049, 2048, dtype=torch.int8, device="cuda")
    x = torch.empty_like(x, memory_format=torch.channels_last) if layout == "channels_last" else x
    x.random_(-128, 128)
    assert x.numel() > 2**31
    y = ops.temporal_shift(x, 8, 8, 8, False, 1)
    assert torch.equal(y[:-1, :8], x[1:, :8])
    assert torch.equal(y[1:, 8:16], x[:-1, 8:16])
    assert torch.equal(y[:, 16:], x[:, 16:])
    assert y[-1, :8].count_nonzero() == y[0, 8:16].count_nonzero() == 0


@pytest.mark.cuda
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_a_frame_beyond_32_bit_indices(channel_dim):
    x = torch.empty(2, 2**12, 2**20 - 3, dtype=torch.int8, device="cuda").random_(-128, 128)
    x = x if channel_dim == 1 else torch.empty(2, 2**20, 2**12 - 8, dtype=torch.int8, device="cuda").random_()
    y = ops.temporal_shift(x, 2, 3, 3, False, channel_dim).movedim(channel_dim, 1)
    x = x.movedim(channel_dim, 1)
    assert torch.equal(y[0, :3], x[1, :3])
    assert torch.equal(y[1, 3:6], x[0, 3:6])
    assert torch.equal(y[:, 6:], x[:, 6:])
    assert y[1, :3].count_nonzero() == y[0, 3:6].count_nonzero() == 0


@pytest.mark.cuda
def test_runs_on_a_gpu_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = torch.randn(8, 8, 3, 3)
    elsewhere = ops.temporal_shift(x.to("cuda:1"), 4, 1, 1, False, 1)
    assert_same_bits(elsewhere.cpu(), tsm_triton.temporal_shift(x, 4))


@pytest.mark.cuda
def test_is_captured_by_a_cuda_graph():
    x = torch.randn(8, 16, 7, 7, device="cuda")
    ops.temporal_shift(x, 4, 2, 2, False, 1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.temporal_shift(x, 4, 2, 2, False, 1)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert_same_bits(y.cpu(), reference.temporal_shift(x.cpu(), 4, 2, 2, False, 1))


@pytest.mark.cuda
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_inductor_on_cuda_computes_the_same_forward_and_backward(layout):
    def loss(x):
        return (torch.relu(tsm_triton.temporal_shift(torch.relu(x), 4)) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True)
    for clips in (2, 3):
        x = laid_out(torch.randn(4 * clips, 16, 7, 7), layout).cuda().requires_grad_()
        (expected,) = torch.autograd.grad(loss(x), x)
        (actual,) = torch.autograd.grad(compiled(x), x)
        torch.testing.assert_close(actual, expected)
