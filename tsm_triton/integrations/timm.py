"""What is known about timm's models beyond their dataflow: the authors' rule, and families to refuse."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from ..dataflow.kinds import BATCH_NORMS, VIEWS
from ..dataflow.merges import Skipped
from ..dataflow.tracing import Call, Trace
from ..sites import ShiftSite
from .library import Library
from .residual import STAGES, resnet_sites

REFUSED = {
    "nasnet": "its cells add up many operations of two inputs, so that no branch is the residual one",
    "pnasnet": "its cells add up many operations of two inputs, so that no branch is the residual one",
    "lcnetv2": "reparameterize_model replaces the modules that its shifts stand at, and would lose them",
}


class Rules(Library):
    """Of timm."""

    def is_model(self, module: nn.Module) -> bool:
        """Whether a module of timm's is a whole model, or a `features_only` wrapper of one."""
        return hasattr(module, "pretrained_cfg") or hasattr(module, "default_cfg")

    def find_sites(self, model: nn.Module, place: str) -> Sequence[ShiftSite] | None:
        """The sites of a ResNet, named relative to it; None for what the dataflow decides."""
        from timm.models._features import FeatureGetterNet
        from timm.models.resnet import BasicBlock, Bottleneck, ResNet

        if isinstance(model, FeatureGetterNet):
            sites = self.find_sites(model.model, place)
            return sites and [replace(site, name=f"model.{site.name}") for site in sites]
        if isinstance(model, ResNet) or _has_blocks(model, (BasicBlock, Bottleneck)):
            return list(resnet_sites(model, place))
        return None

    def refusal(self, model: nn.Module) -> str | None:
        """Why a family gets no shift unless it is asked for site by site."""
        for module in model.modules():
            reason = REFUSED.get(type(module).__module__.rpartition(".")[2])
            if reason is not None:
                return reason
        return None

    def lost_when_reparameterised(self, sites: Sequence[ShiftSite], graph: Trace) -> Sequence[Skipped]:
        """The sites that `reparameterize_model` would lose, or whose shift it would let past a batch norm."""
        calls = {call.name: call for call in graph.calls}
        return [
            Skipped(site.name, reason)
            for site in sites
            if (reason := _reparameterised(calls[site.name], graph)) is not None
        ]


def _reparameterised(call: Call, graph: Trace) -> str | None:
    if hasattr(call.module, "fuse"):
        return "reparameterize_model replaces this module, and would lose the shift"
    value = call.first
    while value is not None and value.op in VIEWS and len(value.parents) == 1:
        value = value.parents[0]
    made = [value] if value is not None and value.op in BATCH_NORMS else []
    if isinstance(call.module, nn.BatchNorm2d):
        made += [inner for inner in graph.values[call.start : call.end] if inner.op in BATCH_NORMS]
    for norm in made:
        if norm.call.parent is not None and hasattr(norm.call.parent.module, "reparameterize"):
            # the zeros at a clip's ends are no zeros on the norm's other side
            return f"reparameterize_model merges the batch norm {norm.call.name} into what follows the shift"
    return None


def _has_blocks(model: nn.Module, classes: tuple[type, ...]) -> bool:
    # `features_only` takes a ResNet apart but leaves the stages their names. HRNet's only has a first stage of
    # that name: its other blocks stand elsewhere.
    stages = [module for name, module in model.named_children() if name in STAGES]
    blocks = [block for stage in stages for block in stage.children()]
    everywhere = sum(isinstance(module, classes) for module in model.modules())
    return 0 < len(blocks) == everywhere and all(isinstance(block, classes) for block in blocks)
