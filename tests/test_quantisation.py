"""torch.ao's eager quantisation of a patched model: the shift goes along with what is fused and converted."""

import copy

import pytest
import torch
import torchvision
from torch.ao import quantization

import tsm_triton
from tsm_triton import ops, reference
from tsm_triton.patching.hooks import shift_hooks

from .networks import visible

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*quant")
ENGINES = [e for e in ("fbgemm", "x86", "qnnpack") if e in torch.backends.quantized.supported_engines]


@pytest.fixture
def model():
    model = torchvision.models.quantization.resnet18(quantize=False, num_classes=5)
    return tsm_triton.patch(visible(model), 4)


def test_fused_modules_take_the_shift_along(model):
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        fused = copy.deepcopy(model)
        fused.fuse_model(is_qat=False)
        torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-4)


def test_a_quantised_shift_fills_with_the_zero_point():
    x = torch.quantize_per_tensor(torch.randn(4, 8, 2, 2), 0.03, 100, torch.quint8)
    shifted = ops.temporal_shift(x, 2, 2, 2, False, 1)
    assert torch.equal(shifted.dequantize(), reference.temporal_shift(x.dequantize(), 2, 2, 2))
    assert (shifted.q_scale(), shifted.q_zero_point()) == (x.q_scale(), x.q_zero_point())


@pytest.mark.skipif(not ENGINES, reason="needs a quantisation engine, torch has none on this CPU")
@pytest.mark.parametrize("trained", [False, True])
def test_a_converted_model_is_near_its_float_and_still_shifted(model, trained, monkeypatch):
    monkeypatch.setattr(torch.backends.quantized, "engine", ENGINES[0])
    x = torch.randn(8, 3, 64, 64)
    model.train(trained)
    model.fuse_model(is_qat=trained)
    if trained:
        model.qconfig = quantization.get_default_qat_qconfig(ENGINES[0])
        quantization.prepare_qat(model, inplace=True)
        model(x).square().mean().backward()
        model.eval()
    else:
        model.qconfig = quantization.get_default_qconfig(ENGINES[0])
        quantization.prepare(model, inplace=True)
    with torch.no_grad():
        expected = model(x)
        quantised = quantization.convert(model)
        assert len(shift_hooks(quantised)) == 8
        actual = quantised(x)
        with tsm_triton.shift_disabled(quantised):
            unshifted = quantised(x)
    assert (actual - expected).norm() < 0.5 * (unshifted - expected).norm()
