"""Which function of timm or torchvision built a model: proven by calling it again, without weights, and comparing."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from .layers import NOTHING, is_of_library, kind_of, layers_of, other_layer, plain_attributes, short

__all__ = ["Origin", "fits_default_size", "image_size", "lookalikes", "origin_of", "other_function"]

# methods that compute no output
BESIDE = {"extra_repr", "load_state_dict", "state_dict", "train"}
# timm's names of activations that published weights were trained with in the place of others
ACTIVATIONS = {"LeakyReLU": "leaky_relu"}
# torchvision's arguments that a model keeps under their names
KEPT_ARGUMENTS = ("image_size", "transform_input", "aux_logits")
# options of what goes in and out; what lies between computes the same
OUTSIDE = ("num_classes", "in_chans", "img_size", "image_size", "features_only", "out_indices", "feature_cls")


@dataclass(frozen=True)
class Origin:
    """A call that builds the model anew: `library`'s `name` with `options`."""

    library: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        """As the commands take it: a timm name, or `torchvision/NAME`."""
        return self.name if self.library == "timm" else f"{self.library}/{self.name}"

    def build(self) -> nn.Module:
        """The model with random weights; nothing is downloaded."""
        if self.library == "timm":
            import timm

            return timm.create_model(self.name, pretrained=False, **self.options)
        from torchvision import models

        quiet = {"init_weights": False} if self.name in ("googlenet", "inception_v3") else {}
        return models.get_model(self.name, weights=None, **quiet, **self.options)


@dataclass(frozen=True)
class _Structure:
    """What makes two models the same function of their weights: classes, plain attributes and shapes."""

    modules: dict[str, tuple[str, dict[str, Any]]]
    shapes: dict[str, tuple[int, ...]]
    # the layer that gives the logits, or its place
    head: str
    outputs: int
    first_channels: int


def origin_of(model: nn.Module) -> tuple[Origin | None, str]:
    """How a model was built, or None and why that cannot be said.

    Example:
        >>> import timm
        >>> origin_of(timm.create_model("test_resnet", num_classes=5))[0]
        Origin(library='timm', name='test_resnet', options={'num_classes': 5})
        >>> origin_of(nn.Linear(1, 1))[1]
        "Linear is none of timm's or torchvision's"
    """
    library = type(model).__module__.partition(".")[0]
    if library == "timm":
        return _origin_in_timm(model)
    if library == "torchvision":
        return _origin_in_torchvision(model)
    return None, f"{type(model).__name__} is none of timm's or torchvision's"


def other_function(model: nn.Module, origin: Origin, own_head: str | None = None) -> str | None:
    """In what a model computes something else than that of an origin with the same weights: keys do not tell.

    Args:
        model: of which the weights of the other have the keys and shapes.
        origin: of the other.
        own_head: the layer of the model that stays, and the pooling before it.

    Returns:
        What the model is, and what the other; None of the same, and where one cannot be said. Of a model that no
        function builds, as one that was changed, the first layer that differs.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_resnet", act_layer="leaky_relu")
        >>> other_function(model, Origin("timm", "test_resnet"))
        "test_resnet with act_layer='leaky_relu' for test_resnet"
    """
    free = (*OUTSIDE, *(() if own_head is None else ("global_pool",)))
    if own_head is None and _is_of(model, origin):
        return None
    own, _ = origin_of(model)
    if own is None:  # it was changed, or is none of a library's
        return _other_layer_than(model, origin, own_head)
    outside = {key: value for key, value in own.options.items() if key in free}
    inside, other = (
        Origin(each.library, each.name, {key: x for key, x in each.options.items() if key not in free})
        for each in (own, origin)
    )
    same = inside.options == other.options
    if same and own.library == origin.library and own.name != origin.name:
        same = _is_of(model, Origin(other.library, other.name, {**outside, **other.options}))
    return None if same else f"{_called(inside)} for {_called(other)}"


def _other_layer_than(model: nn.Module, origin: Origin, own_head: str | None) -> str | None:
    try:
        with torch.device("meta"):
            twin = origin.build()
    except Exception:  # whatever a constructor raises at what a file says
        return None
    same_library = is_of_library(model, origin.library)
    return other_layer(layers_of(model), layers_of(twin), own_head, same_library)


