"""The authors' optimisation policies: which weights learn how fast, and which decay."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..torch_private import BatchNorm, ConvNd

__all__ = ["optimizer_groups"]

# name -> how many times the rate, and the decay
POLICIES = {
    "first_conv_weight": (1, 1),
    "first_conv_bias": (2, 0),
    "normal_weight": (1, 1),
    "normal_bias": (2, 0),
    "batch_norm": (1, 0),
    "head_weight": (5, 1),
    "head_bias": (10, 0),
}


def optimizer_groups(
    model: nn.Module, lr: float | None = None, weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """A model's trainable parameters in the authors' groups, for any optimiser of torch's.

    The first convolution and all other weights learn at the rate, biases at twice the rate and without decay,
    normalisation at the rate without decay, the new head at 5 times (its weight) and 10 times (its bias) the rate.
    What the authors' networks do not have follows its shape: single axes are biases or scales, which do not decay.

    Args:
        model: patched or not, in whatever wrapper.
        lr, weight_decay: of the optimiser; a group then has its own.

    Returns:
        A dictionary for each group that is not empty: `params`, `name`, `lr_mult`, `decay_mult`, and where they were
        given `lr` and `weight_decay`. Every trainable parameter is in exactly one.

    Raises:
        ValueError: nothing to train.

    Example:
        >>> import timm, torch
        >>> groups = optimizer_groups(timm.create_model("test_resnet"), lr=0.01, weight_decay=1e-4)
        >>> [(group["name"], group["lr"], group["weight_decay"]) for group in groups][-2:]
        [('head_weight', 0.05, 0.0001), ('head_bias', 0.1, 0.0)]
        >>> optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)

    Source: `TSN.get_optim_policies` of the authors' release, of RGB; its head is the only linear layer.
    """
    names = _names(model)
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in POLICIES}
    for key, parameter in model.named_parameters():  # a shared one once
        if parameter.requires_grad:
            groups[names.get(id(parameter)) or _by_shape(key, parameter)].append(parameter)
    if not any(groups.values()):
        raise ValueError(
            f"expected a model with parameters to train, got {type(model).__name__} whose are all frozen or none: "
            "call model.requires_grad_(True)"
        )
    found = []
    for name, parameters in groups.items():
        if parameters:
            lr_mult, decay_mult = POLICIES[name]
            group = {"params": parameters, "name": name, "lr_mult": lr_mult, "decay_mult": decay_mult}
            if lr is not None:
                group["lr"] = lr * lr_mult
            if weight_decay is not None:
                group["weight_decay"] = weight_decay * decay_mult
            found.append(group)
    return found


def _names(model: nn.Module) -> dict[int, str]:
    """The group of each parameter whose module tells it; a module comes before those behind it."""
    found: dict[int, str] = {}
    convolutions = [module for module in model.modules() if isinstance(module, ConvNd)]
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for kind, modules in (
        ("head", _head(model, linears)),
        ("first_conv", convolutions[:1]),
        ("normal", [*convolutions[1:], *linears]),
    ):
        for module in modules:
            for key, parameter in module.named_parameters(recurse=False):
                found.setdefault(id(parameter), f"{kind}_{'bias' if key == 'bias' else 'weight'}")
    for module in model.modules():
        if isinstance(module, (BatchNorm, nn.LayerNorm, nn.GroupNorm)):
            found |= {id(parameter): "batch_norm" for parameter in module.parameters(recurse=False)}
    return found


def _head(model: nn.Module, linears: Sequence[nn.Module]) -> Sequence[nn.Module]:
    """What gives the logits: as timm's models say it, else the last linear layer that is none of theirs."""
    of_backbones: set[nn.Module] = set()
    for module in model.modules():
        tell = getattr(module, "get_classifier", None)
        if callable(tell):
            heads = tell()
            heads = heads if isinstance(heads, (tuple, list)) else (heads,)
            inside = [part for head in heads if isinstance(head, nn.Module) for part in head.modules()]
            found: list[nn.Module] = [part for part in inside if isinstance(part, (nn.Linear, ConvNd))]
            if found:
                return found
            of_backbones |= set(module.modules())  # made with num_classes=0: the head stands behind it
    return [linear for linear in linears if linear not in of_backbones][-1:]


def _by_shape(key: str, parameter: nn.Parameter) -> str:
    if key.endswith("bias"):
        return "normal_bias"
    return "normal_weight" if parameter.dim() > 1 else "batch_norm"
