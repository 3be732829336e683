"""The models: names, how to build them with and without weights, which of them are alike."""

import hashlib
import inspect
from typing import Any

import timm
import torch
import torchvision
from timm.models._registry import _model_entrypoints, _model_to_module
from torch import nn

LIBRARIES = ("timm", "torchvision")


def names(library: str) -> list[str]:
    if library == "timm":
        return timm.list_models()
    return torchvision.models.list_models(module=torchvision.models)


def family(library: str, name: str) -> str:
    """The module that defines a model, such as `vision_transformer`."""
    if library == "timm":
        return _model_to_module[name]
    return inspect.unwrap(torchvision.models.get_model_builder(name)).__module__.rpartition(".")[2]


def build(library: str, name: str, size: int | None = None, **options: Any) -> nn.Module:
    """A model with random weights; `size` is told to those that are built for an input size."""
    if library == "torchvision":
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False
        if size is not None and name.startswith("vit_"):
            options["image_size"] = size
        return torchvision.models.get_model(name, weights=None, **options)
    if size is not None:
        try:
            return timm.create_model(name, img_size=size, **options)
        except TypeError:
            pass
    return timm.create_model(name, **options)


def build_on_meta(library: str, name: str, size: int | None = None, **options: Any) -> nn.Module:
    try:
        with torch.device("meta"):
            return build(library, name, size, **options)
    except (NotImplementedError, RuntimeError):  # some constructors compute with values
        return build(library, name, size, **options)


def classes(model: nn.Module) -> str:
    """A short name of the set of a model's classes, without torch's own."""
    own = {f"{type(m).__module__}.{type(m).__qualname__}" for m in model.modules()}
    return short(sorted(name for name in own if not name.startswith("torch.")))


def weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def signature(record: dict[str, Any]) -> str:
    """Equal for models of the same classes that are shifted at the same numbers of sites of each kind."""
    kinds = ("family", "classes", "sites", "channel_dims", "windows", "narrow")
    return short([(kind, record[kind]) for kind in kinds])


def short(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def is_known(library: str, name: str) -> bool:
    return name in (_model_entrypoints if library == "timm" else names(library))


def make_visible(model: nn.Module, low: float = 0.5, high: float = 1.5) -> nn.Module:
    """Draw anew what hides a branch at first: zero heads and norms, layer scales, skip gains."""
    for name, parameter in model.named_parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02 if parameter.dim() > 1 else 0.1)
        scale = name.rpartition(".")[2] in ("gamma", "gain", "weight", "layer_scale", "skipinit_gain")
        if (parameter.dim() <= 1 and scale) or "gamma" in name or "layer_scale" in name or "skipinit" in name:
            nn.init.uniform_(parameter, low, high)
    return model.eval()
