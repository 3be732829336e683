"""On a GPU the same places are fused as on a CPU: fake CUDA tensors show a GPU's graph on any machine."""

import contextlib
import copy
import functools
from collections.abc import Iterator

import pytest
import timm
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import tsm_triton
from tsm_triton.fusion import inductor
from tsm_triton.fusion.fuse import fuse
from tsm_triton.fusion.report import Fusion, FusionReport
from tsm_triton.streaming.fused_step import FusedStep

# copying a model of fake tensors asks them whether they have memory
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

T = 4
SIZE = (3, 64, 64)
MODELS = ("test_resnet", "mobilenetv3_small_050")
WHOLE_MODELS = (
    "resnet18",
    "resnet50",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "regnety_002",
    "convnext_atto",
)


@contextlib.contextmanager
def fake_mode() -> Iterator[FakeTensorMode]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), mode:
        yield mode


def on_fake(model: nn.Module, mode: FakeTensorMode, device: str, *, trained: bool = False) -> nn.Module:
    """The model itself, its weights now fake tensors of `device` in channels_last."""

    def fake(value: torch.Tensor) -> torch.Tensor:
        moved = mode.from_tensor(value.detach().clone()).to(device)
        return moved.contiguous(memory_format=torch.channels_last) if moved.dim() == 4 else moved

    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(fake(value), requires_grad=trained)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = fake(value)
    return model


@functools.cache
def patched(name: str, direction: str = "bidirectional") -> nn.Module:
    model = timm.create_model(name, num_classes=5).eval()
    return tsm_triton.patch(model, T, direction=direction, verify=False)


def fused_report(name: str, device: str, dtype: torch.dtype = torch.bfloat16) -> FusionReport:
    model = copy.deepcopy(patched(name)).to(dtype)
    with fake_mode() as mode:
        on_fake(model, mode, device)
        return fuse(model, example_input=torch.empty(T, *SIZE)).report


def streamed_report(name: str, device: str) -> FusionReport:
    model = copy.deepcopy(patched(name, "causal")).to(torch.bfloat16)
    with fake_mode() as mode:
        step = FusedStep(on_fake(model, mode, device))
        step.init_state((2, *SIZE))
    assert step.report is not None
    return step.report


def compiled_report(name: str, device: str, *, trained: bool, dynamic: bool) -> FusionReport:
    """What the compile backend does to the graph that Dynamo captures of the model."""
    found = []

    def backend(module, example_inputs):
        found.append(inductor.rewritten(module))
        return module.forward

    torch.compiler.reset()
    model = copy.deepcopy(patched(name)).to(torch.bfloat16).train(trained)
    with fake_mode() as mode, torch.set_grad_enabled(trained):
        on_fake(model, mode, device, trained=trained)
        x = torch.zeros(2 * T, *SIZE, device=device, dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last)
        if dynamic:
            torch._dynamo.mark_dynamic(x, 0)
        torch.compile(model, backend=backend, fullgraph=True)(x)
    ((_, report),) = found
    return report


def require_same_places(on_cpu: FusionReport, on_cuda: FusionReport) -> None:
    assert any("shift" in entry.kind for entry in on_cuda.fused + on_cuda.left)
    assert [entry for entry in on_cuda.fused if not only_on_a_gpu(entry)] == on_cpu.fused
    # a sum may join a convolution that a CPU leaves alone
    joined = sum(entry.kind == "convolution + residual" for entry in on_cuda.fused)
    shifts, others = ([e for e in report.left if e.kind == "shift"] for report in (on_cpu, on_cuda))
    assert shifts == others
    assert len(on_cpu.left) - joined == len(on_cuda.left)
    assert set(on_cuda.left) <= set(on_cpu.left)
    assert on_cuda.batch_norms >= on_cpu.batch_norms


def only_on_a_gpu(entry: Fusion) -> bool:
    kinds = ("convolution", "convolution + residual", "stem", "depthwise")
    return entry.kind in kinds or (entry.kind, entry.reason) == ("conv1x1", "none")


@pytest.mark.parametrize("name", MODELS)
def test_fuses_the_same_places_on_a_gpu(name):
    require_same_places(*(fused_report(name, device) for device in ("cpu", "cuda")))


def test_streams_are_captured_for_a_gpu_with_the_same_places():
    require_same_places(*(streamed_report("test_resnet", device) for device in ("cpu", "cuda")))


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_the_backend_finds_the_same_places_on_a_gpu(trained, dynamic):
    require_same_places(
        *(
            compiled_report("test_resnet", device, trained=trained, dynamic=dynamic)
            for device in ("cpu", "cuda")
        )
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", WHOLE_MODELS)
def test_fuses_the_same_places_of_whole_models_on_a_gpu(name):
    require_same_places(*(fused_report(name, device) for device in ("cpu", "cuda")))
    for trained in (True, False):
        require_same_places(
            *(compiled_report(name, device, trained=trained, dynamic=True) for device in ("cpu", "cuda"))
        )
