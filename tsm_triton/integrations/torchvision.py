"""Where torchvision's models are shifted."""

from collections.abc import Iterator

from torch import nn

from ..sites import ShiftSite
from .residual import first_conv, resnet_sites


def find_sites(model: nn.Module, place: str) -> list[ShiftSite] | None:
    """Sites of a torchvision model named relative to it, or None where no rule is known."""
    from torchvision import models

    if isinstance(model, models.ResNet):
        return list(resnet_sites(model, place))
    if isinstance(model, (models.MobileNetV2, models.MobileNetV3, models.EfficientNet, models.MNASNet)):
        return list(_inverted_residuals(model, place))
    return None


def _inverted_residuals(model: nn.Module, place: str) -> Iterator[ShiftSite]:
    from torchvision.models import mobilenetv2

    for name, block in model.named_modules():
        has_skip = getattr(block, "use_res_connect", False) or getattr(block, "apply_residual", False)
        if not has_skip:
            continue
        if isinstance(block, mobilenetv2.InvertedResidual) and len(block.conv) < 4:
            continue  # expansion 1: the authors leave it unshifted
        conv_name, conv = first_conv(name, block)
        if place == "block":
            yield ShiftSite(name, block, conv.in_channels)
        else:
            yield ShiftSite(conv_name, conv, conv.in_channels)
