"""Placement rules that timm and torchvision share, because their blocks do."""

from collections.abc import Iterator

from torch import nn

from ..sites import ShiftSite


def first_conv(name: str, module: nn.Module) -> tuple[str, nn.Conv2d]:
    """The first convolution inside `module`, with its full name."""
    for inner, child in module.named_modules(prefix=name):
        if isinstance(child, nn.Conv2d):
            return inner, child
    raise ValueError(f"expected a convolution inside {name!r}, got {type(module).__name__} with none")


def resnet_sites(model: nn.Module, place: str) -> Iterator[ShiftSite]:
    """The authors' rule: `conv1` of every block, of every second one where layer3 has 23 blocks or more."""
    every = 2 if place == "blockres" and len(model.get_submodule("layer3")) >= 23 else 1  # type: ignore[arg-type]
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for index, (name, block) in enumerate(model.get_submodule(stage).named_children()):
            if index % every == 0:
                conv = first_conv("conv1", block.get_submodule("conv1"))[1]
                block_name = f"{stage}.{name}"
                if place == "block":
                    yield ShiftSite(block_name, block, conv.in_channels)
                else:
                    yield ShiftSite(
                        f"{block_name}.conv1", block.get_submodule("conv1"), conv.in_channels
                    )
