"""The op of one streaming frame: its values, its place in torch, and the kernel's code."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsm_triton import ops
from tsm_triton.kernels import shift_step as kernel
from tsm_triton.testing import LAYOUTS, assert_same_bits, laid_out, moved_to, shift_cases

from .codegen import TARGETS, compile_kernel

settings = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
DENSE = ("contiguous", "channels_last", "nhwc", "tokens", "frames_inner")


def expected(x: Tensor, cache: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    fold = cache.shape[dim]
    now, rest = x.split([fold, x.shape[dim] - fold], dim)
    return torch.cat([cache, rest], dim), now


def arguments(layout: str = "contiguous", fold: int = 3, device: str = "cpu") -> tuple[Tensor, Tensor, int]:
    x = laid_out(torch.randn(2, 16, 3, 3).to(device), layout)
    dim = LAYOUTS[layout]
    return x, torch.randn_like(x).narrow(dim, 0, fold).clone(), dim


@settings
@given(case=shift_cases(), same_layout=st.booleans())
def test_a_step_exchanges_the_first_channels_with_the_cache_bit_for_bit(device, case, same_layout):
    x, dim = moved_to(case.x, device), case.axis
    cache = torch.randint(-128, 128, x.shape, device=device).to(x.dtype).narrow(dim, 0, case.n_first)
    cache = cache.clone() if same_layout else cache
    before = x.clone(), cache.clone()
    y, kept = ops.shift_step(x, cache, dim)
    for actual, wanted in zip((y, kept), expected(x, cache, dim), strict=True):
        assert_same_bits(actual, wanted)
    assert y.stride() == torch.empty_like(x).stride()
    assert kept.stride() == torch.empty_like(cache).stride()
    assert_same_bits(x, before[0])
    assert_same_bits(cache, before[1])

    assert_same_bits(ops.shift_step_into(x, cache, kept.zero_(), dim), y)
    assert_same_bits(kept, expected(x, cache, dim)[1])


@pytest.mark.parametrize("layout", DENSE)
def test_the_cache_may_be_written_where_it_is_read(device, layout):
    x, cache, dim = arguments(layout, device=device)
    y, kept = expected(x, cache.clone(), dim)
    assert_same_bits(ops.shift_step_into(x, cache, cache, dim), y)
    assert_same_bits(cache, kept)


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("fold", [1, 8, 16])
def test_dense_layouts_take_one_launch(layout, fold, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, cache, dim = arguments(layout, fold)
    if torch.cuda.is_available():
        x, cache = x.cuda(), cache.cuda()
    assert kernel.shift_step(x, cache, torch.empty_like(cache), dim) is not None


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("layout", [*DENSE, "cropped", "chunk_of_channels_last"])
def test_opcheck(device, layout):
    x, cache, dim = arguments(layout, device=device)
    torch.library.opcheck(ops.shift_step, (x, cache, dim))
    tracked = [t.detach().clone().requires_grad_() for t in (x, cache)]
    torch.library.opcheck(ops.shift_step, (*tracked, dim))
    torch.library.opcheck(ops.shift_step_into, (x, cache, torch.empty_like(cache), dim))


@pytest.mark.parametrize("layout", DENSE)
def test_a_step_is_its_own_adjoint(device, layout):
    x, cache, dim = arguments(layout, device=device)
    x, cache = (t.double().requires_grad_() for t in (x, cache))
    assert torch.autograd.gradcheck(lambda *t: ops.shift_step(*t, dim), (x, cache), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: ops.shift_step(*t, dim), (x, cache), fast_mode=True)


@pytest.mark.parametrize("layout", DENSE)
def test_the_form_that_inductor_sees_on_cuda_is_the_step(layout):
    x, cache, dim = arguments(layout)
    aten = ops.ATEN_FORMS[ops.shift_step]
    for actual, wanted in zip(aten(x, cache, dim), expected(x, cache, dim), strict=True):
        assert_same_bits(actual, wanted)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_inductor_runs_it(layout):
    x, cache, dim = arguments(layout)

    def relu_step(x, cache):
        y, kept = ops.shift_step(torch.relu(x), cache, dim)
        return y + 1, kept

    compiled = torch.compile(relu_step, fullgraph=True)
    for actual, wanted in zip(compiled(x, cache), relu_step(x, cache), strict=True):
        assert_same_bits(actual, wanted)


@pytest.mark.parametrize(
    ("cache", "dim"),
    [
        (torch.zeros(2, 17, 3, 3), 1),
        (torch.zeros(1, 4, 3, 3), 1),
        (torch.zeros(2, 4, 3), 1),
        (torch.zeros(2, 4, 3, 3, dtype=torch.float64), 1),
        (torch.zeros(2, 4, 3, 3), 0),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(device, cache, dim):
    x = torch.zeros(2, 16, 3, 3, device=device)
    for call in (ops.shift_step, lambda x, cache, dim: ops.shift_step_into(x, cache, cache, dim)):
        with pytest.raises(
            ValueError, match=r"must be torch.float32 \[2, .* reset it|must name an axis of x behind"
        ):
            call(x, cache.to(device), dim)
    with pytest.raises(ValueError, match=r"kept must have the shape of cache, \[2, 4, 3, 3\]"):
        ops.shift_step_into(x, x[:, :4], x[:, :5].clone(), 1)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("pointer", "vec"), [("*i8", 16), ("*i16", 8), ("*i32", 4), ("*i64", 2)])
def test_a_step_moves_128_bits_an_access_and_spills_nothing(target, pointer, vec):
    pointers = dict.fromkeys(("x_ptr", "cache_ptr", "out_ptr", "kept_ptr"), pointer)
    sizes = dict.fromkeys(("size", "row_size", "cut"), "i32")
    code = compile_kernel(
        kernel._shift_step_kernel,
        target,
        {**pointers, **sizes, "VEC": vec, "BLOCK": kernel.BLOCK},
        kernel.NUM_WARPS,
    )
    assert set(code.loads) == set(code.stores) == {128}
    # nothing is read or written twice
    assert len(code.loads) == len(code.stores) == (2 if target == "gfx942" else 4)
    assert code.spills == 0
    assert code.registers <= 40


@pytest.mark.cuda
def test_is_captured_by_a_cuda_graph():
    x, cache, dim = arguments(device="cuda")
    ops.shift_step_into(x, cache, cache, dim)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.shift_step_into(x, cache, cache, dim)
    for _ in range(2):
        before, frame = cache.clone(), torch.randn_like(x)
        x.copy_(frame)
        graph.replay()
        assert_same_bits(y, expected(frame, before, dim)[0])
        assert_same_bits(cache, frame[:, :3].contiguous())
