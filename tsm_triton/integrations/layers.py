"""What a model's layers compute, beside their weights: two models of the same keys may be other functions of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..torch_private import own_name

__all__ = ["NOTHING", "Layer", "kind_of", "layers_of", "other_layer", "plain_attributes"]

# what changes no output in evaluation mode, or is another spelling of the same
SILENT = {
    "drop_prob",
    "drop_rate",
    "dropout",
    "fused_attn",
    "grad_checkpointing",
    "inplace",
    "momentum",
    "p",
    "scale_by_keep",
    "training",
}
# nothing in evaluation mode
NOTHING = {"DropBlock2d", "DropPath", "Dropout", "Dropout1d", "Dropout2d", "Identity", "StochasticDepth"}
# another class of the same function in evaluation mode
ALIKE = {"SyncBatchNorm": "BatchNorm2d", "SyncBatchNormAct": "BatchNormAct2d", "DropoutLinear": "Linear"}
# what the shapes of weights say
WIDTHS = {"in_channels", "in_features", "num_features", "out_channels", "out_features"}
# what stands before a head
POOLS = ("global_pool.", "avgpool.")
# FSDP2 makes the class of a module one of this name, in place
SHARDED_KIND = "FSDP"


@dataclass(frozen=True)
class Layer:
    """A module: the name of its class, and the settings of one that holds no other."""

    kind: str
    settings: Mapping[str, Any] | None


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """A model's modules by their names, without what torch wraps them in.

    Example:
        >>> layers_of(nn.Sequential(nn.Dropout(), nn.MaxPool2d(3, 2)))["1"].settings["stride"]
        2
    """
    found = {}
    for name, module in model.named_modules():
        kind = kind_of(module)
        is_last = next(module.children(), None) is None
        settings = (
            {key: value for key, value in plain_attributes(module).items() if key not in WIDTHS}
            if is_last
            else None
        )
        found[own_name(name)] = Layer("Identity", {}) if kind in NOTHING else Layer(kind, settings)
    return found


def other_layer(
    own: Mapping[str, Layer], others: Mapping[str, Layer], own_head: str | None = None
) -> str | None:
    """The first layer that two models have and that computes something else, in words; None of none.

    Args:
        own: the layers of one.
        others: of the other.
        own_head: a layer that is not compared, nor the pooling before it.

    Example:
        >>> own, others = (layers_of(nn.Sequential(pool)) for pool in (nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 2, 1)))
        >>> other_layer(own, others)
        '0, of padding 0 for 1'
    """
    left_out = () if own_head is None else (*POOLS, f"{own_head.partition('.')[0]}.")
    for name, layer in own.items():
        other = others.get(name)
        if other is None or (left_out and f"{name}.".startswith(left_out)):
            continue
        if layer.kind != other.kind and not (layer.settings is None and other.settings is None):
            return f"{name}, {layer.kind} for {other.kind}"
        settings, usual = layer.settings or {}, other.settings or {}
        for key in settings.keys() & usual.keys():
            if _short(settings[key]) != _short(usual[key]):
                return f"{name}, of {key} {settings[key]!r} for {usual[key]!r}"
    return None


def kind_of(module: nn.Module) -> str:
    """The name of a module's class, or of one of the same function."""
    name = type(module).__name__.removeprefix(SHARDED_KIND)
    return ALIKE.get(name, name)


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """A module's own numbers, strings and tuples of these, but for what changes no output in evaluation mode."""
    return {
        key: value
        for key, value in vars(module).items()
        if key not in SILENT and not key.startswith("_") and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _short(value: Any) -> Any:
    """One number for as many equal ones: a kernel of 3 is one of (3, 3)."""
    if not isinstance(value, (tuple, list)):
        return value
    values = tuple(map(_short, value))
    return values[0] if len(set(values)) == 1 else values
