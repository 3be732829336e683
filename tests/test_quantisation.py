"""torch.ao's quantisation of a patched model, eager and as a graph: its shifts go along with what is converted."""

import copy

import pytest
import torch
import torchvision
from torch.ao import quantization
from torch.ao.quantization import quantize_fx
from torch.fx.experimental import optimization

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


@pytest.fixture
def plain_model():
    return tsm_triton.patch(visible(torchvision.models.resnet18(num_classes=5)), 4)


def test_a_graph_that_folds_its_norms_shifts_once(plain_model):
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        expected = plain_model(x)
        for fold in (quantize_fx.fuse_fx, optimization.fuse):
            folded = fold(copy.deepcopy(plain_model))
            torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-4)
            with tsm_triton.shift_disabled(plain_model), tsm_triton.shift_disabled(folded):
                torch.testing.assert_close(folded(x), plain_model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not ENGINES, reason="needs a quantisation engine, torch has none on this CPU")
@pytest.mark.parametrize("trained", [False, True])
def test_a_quantised_graph_is_near_its_float_and_still_shifted(plain_model, trained, monkeypatch):
    monkeypatch.setattr(torch.backends.quantized, "engine", ENGINES[0])
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        expected = plain_model(x)
    if trained:
        mapping = quantization.get_default_qat_qconfig_mapping(ENGINES[0])
        prepared = quantize_fx.prepare_qat_fx(plain_model.train(), mapping, (x,))
        prepared(x).square().mean().backward()
        with torch.no_grad():
            expected = prepared.eval()(x)
    else:
        prepared = quantize_fx.prepare_fx(
            plain_model, quantization.get_default_qconfig_mapping(ENGINES[0]), (x,)
        )
        torch.testing.assert_close(prepared(x), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        quantised = quantize_fx.convert_fx(prepared)
        actual = quantised(x)
        with tsm_triton.shift_disabled(quantised):
            unshifted = quantised(x)
    assert (actual - expected).norm() < 0.5 * (unshifted - expected).norm()


@pytest.mark.skipif(not ENGINES, reason="needs a quantisation engine, torch has none on this CPU")
def test_a_copy_of_a_quantised_graph_is_shifted_on_its_own(plain_model, monkeypatch):
    monkeypatch.setattr(torch.backends.quantized, "engine", ENGINES[0])
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        mapping = quantization.get_default_qconfig_mapping(ENGINES[0])
        prepared = quantize_fx.prepare_fx(plain_model, mapping, (x,))
        prepared(x)
        quantised = quantize_fx.convert_fx(prepared)
        expected = quantised(x)
        for twin in (copy.deepcopy(quantised), copy.deepcopy(copy.deepcopy(quantised))):
            assert torch.equal(twin(x), expected)
            tsm_triton.set_num_segments(twin, 2)
            assert not torch.equal(twin(x), expected)
        assert torch.equal(quantised(x), expected)
        classifier = tsm_triton.VideoClassifier(quantised)
        assert torch.equal(copy.deepcopy(classifier)(x[None]), classifier(x[None]))
        bare = copy.deepcopy(tsm_triton.unpatch(copy.deepcopy(quantised)))
        assert not tsm_triton.is_patched(bare)
        with tsm_triton.shift_disabled(quantised):
            assert torch.equal(bare(x), quantised(x))


@pytest.mark.skipif(not ENGINES, reason="needs a quantisation engine, torch has none on this CPU")
def test_a_copy_of_a_converted_model_is_shifted(model, monkeypatch):
    monkeypatch.setattr(torch.backends.quantized, "engine", ENGINES[0])
    x = torch.randn(8, 3, 64, 64)
    model.fuse_model(is_qat=False)
    model.qconfig = quantization.get_default_qconfig(ENGINES[0])
    quantization.prepare(model, inplace=True)
    with torch.no_grad():
        model(x)
        quantised = quantization.convert(model)
        assert torch.equal(quantised(x), copy.deepcopy(quantised)(x))


@pytest.mark.skipif(not ENGINES, reason="needs a quantisation engine, torch has none on this CPU")
def test_a_quantised_model_is_patched_unverified_and_copied_before_it_is_called(monkeypatch):
    monkeypatch.setattr(torch.backends.quantized, "engine", ENGINES[0])
    quantised = torchvision.models.quantization.resnet18(num_classes=4, quantize=True).eval()
    with pytest.raises(ValueError, match="before it is quantised, or with verify=False"):
        tsm_triton.patch(quantised, 4)
    assert not tsm_triton.is_patched(quantised)
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        plain = quantised(x)
        tsm_triton.patch(quantised, 4, verify=False)
        copied, part = copy.deepcopy(quantised), copy.deepcopy(quantised.layer1)
        shifted = quantised(x)
        assert not torch.equal(shifted, plain)
        assert torch.equal(copied(x), shifted)
        maps = quantised.relu(quantised.bn1(quantised.conv1(quantised.quant(x))))
        assert torch.equal(part(maps).int_repr(), quantised.layer1(maps).int_repr())
        assert len(shift_hooks(part)) == 2


@pytest.mark.skipif(not ENGINES, reason="needs a quantisation engine, torch has none on this CPU")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_streams_and_scripts_of_a_quantised_model_are_refused_with_what_to_use(monkeypatch):
    monkeypatch.setattr(torch.backends.quantized, "engine", ENGINES[0])
    quantised = torchvision.models.quantization.resnet18(num_classes=4, quantize=True).eval()
    tsm_triton.patch(quantised, 4, direction="causal", verify=False)
    stream = tsm_triton.Streaming(quantised)
    with pytest.raises(TypeError, match=r"got quantised ones.* Use the float model, or .*int8=clips"):
        stream(torch.randn(1, 3, 64, 64))
    with pytest.raises(AttributeError, match="without torch.ao's quantised layers"):
        torch.jit.trace(quantised, torch.randn(4, 3, 64, 64))
