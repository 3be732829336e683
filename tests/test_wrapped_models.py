"""Patching models that something has wrapped, offloaded, quantised or built in an unusual way."""

import copy

import pytest
import timm
import torch
import torchvision
from networks import T, visible
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torchvision.models import detection

from tsm_triton import ShiftSite, find_sites, patch
from tsm_triton.patching.hooks import shift_hooks


def frames(size: int = 64) -> torch.Tensor:
    return torch.randn(2 * T, 3, size, size)


class Wrapper(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.nl = nn.Identity()

    def forward(self, x):
        return self.nl(self.block(x))


WRAPPINGS = {
    "a wrapper": Wrapper,
    "a Sequential": lambda block: nn.Sequential(block, nn.Identity()),
    "both": lambda block: nn.Sequential(Wrapper(block)),
}


@pytest.mark.parametrize("library", [timm.create_model, lambda name: getattr(torchvision.models, name)()])
@pytest.mark.parametrize("wrap", WRAPPINGS)
@pytest.mark.parametrize("place", ["blockres", "block"])
def test_a_resnet_of_wrapped_blocks_is_shifted_as_the_plain_one(library, wrap, place):
    model = visible(library("resnet18"))
    expected = patch(copy.deepcopy(model), T, place=place)
    model.layer2[0] = WRAPPINGS[wrap](model.layer2[0])
    model.layer3[1] = WRAPPINGS[wrap](model.layer3[1])
    model.layer4 = WRAPPINGS[wrap](model.layer4)
    values = [site.to_dict() for site in find_sites(model, place=place)]
    for sites in (None, [ShiftSite.from_dict(value, model) for value in values]):
        twin = copy.deepcopy(model)
        sites = sites and [ShiftSite.from_dict(value, twin) for value in values]
        patch(twin, T, place=place, sites=sites)
        x = frames()
        with torch.no_grad():
            torch.testing.assert_close(twin(x), expected(x))


def test_every_second_block_counts_wrapped_ones_too():
    with torch.device("meta"):
        model = torchvision.models.resnet101()
    names = [site.name for site in find_sites(model) if site.name.startswith("layer3")]
    model.layer3[3], model.layer3[4] = Wrapper(model.layer3[3]), Wrapper(model.layer3[4])
    wrapped = [site.name for site in find_sites(model) if site.name.startswith("layer3")]
    assert wrapped == [name.replace("layer3.4.", "layer3.4.block.") for name in names]


class ReturnsNothing(torchvision.models.ResNet):
    def train(self, mode=True):
        super().train(mode)


def test_a_model_whose_train_returns_nothing_is_patched():
    model = ReturnsNothing(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    model.eval()
    assert len(shift_hooks(patch(model, T))) == 4


CHECKPOINTED = {
    "timm resnet": ("resnet18", "BasicBlock"),
    "timm vit": ("test_vit", "Block"),
    "timm efficientnet": ("efficientnet_b0", "InvertedResidual"),
    "timm convnext": ("test_convnext", "ConvNeXtBlock"),
}


@pytest.mark.parametrize("which", CHECKPOINTED)
def test_checkpointed_blocks_are_shifted_as_plain_ones(which):
    name, block = CHECKPOINTED[which]
    options = {"img_size": 64} if "vit" in name else {}
    model = visible(timm.create_model(name, num_classes=5, **options))
    plain = patch(copy.deepcopy(model), T)
    apply_activation_checkpointing(model, check_fn=lambda module: type(module).__name__ == block)
    patch(model, T)
    assert len(shift_hooks(model)) == len(shift_hooks(plain))
    x = frames()
    gradients = []
    for each in (model, plain):
        each(x).square().sum().backward()
        gradients.append([p.grad for p in each.parameters()])
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_a_model_that_accelerate_offloads_is_patched(name):
    accelerate = pytest.importorskip("accelerate")
    options = {"img_size": 64} if "vit" in name else {}
    model = visible(timm.create_model(name, num_classes=5, **options))
    expected = patch(copy.deepcopy(model), T)
    accelerate.cpu_offload(model, torch.device("cpu"))
    patch(model, T)
    x = frames()
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(x))
        torch.testing.assert_close(copy.deepcopy(model)(x), expected(x))


class Packed(torch.Tensor):
    """A weight of another library: it knows its shape, and few ops."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        unpacked = [arg.inner if isinstance(arg, Packed) else arg for arg in args]
        if func in (torch.ops.aten.addmm.default, torch.ops.aten.t.default, torch.ops.aten.mm.default):
            out = func(*unpacked, **(kwargs or {}))
            return cls(out) if func is torch.ops.aten.t.default else out
        raise NotImplementedError(f"{func} of a packed weight")


def test_weights_of_a_tensor_subclass_are_traced_by_their_shapes():
    model = visible(timm.create_model("test_vit", num_classes=5, img_size=64))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(Packed(module.weight.detach()), requires_grad=False)
    assert len(find_sites(model)) == 12


DETECTORS = {
    "fasterrcnn_resnet50_fpn": 16,
    "retinanet_resnet50_fpn": 16,
    "fcos_resnet50_fpn": 16,
    "fasterrcnn_mobilenet_v3_large_fpn": 10,
    "ssdlite320_mobilenet_v3_large": 10,
}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_is_shifted_at_its_backbone(name):
    with torch.device("meta"):
        model = getattr(detection, name)(weights=None, weights_backbone=None)
    sites = [site.name for site in find_sites(model)]
    assert len(sites) == DETECTORS[name]
    assert all(site.startswith("backbone.") for site in sites)
    assert [f"backbone.{site.name}" for site in find_sites(model.backbone)] == sites


def test_a_patched_detector_runs_on_the_frames_of_a_clip():
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).eval()
    patch(model, T)
    with torch.no_grad():
        assert len(model(list(torch.rand(T, 3, 64, 64)))) == T


def test_a_detector_of_no_known_backbone_is_told_where_to_patch():
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3))
    backbone.out_channels = 8
    model = detection.FasterRCNN(backbone, num_classes=2)
    with pytest.raises(
        ValueError, match="of a model that takes something else than one tensor .a detector. patch"
    ):
        find_sites(model)
