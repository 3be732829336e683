"""The 1x1 convolution of a streamed frame is the step and the convolution behind it."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tsm_triton import ops, reference
from tsm_triton.activations import ACTIVATIONS
from tsm_triton.testing import assert_same_bits, laid_out

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3}


def arguments(device, dtype, layout, fold, c_out=70, channels=100) -> tuple[list[Tensor], Tensor, Tensor]:
    """Those of the op but the activation, and what is expected of it."""
    x = laid_out(torch.randn(2, channels, 7, 9).to(dtype), layout)
    cache = laid_out(torch.randn(2, fold, 7, 9).to(dtype), layout)
    weight = torch.randn(c_out, channels).div(channels**0.5).to(dtype)
    bias, identity = torch.randn(c_out).to(dtype), torch.randn(2, c_out, 7, 9).to(dtype)
    shifted = torch.cat([cache, x[:, fold:]], 1)
    z = F.conv2d(shifted.double(), weight.double()[..., None, None], bias.double()) + identity.double()
    kept = x[:, :fold].clone()
    return [t.to(device) for t in (x, cache, weight, bias, identity)], z, kept


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("fold", [1, 12, 70])
def test_it_is_the_step_and_the_convolution(device, dtype, layout, fold):
    given, z, kept = arguments(device, dtype, layout, fold)
    before = [x.clone() for x in given]
    out, new = ops.shift_step_conv1x1(*given, "relu")
    torch.testing.assert_close(
        out.cpu().double(), z.relu(), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype], check_stride=False
    )
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_same_bits(new.cpu(), kept)
    assert new.stride() == torch.empty_like(given[1]).stride()
    for x, old in zip(given, before, strict=True):
        assert_same_bits(x, old)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_and_identity_may_be_missing(device, activation):
    (x, cache, weight, *_), _, _ = arguments(device, torch.float32, "channels_last", 12, c_out=16)
    out, _ = ops.shift_step_conv1x1(x, cache, weight, None, None, activation)
    z = F.conv2d(torch.cat([cache, x[:, 12:]], 1), weight[..., None, None])
    expected = reference.activate(z, activation)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5, check_stride=False)


def test_what_is_not_finite_stays_in_its_own_frame(device):
    given, _, _ = arguments(device, torch.float32, "channels_last", 12)
    clean, _ = ops.shift_step_conv1x1(*given, "none")
    given[0][0, :12] = torch.nan  # kept for the next frame only
    given[1][1] = torch.inf
    out, kept = ops.shift_step_conv1x1(*given, "none")
    assert torch.equal(out[0], clean[0])
    assert not out[1].isfinite().any()
    assert kept[0].isnan().all()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_opcheck_and_gradients(device, layout):
    given, _, _ = arguments(device, torch.float64, layout, 3, c_out=4, channels=8)
    torch.library.opcheck(ops.shift_step_conv1x1, (*given, "relu"))
    tracked = [x.clone().requires_grad_() for x in given]
    assert torch.autograd.gradcheck(
        lambda *t: ops.shift_step_conv1x1(*t, "silu"), tracked, fast_mode=True, nondet_tol=1e-10
    )


def test_what_does_not_fit_is_refused(device):
    (x, cache, weight, bias, identity), _, _ = arguments(device, torch.float32, "contiguous", 12)
    for wrong, message in (
        ((x, cache[:1], weight, bias, identity), "cache must be torch.float32"),
        ((x, cache, weight[:, :8], bias, identity), "weight must have shape"),
        ((x, cache, weight, bias, identity[:1]), "identity must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.shift_step_conv1x1(*wrong, "relu")
