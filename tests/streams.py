"""Causally patched models, and what a stream over them must compute."""

import timm
import torch
import torchvision
from torch import Tensor, nn

from tsm_triton import patch, set_num_segments

# every family, at 64 pixels; Swin V2 and MobileViT have several rows a frame at some sites
MODELS = {
    "timm resnet18": lambda: timm.create_model("resnet18", num_classes=5),
    "timm resnet50": lambda: timm.create_model("resnet50", num_classes=5),
    "timm mobilenetv2_100": lambda: timm.create_model("mobilenetv2_100", num_classes=5),
    "timm mobilenetv3_small_050": lambda: timm.create_model("mobilenetv3_small_050", num_classes=5),
    "timm efficientnet_b0": lambda: timm.create_model("efficientnet_b0", num_classes=5),
    "timm regnety_002": lambda: timm.create_model("regnety_002", num_classes=5),
    "timm convnext_atto": lambda: timm.create_model("convnext_atto", num_classes=5),
    "timm vit_tiny": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, depth=4),
    "timm swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=5, img_size=64, window_size=4, depths=(2, 2, 2, 2)
    ),
    "timm swinv2": lambda: timm.create_model(
        "swinv2_tiny_window8_256", num_classes=5, img_size=64, window_size=4, depths=(2, 2, 2, 2)
    ),
    "timm mobilevit_xxs": lambda: timm.create_model("mobilevit_xxs", num_classes=5),
    "torchvision mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=5),
    "torchvision mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
    "torchvision regnet_y_400mf": lambda: torchvision.models.regnet_y_400mf(num_classes=5),
    "torchvision convnext_tiny": lambda: torchvision.models.convnext_tiny(num_classes=5),
}
# Two frames at once and eight at once are different matrix products to BLAS: relative to the largest output.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def causal(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Patched, with no branch hidden by a zero-initialised norm or head."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith(("weight", "gamma", "layer_scale")):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter)
    return patch(model.eval(), 4, direction="causal").to(dtype)


def frames_of(num_streams: int, num_frames: int, size: int = 32, dtype=torch.float64) -> Tensor:
    return torch.randn(num_streams, num_frames, 3, size, size).to(dtype)


def offline(model: nn.Module, clip: Tensor) -> Tensor:
    """`[T, 3, H, W]` -> `[T, num_classes]`, the whole clip at once."""
    return set_num_segments(model, len(clip))(clip)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[expected.dtype] * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)
