"""What a model's layers compute, beside their weights: two models of the same keys may be other functions of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..torch_private import own_name

__all__ = [
    "NOTHING",
    "Layer",
    "is_of_library",
    "kind_of",
    "layers_of",
    "other_layer",
    "plain_attributes",
    "short",
]

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
SHAPED = {
    "dynamic_img_pad",
    "dynamic_img_size",
    "dynamic_mask",
    "feat_shape",
    "feat_size",
    "grid_size",
    "image_size",
    "img_size",
    "in_channels",
    "in_features",
    "input_resolution",
    "num_features",
    "num_patches",
    "out_channels",
    "out_features",
    "resolution",
    "strict_img_size",
}
# what stands before a head
POOLS = ("global_pool.", "avgpool.")


@dataclass(frozen=True)
class Layer:
    """A module that computes: the name of its kind, its settings, and whether it holds no other module."""

    kind: str
    settings: Mapping[str, Any]
    is_leaf: bool = True


def is_of_library(model: nn.Module, library: str) -> bool:
    """Whether a model's class, or what that is derived from, is a library's.

    Example:
        >>> is_of_library(nn.Linear(1, 1), "torch"), is_of_library(nn.Linear(1, 1), "timm")
        (True, False)
    """
    return any(cls.__module__.startswith(f"{library}.") for cls in type(model).__mro__)


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """A model's layers by their names, without what torch wraps them in: modules that hold no other, that have weights
    of their own beside others, as norms with an activation, or heads, as attention.

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
        if len(inner) == 1:
            layer = _layer(inner[0])
            if (
                layer.is_leaf
                or any(True for _ in inner[0].parameters(recurse=False))
                or "num_heads" in layer.settings
            ):
                found[own_name(name)] = layer
        else:
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
        own_head: a layer that stays: neither it, nor what stands in the same outermost module, nor the pooling before
            is compared.
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
        both_norms = {layer.kind, other.kind} <= NORMS
        if layer.kind != other.kind and not (both_norms and not same_library):
            # torch's conversion to SyncBatchNorm keeps an activation as a child, which nothing calls
            if layer.is_leaf or other.is_leaf or both_norms:
                return f"{name}, {layer.kind} for {other.kind}"
            continue  # two ways to put layers together, which are compared themselves
        for key, value in layer.settings.items():
            if key in other.settings and short(value) != short(other.settings[key]):
                return f"{name}, of {key} {value!r} for {other.settings[key]!r}"
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
    settings = {key: value for key, value in plain_attributes(module).items() if key not in SHAPED}
    is_leaf = next(module.children(), None) is None
    return Layer("Identity", {}) if kind in NOTHING else Layer(kind, settings, is_leaf)


def _function_of(module: nn.Module) -> str:
    """The class whose forward it is: subclasses that keep it (FSDP2's, a user's) compute the same."""
    name = next(cls.__name__ for cls in type(module).__mro__ if "forward" in vars(cls))
    return ALIKE.get(name, name)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
