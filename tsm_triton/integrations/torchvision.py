"""What is known about torchvision's models beyond their dataflow: the authors' rules."""

import sys
from collections.abc import Iterator, Sequence

from torch import nn

from ..sites import ShiftSite
from .library import Library
from .residual import first_conv, resnet_sites

# what the detectors take their maps from: models that lost their heads
BACKBONES = (
    "torchvision.models._utils.IntermediateLayerGetter",
    "torchvision.models.detection.ssd.SSDFeatureExtractorVGG",
    "torchvision.models.detection.ssdlite.SSDLiteFeatureExtractorMobileNet",
)


class Rules(Library):
    """Of torchvision."""

    def is_model(self, module: nn.Module) -> bool:
        """Whether a module of torchvision's is a whole model of images: their classes are public, blocks are not.

        Detectors take lists of images, and hold such a model as their backbone.
        """
        if f"{type(module).__module__}.{type(module).__qualname__}" in BACKBONES:
            return True
        return any(
            cls.__module__.startswith("torchvision.models.")
            and not cls.__module__.startswith("torchvision.models.detection.")
            and cls.__name__ in getattr(sys.modules[cls.__module__], "__all__", ())
            for cls in type(module).__mro__
        )

    def find_sites(self, model: nn.Module, place: str) -> Sequence[ShiftSite] | None:
        """The sites of a ResNet or MobileNetV2, named relative to it; None for what the dataflow decides."""
        from torchvision import models

        if isinstance(model, models.ResNet) or _is_resnet_body(model):
            return list(resnet_sites(model, place))
        if isinstance(model, models.MobileNetV2):
            return list(_mobilenet_v2_sites(model, place))
        return None


def _is_resnet_body(model: nn.Module) -> bool:
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.resnet import BasicBlock, Bottleneck

    return isinstance(model, IntermediateLayerGetter) and any(
        isinstance(module, (BasicBlock, Bottleneck)) for module in model.modules()
    )


def _mobilenet_v2_sites(model: nn.Module, place: str) -> Iterator[ShiftSite]:
    """The authors' rule: residual blocks but those of expansion 1, before their first 1x1 convolution."""
    from torchvision.models.mobilenetv2 import InvertedResidual

    for name, block in model.named_modules():
        if isinstance(block, InvertedResidual) and block.use_res_connect and len(block.conv) == 4:
            conv_name, conv = first_conv(name, block)
            if place == "block":
                yield ShiftSite(name, block, conv.in_channels)
            else:
                yield ShiftSite(conv_name, conv, conv.in_channels)