def _is_of(model: nn.Module, origin: Origin) -> bool:
    """Whether it may be: this version of the library may not have such a call."""
    try:
        twin = _twin(origin.library, origin.name, tuple(origin.options.items()))
    except TypeError:  # a value of a file that no such call has
        return False
    return twin is None or _difference(_structure_of(model), twin) is None


def _called(origin: Origin) -> str:
    options = ", ".join(f"{key}={value!r}" for key, value in origin.options.items())
    return f"{origin.full_name} with {options}" if options else origin.full_name


def lookalikes(model: nn.Module) -> Iterator[str]:
    """The names of torchvision's models that this is one of, whatever head was put on it."""
    own = _structure_of(model)
    for name in _torchvision_names(model):
        twin = _twin("torchvision", name, _kept_arguments(model, name))
        if (
            twin is not None
            and _difference(own, twin, but=(twin.head.partition(".")[0], "aux", "Aux")) is None
        ):
            yield name


def image_size(model: nn.Module) -> tuple[int, ...] | None:
    """Height and width that a model's position embeddings were made for, where one of its modules says so."""
    for module in model.modules():
        size = vars(module).get("img_size", vars(module).get("image_size"))
        if isinstance(size, int):
            return (size, size)
        if isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(side, int) for side in size):
            return tuple(size)
    return None


def fits_default_size(model: nn.Module, config: dict[str, Any]) -> bool:
    """Whether a timm model of fixed size, which names none, has the tables of the size in its configuration."""
    name = config.get("architecture")
    twin = _twin("timm", name, ()) if name else None
    own = _structure_of(model)
    if twin is None or own.modules[""][0] != twin.modules[""][0]:
        return True
    others = (*_named(config, "classifier"), *_named(config, "first_conv"))
    return all(
        own.shapes[key] == shape
        for key, shape in twin.shapes.items()
        if key in own.shapes and not key.startswith((*others, own.head or "head"))
    )


def _named(config: dict[str, Any], key: str) -> tuple[str, ...]:
    """The layers that a timm model's configuration names there: one, several or none."""
    names = config.get(key) or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _origin_in_timm(model: Any) -> tuple[Origin | None, str]:
    import timm

    config = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture") if isinstance(config, dict) else None
    if not name or not timm.is_model(name):
        return None, f"{type(model).__name__} was not made by timm.create_model"
    options: dict[str, Any] = {}
    if type(model).__module__ == "timm.models._features":
        options = {"features_only": True, "out_indices": tuple(model.feature_info.out_indices)}
        if type(model).__name__ == "FeatureDictNet":
            options["feature_cls"] = "dict"
    own, twin = _structure_of(model), _twin("timm", name, tuple(options.items()))
    if twin is not None:
        root, default = own.modules[""][1], twin.modules[""][1]
        said = {
            "num_classes": (root.get("num_classes"), default.get("num_classes")),
            "in_chans": (own.first_channels, twin.first_channels),
            "img_size": (image_size(model), twin.modules[""][1].get("<size>")),
            "global_pool": (_pool(own), _pool(twin)),
        }
        options |= {key: value for key, (value, usual) in said.items() if value not in (None, usual)}
        others = _kinds(own) - _kinds(twin)
        options |= next(({"act_layer": name} for kind, name in ACTIVATIONS.items() if kind in others), {})
        twin = _twin("timm", name, tuple(options.items()))
    return _proven(model, own, twin, Origin("timm", name, options))


def _origin_in_torchvision(model: nn.Module) -> tuple[Origin | None, str]:
    own, reason = (
        _structure_of(model),
        f"{type(model).__name__} is built by no function of torchvision.models",
    )
    for name in _torchvision_names(model):
        options = _kept_arguments(model, name)
        twin = _twin("torchvision", name, options)
        if twin is not None and own.outputs != twin.outputs:
            options = (("num_classes", own.outputs), *options)
            twin = _twin("torchvision", name, options)
        origin, why_not = _proven(model, own, twin, Origin("torchvision", name, dict(options)))
        if origin is not None:
            return origin, ""
        reason = why_not if len(own.shapes) == len(twin.shapes if twin else ()) else reason
    return None, reason


