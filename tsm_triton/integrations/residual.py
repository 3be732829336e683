"""The authors' rule for residual networks, which timm's and torchvision's share because their blocks do."""

from collections.abc import Iterator

from torch import nn

from ..sites import ShiftSite
from ..torch_private import modules_of

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
    stages = {name: list(_blocks(module, name)) for name, module in model.named_children() if name in STAGES}
    every = 2 if place == "blockres" and len(stages.get("layer3", ())) >= 23 else 1
    for blocks in stages.values():
        for name, block in blocks[::every]:
            conv1 = block.get_submodule("conv1")
            # selective kernels split what they receive among several convolutions
            channels = getattr(conv1, "in_channels", None) or first_conv("conv1", conv1)[1].in_channels
            if place == "block":
                yield ShiftSite(name, block, channels)
            else:
                yield ShiftSite(f"{name}.conv1", conv1, channels)


def _blocks(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The blocks of a stage, however they are wrapped: with a non-local block, a pool, activation checkpointing."""
    for child_name, child in module.named_children():
        inner = f"{name}.{child_name}"
        # not an attribute: a wrapper of torch's answers for what it wraps
        if "conv1" in modules_of(child):
            yield inner, child
        else:
            yield from _blocks(child, inner)
