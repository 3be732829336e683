"""The authors' rule for residual networks, which timm's and torchvision's share because their blocks do."""

from collections.abc import Iterator

from torch import nn

from ..sites import ShiftSite

STAGES = ("layer1", "layer2", "layer3", "layer4")


def first_conv(name: str, module: nn.Module) -> tuple[str, nn.Conv2d]:
    """The first convolution inside `module`, with its full name."""
    for inner, child in module.named_modules(prefix=name):
        if isinstance(child, nn.Conv2d):
            return inner, child
    raise ValueError(
        f"expected a convolution inside {name!r}, got {type(module).__name__} with none: "
        "leave the site out with filter_fn"
    )


def resnet_sites(model: nn.Module, place: str) -> Iterator[ShiftSite]:
    """The authors' rule: `conv1` of every block, of every second one where layer3 has 23 blocks or more."""
    stages = {name: module for name, module in model.named_children() if name in STAGES}
    long = "layer3" in stages and len(list(stages["layer3"].children())) >= 23
    every = 2 if place == "blockres" and long else 1
    for stage, blocks in stages.items():
        for index, (name, block) in enumerate(blocks.named_children()):
            if index % every == 0:
                conv1 = block.get_submodule("conv1")
                # selective kernels split what they receive among several convolutions
                channels = getattr(conv1, "in_channels", None) or first_conv("conv1", conv1)[1].in_channels
                if place == "block":
                    yield ShiftSite(f"{stage}.{name}", block, channels)
                else:
                    yield ShiftSite(f"{stage}.{name}.conv1", conv1, channels)
