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
from tsm_triton.fusion.fuse import Fusion, FusionReport, fuse

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


def same_places_in_a_fused_copy(name: str) -> None:
    on_cpu, on_cuda = (fused_report(name, device) for device in ("cpu", "cuda"))
    assert any("shift" in entry.kind for entry in on_cuda.fused + on_cuda.left)
    assert [entry for entry in on_cuda.fused if not only_on_a_gpu(entry)] == on_cpu.fused
    assert on_cuda.batch_norms == on_cpu.batch_norms
    # a sum may join a convolution that a CPU leaves alone
    assert [entry for entry in on_cpu.left if entry.kind == "shift"] == [
        entry for entry in on_cuda.left if entry.kind == "shift"
    ]
    assert {entry.site for entry in on_cuda.left} <= {entry.site for entry in on_cpu.left}


def only_on_a_gpu(entry: Fusion) -> bool:
    kinds = ("convolution", "convolution + residual", "stem", "depthwise")
    return entry.kind in kinds or (entry.kind, entry.reason) == ("conv1x1", "none")


@pytest.mark.parametrize("name", MODELS)
def test_fuses_the_same_places_on_a_gpu(name):
    same_places_in_a_fused_copy(name)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", WHOLE_MODELS)
def test_fuses_the_same_places_of_whole_models_on_a_gpu(name):
    same_places_in_a_fused_copy(name)
