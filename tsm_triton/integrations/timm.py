"""What is known about timm's models beyond their dataflow: the authors' rule, and families to refuse."""

from torch import nn

from ..sites import ShiftSite
from .residual import STAGES, resnet_sites

REFUSED = {
    "nasnet": "its cells add up many operations of two inputs, so that no branch is the residual one",
    "pnasnet": "its cells add up many operations of two inputs, so that no branch is the residual one",
    "lcnetv2": "reparameterize_model replaces the modules that its shifts stand at, and would lose them",
}


def is_model(module: nn.Module) -> bool:
    """Whether a module of timm's is a whole model, or a `features_only` wrapper of one."""
    return hasattr(module, "pretrained_cfg") or hasattr(module, "default_cfg")


def find_sites(model: nn.Module, place: str) -> list[ShiftSite] | None:
    """The sites of a ResNet, named relative to it; None for what the dataflow decides."""
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    if isinstance(model, ResNet) or _has_blocks(model, (BasicBlock, Bottleneck)):
        return list(resnet_sites(model, place))
    return None


def refusal(model: nn.Module) -> str | None:
    """Why a family gets no shift unless it is asked for site by site."""
    for module in model.modules():
        reason = REFUSED.get(type(module).__module__.rpartition(".")[2])
        if reason is not None:
            return reason
    return None


def _has_blocks(model: nn.Module, classes: tuple[type, ...]) -> bool:
    # `features_only` takes a ResNet apart but leaves the stages their names. HRNet's only has a first stage of
    # that name: its other blocks stand elsewhere.
    stages = [module for name, module in model.named_children() if name in STAGES]
    blocks = [block for stage in stages for block in stage.children()]
    everywhere = sum(isinstance(module, classes) for module in model.modules())
    return 0 < len(blocks) == everywhere and all(isinstance(block, classes) for block in blocks)
