"""Where timm's models are shifted."""

from collections.abc import Iterator

from torch import nn

from ..sites import ShiftSite
from .residual import first_conv, resnet_sites


def find_sites(model: nn.Module, place: str) -> list[ShiftSite] | None:
    """Sites of a timm model named relative to it, or None where no rule is known."""
    from timm.models.efficientnet import EfficientNet
    from timm.models.mobilenetv3 import MobileNetV3
    from timm.models.resnet import ResNet

    if isinstance(model, ResNet):
        return list(resnet_sites(model, place))
    if isinstance(model, (EfficientNet, MobileNetV3)):
        return list(_inverted_residuals(model, place))
    return None


def _inverted_residuals(model: nn.Module, place: str) -> Iterator[ShiftSite]:
    for name, block in model.named_modules():
        if not getattr(block, "has_skip", False):
            continue
        # The branch's first op is its first child that does something (`dw_start` may be an Identity), past
        # the pre-activation norm and the positional convolution that the attention blocks begin with.
        child_name, child = next(
            (child_name, child)
            for child_name, child in block.named_children()
            if not isinstance(child, (nn.Identity, nn.BatchNorm2d)) and child_name != "conv_cpe_dw"
        )
        conv = first_conv(child_name, child)[1]
        if place == "block":
            yield ShiftSite(name, block, conv.in_channels)
        else:
            yield ShiftSite(f"{name}.{child_name}", child, conv.in_channels)