def _proven(
    model: nn.Module, own: _Structure, twin: _Structure | None, origin: Origin
) -> tuple[Origin | None, str]:
    if twin is None:
        return None, f"{origin.full_name} cannot be built with {origin.options}"
    difference = _difference(own, twin)
    if difference is not None:
        return None, f"{type(model).__name__} differs from {origin.full_name} at {difference}"
    return origin, ""


def _torchvision_names(model: nn.Module) -> list[str]:
    from torchvision import models

    ours = [cls.__module__ for cls in type(model).__mro__ if cls.__module__.startswith("torchvision.models.")]
    # those of detection and segmentation would download a backbone
    parts = (
        "torchvision.models.detection",
        "torchvision.models.segmentation",
        "torchvision.models.optical_flow",
    )
    if not ours or ours[0].startswith(parts):
        return []
    return [name for name in models.list_models() if models.get_model_builder(name).__module__ == ours[0]]


def _kept_arguments(model: nn.Module, name: str) -> tuple[tuple[str, Any], ...]:
    twin = _twin("torchvision", name, ())
    default = {} if twin is None else twin.modules[""][1]
    kept = {key: vars(model)[key] for key in KEPT_ARGUMENTS if key in vars(model) and key in default}
    return tuple((key, value) for key, value in kept.items() if value != default[key])


@lru_cache(maxsize=64)
def _twin(library: str, name: str, options: tuple[tuple[str, Any], ...]) -> _Structure | None:
    """The structure of what a call builds; None where it fails."""
    try:
        with torch.device("meta"):
            return _structure_of(Origin(library, name, dict(options)).build())
    except Exception:  # whatever a constructor raises at arguments that it does not take
        return None


def _structure_of(model: nn.Module) -> _Structure:
    modules = {
        name: (kind_of(module), {**plain_attributes(module), "replaced methods": _replaced_methods(module)})
        for name, module in model.named_modules()
        if not name or kind_of(module) not in NOTHING
    }
    size = image_size(model)
    if size is not None:
        modules[""][1]["<size>"] = size
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    # SqueezeNet's logits come from a convolution
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and "aux" not in name.lower()
    ]
    head, last = layers[-1] if layers else ("", None)
    return _Structure(
        modules,
        {name: tuple(tensor.shape) for name, tensor in tensors},
        head,
        getattr(last, "out_features", 0) or getattr(last, "out_channels", 0),
        convs[0].in_channels if convs else 0,
    )


def _replaced_methods(module: nn.Module) -> tuple[str, ...]:
    """Methods that are no longer the class's, nor wrap it as accelerate's mixed precision does."""

    def function(method: Any) -> Any:
        inner = inspect.unwrap(method)
        return getattr(inner, "__func__", inner)

    return tuple(
        key
        for key, value in vars(module).items()
        if inspect.isroutine(getattr(type(module), key, None))
        and callable(value)
        and not key.startswith("_")
        and key not in BESIDE
        and function(value) is not function(getattr(type(module), key))
    )


def _kinds(structure: _Structure) -> set[str]:
    return {kind for kind, _ in structure.modules.values()}


def _pool(structure: _Structure) -> str | None:
    """What `global_pool` a timm model was made with: its own attribute, or its pooling layer's."""
    own = structure.modules[""][1].get("global_pool")
    layers = [attributes.get("pool_type") for _, attributes in structure.modules.values()]
    return own or next((kind for kind in layers if kind), None)


def _difference(own: _Structure, twin: _Structure, but: tuple[str, ...] = ()) -> str | None:
    """Where two structures differ, outside of what begins with `but`."""
    for name in own.modules.keys() | twin.modules.keys():
        if but and name.startswith(but):
            continue
        if name not in own.modules or name not in twin.modules:
            return f"{name}, which {'one' if name in own.modules else 'the other'} has alone"
        kind, attributes = own.modules[name]
        other_kind, usual = twin.modules[name]
        if kind != other_kind and not (but and not name):
            return f"{name or 'its class'}, {kind} for {other_kind}"
        for key in attributes.keys() & usual.keys():
            if short(attributes[key]) != short(usual[key]) and not (but and key == "num_classes"):
                return f"{name or 'its'} {key}, {attributes[key]!r} for {usual[key]!r}"
    for key, shape in twin.shapes.items():
        if not (but and key.startswith(but)) and own.shapes.get(key, shape) != shape:
            return f"{key}, of shape {own.shapes[key]} for {shape}"
    return None
