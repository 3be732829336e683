"""What a model's layers compute, beside their weights: two models of the same keys may be other functions of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..torch_private import own_name

__all__ = ["NOTHING", "Layer", "kind_of", "layers_of", "other_layer", "plain_attributes", "short"]

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
NOTHING = {
    "AlphaDropout",
    "DropBlock2d",
    "DropPath",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "FeatureAlphaDropout",
    "Identity",
    "PatchDropout",
    "PatchDropoutWithIndices",
    "StochasticDepth",
}
# another class of the same function in evaluation mode; of plain batch-norms torch has one function for all axes
ALIKE = {
    "SyncBatchNorm": "BatchNorm2d",
    "SyncBatchNormAct": "BatchNormAct2d",
    "DropoutLinear": "Linear",
    "_BatchNorm": "BatchNorm2d",
}
NORMS = {"BatchNorm2d", "BatchNormAct2d"}
# what the shapes of weights say, or those of frames
WIDTHS = {"feat_shape", "in_channels", "in_features", "num_features", "out_channels", "out_features"}
# what stands before a head
POOLS = ("global_pool.", "avgpool.")


@dataclass(frozen=True)
class Layer:
    """A module that holds no other: the name of its kind, and its settings."""

    kind: str
    settings: Mapping[str, Any]


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """A model's innermost modules by their names, without what torch wraps them in.

    A Sequential of one layer, beside what does nothing, goes by that layer.

    Example:
        >>> layers_of(nn.Sequential(nn.Dropout(), nn.MaxPool2d(3, 2)))["1"].settings["stride"]
        2
    """
    found = {}
    for name, module in model.named_modules():
        if module is model:
            continue
        inner = [module]
        while len(inner) == 1 and type(inner[0]) is nn.Sequential:
            inner = [part for part in inner[0] if _function_of(part) not in NOTHING]
        if len(inner) == 1 and next(inner[0].children(), None) is None:
            found[own_name(name)] = _layer(inner[0])
        elif type(module) is nn.Sequential:
            found[own_name(name)] = Layer("Sequential" if inner else "Identity", {})
    return found


def other_layer(
    own: Mapping[str, Layer],
    others: Mapping[str, Layer],
    own_head: str | None = None,
    same_library: bool = True,
) -> str | None:
    """The first layer that two models have and that computes something else, in words; None of none.

    Args:
        own: the layers of one.
        others: of the other.
        own_head: a layer that is not compared, nor the pooling before it.
        same_library: whether one library made both: another puts activations elsewhere.

    Example:
        >>> own, others = (layers_of(nn.Sequential(pool)) for pool in (nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 2, 1)))
        >>> other_layer(own, others)
        '0, of padding 0 for 1'
    """
    left_out = () if own_head is None else (*POOLS, f"{own_head.partition('.')[0]}.")
    for name, layer in own.items():
        other = others.get(name)
        if other is None or f"{name}.".startswith(left_out):
            continue
        both_norms = not same_library and {layer.kind, other.kind} <= NORMS
        if layer.kind != other.kind and not both_norms:
            return f"{name}, {layer.kind} for {other.kind}"
        for key in layer.settings.keys() & other.settings.keys():
            if short(layer.settings[key]) != short(other.settings[key]):
                return f"{name}, of {key} {layer.settings[key]!r} for {other.settings[key]!r}"
    return None


def kind_of(module: nn.Module) -> str:
    """The name of a module's class, or of one of the same function."""
    name = type(module).__name__
    return ALIKE.get(name, name)


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """A module's own numbers, strings and tuples of these, but for what changes no output in evaluation mode."""
    return {
        key: value
        for key, value in vars(module).items()
        if key not in SILENT and not key.startswith("_") and _is_plain(value)
    }


def short(value: Any) -> Any:
    """A setting as it is compared: one number for as many equal ones, as a kernel of 3 is one of (3, 3)."""
    if not isinstance(value, (tuple, list)):
        return value
    values = tuple(map(short, value))
    return values[0] if len(set(values)) == 1 else values


def _layer(module: nn.Module) -> Layer:
    kind = _function_of(module)
    settings = {key: value for key, value in plain_attributes(module).items() if key not in WIDTHS}
    return Layer("Identity", {}) if kind in NOTHING else Layer(kind, settings)


def _function_of(module: nn.Module) -> str:
    """The class whose forward it is: subclasses that keep it (FSDP2's, a user's) compute the same."""
    name = next(cls.__name__ for cls in type(module).__mro__ if "forward" in vars(cls))
    return ALIKE.get(name, name)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
