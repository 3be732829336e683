"""Shift a model in place, with forward pre-hooks: find the sites, hold the hooks, take them off again."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .functional import check_shift, fold_counts, temporal_shift
from .sites import ShiftSite

__all__ = [
    "ShiftHook",
    "find_sites",
    "is_patched",
    "patch",
    "set_num_segments",
    "shift_disabled",
    "shift_hooks",
    "unpatch",
]

PLACES = ("blockres", "block")
INTEGRATIONS = ("timm", "torchvision")
Model = TypeVar("Model", bound=nn.Module)


class ShiftHook:
    """The forward pre-hook that shifts a module's first argument, and the record that it is shifted.

    Its attributes are plain values: they survive `copy.deepcopy` and pickle, and `torch.compile` guards
    them, so changing one on an installed hook recompiles correctly.
    """

    def __init__(self, num_segments: int, shift_div: int, direction: str, channel_dim: int) -> None:
        self.num_segments = num_segments
        self.shift_div = shift_div
        self.direction = direction
        self.channel_dim = channel_dim
        self.enabled = True

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.enabled:
            return None
        if args:
            return (self.shift(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: self.shift(kwargs[name])}

    def shift(self, x: Tensor) -> Tensor:
        return temporal_shift(
            x,
            self.num_segments,
            shift_div=self.shift_div,
            direction=self.direction,
            channel_dim=self.channel_dim,
        )

    def __repr__(self) -> str:
        return (
            f"ShiftHook(num_segments={self.num_segments}, shift_div={self.shift_div}, "
            f"direction={self.direction!r}, channel_dim={self.channel_dim}, enabled={self.enabled})"
        )


def find_sites(
    model: nn.Module,
    *,
    place: str = "blockres",
    stages: Iterable[int | str] | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    example_input: Tensor | None = None,
) -> list[ShiftSite]:
    """The modules whose input `patch` would shift, in the model's own order; nothing is changed.

    Args:
        model: a timm or torchvision model, or a module that holds one.
        place: `"blockres"` shifts the residual branch and leaves the identity, `"block"` shifts both.
        stages: which stages of the backbone to keep, by index from 0 or by module name (`"layer3"`,
            `"blocks.2"`). A stage is `layer1` ... `layer4` of a ResNet, `blocks.i` of timm's MobileNets
            and EfficientNets, `features.i` of torchvision's.
        filter_fn: called with each site's module and name; keeps those it returns true for.
        example_input: not needed by the models known so far; accepted so that calls need not change.

    Raises:
        TypeError: not a module, or a scripted one.
        ValueError: no site is known or left, or an unknown place or stage.

    Example:
        >>> import timm
        >>> find_sites(timm.create_model("resnet18"))[0]
        ShiftSite('layer1.0.conv1', Conv2d, channels=64, channel_dim=1)
    """
    _check_model(model)
    if place not in PLACES:
        raise ValueError(f"place must be one of {', '.join(map(repr, PLACES))}, got {place!r}")
    found = list(_backbone_sites(model, place))
    if not found:
        raise ValueError(
            f"expected a model with known residual sites, or one that holds such a model, got "
            f"{type(model).__name__} with none. Known are ResNets, MobileNets and EfficientNets of timm and "
            "torchvision; shift other models with tsm_triton.temporal_shift in their forward."
        )
    kept = found if stages is None else _in_stages(model, found, stages)
    if filter_fn is not None:
        kept = [site for site in kept if filter_fn(site.module, site.name)]
    if not kept:
        raise ValueError(
            f"expected stages and filter_fn to keep at least one of the {len(found)} sites of "
            f"{type(model).__name__}, got none. The sites are {', '.join(site.name for site in found)}."
        )
    return kept


def patch(
    model: Model,
    num_segments: int = 8,
    *,
    shift_div: int = 8,
    direction: str = "bidirectional",
    place: str = "blockres",
    stages: Iterable[int | str] | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    example_input: Tensor | None = None,
) -> Model:
    """Shift a 2D model in time, in place: it then takes folded clips `[N*T, 3, H, W]`.

    Keys of `state_dict` stay as they were. Graphs that `torch.compile` made earlier are dropped, since
    they would not see the hooks; compile after patching.

    Args:
        model: a timm or torchvision model, or a module that holds one.
        num_segments: T, the number of frames of a clip.
        shift_div: one part in how many of a site's channels moves each way.
        direction: `"bidirectional"`, or `"causal"` for online video.
        place, stages, filter_fn, example_input: which sites, see `find_sites`.

    Returns:
        The same model.

    Raises:
        TypeError, ValueError: bad arguments; no site; a site with fewer channels than `shift_div`.
        RuntimeError: a model that is patched already, or compiled.
        The model is left as it was.

    Example:
        >>> import timm, torch
        >>> model = patch(timm.create_model("resnet18", num_classes=10), num_segments=8)
        >>> model(torch.randn(2 * 8, 3, 64, 64)).shape  # a row per frame
        torch.Size([16, 10])

    Source: the authors' release for which sites, `place` and ResNet-101's every second block.
    """
    check_shift(num_segments, shift_div, direction)
    _check_model(model)
    if is_patched(model):
        raise RuntimeError(
            "expected an unpatched model, got one that is patched already. Call tsm_triton.unpatch(model) first, "
            "or tsm_triton.set_num_segments(model, T) to change the clip length."
        )
    if any(type(m).__name__ == "OptimizedModule" or m._compiled_call_impl for m in model.modules()):
        raise RuntimeError(
            "expected a model that is not compiled, got a compiled one, which would silently ignore the shift. "
            "Patch first, then torch.compile."
        )
    sites = find_sites(model, place=place, stages=stages, filter_fn=filter_fn, example_input=example_input)
    for site in sites:
        if max(fold_counts(site.channels, shift_div, direction)) == 0:
            raise ValueError(
                f"expected at least shift_div={shift_div} channels at every site, got {site.channels} at "
                f"{site.name!r}: nothing would move there. Lower shift_div, or leave the site out with filter_fn."
            )
    for site in sites:
        hook = ShiftHook(num_segments, shift_div, direction, site.channel_dim)
        site.module.register_forward_pre_hook(hook, with_kwargs=True)
    _forget_compiled_graphs()
    return model


def unpatch(model: Model) -> Model:
    """Take the shift off again: the model computes, and holds, exactly what it did before `patch`.

    Raises:
        RuntimeError: the model is not patched.

    Example:
        >>> import timm
        >>> is_patched(unpatch(patch(timm.create_model("resnet18"))))
        False
    """
    shift_hooks(model)
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, ShiftHook):
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
    _forget_compiled_graphs()
    return model


def is_patched(model: nn.Module) -> bool:
    """Whether any module of the model is shifted."""
    return next(_iter_hooks(model), None) is not None


def shift_hooks(model: nn.Module) -> list[ShiftHook]:
    """The hooks of a patched model, in the model's own order.

    Raises:
        RuntimeError: the model is not patched.
    """
    hooks = list(_iter_hooks(model))
    if not hooks:
        raise RuntimeError(
            f"expected a patched model, got {type(model).__name__} without a shift. "
            "Call tsm_triton.patch(model) first."
        )
    return hooks


def set_num_segments(model: Model, num_segments: int) -> Model:
    """Tell a patched model that clips now have `num_segments` frames; compiled graphs follow.

    Raises:
        RuntimeError: the model is not patched.
        TypeError, ValueError: not a positive int.

    Example:
        >>> import timm, torch
        >>> model = set_num_segments(patch(timm.create_model("resnet18")), 4)
        >>> model(torch.randn(4, 3, 64, 64)).shape
        torch.Size([4, 1000])
    """
    check_shift(num_segments, 8, "causal")
    for hook in shift_hooks(model):
        hook.num_segments = num_segments
    return model


@contextmanager
def shift_disabled(model: nn.Module) -> Iterator[None]:
    """Run a patched model as the 2D network it was, bit for bit; contexts nest.

    Raises:
        RuntimeError: the model is not patched.

    Example:
        >>> import timm, torch
        >>> model, images = patch(timm.create_model("resnet18").eval()), torch.randn(3, 3, 64, 64)
        >>> with shift_disabled(model):
        ...     model(images).shape  # any number of images
        torch.Size([3, 1000])
    """
    before = [(hook, hook.enabled) for hook in shift_hooks(model)]
    try:
        for hook, _ in before:
            hook.enabled = False
        yield
    finally:
        for hook, enabled in before:
            hook.enabled = enabled


def _iter_hooks(model: nn.Module) -> Iterator[ShiftHook]:
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, ShiftHook):
                yield hook


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TypeError(
            f"expected an eager module, got the scripted {type(model).__name__}, whose graph takes no hooks. "
            "Patch the eager model; export it with torch.export."
        )


def _backbone_sites(model: nn.Module, place: str) -> Iterator[ShiftSite]:
    """Sites of every known backbone that `model` is or holds."""
    inside: list[str] = []
    for prefix, module in model.named_modules():
        if any(prefix.startswith(outer) for outer in inside):
            continue
        libraries = {cls.__module__.partition(".")[0] for cls in type(module).__mro__}
        for library in libraries.intersection(INTEGRATIONS):
            sites = import_module(f".integrations.{library}", __package__).find_sites(module, place)
            if sites is not None:
                outer = f"{prefix}." if prefix else ""
                inside.append(outer)
                for site in sites:
                    yield ShiftSite(outer + site.name, site.module, site.channels, site.channel_dim)


def _in_stages(model: nn.Module, sites: Sequence[ShiftSite], stages: Iterable[int | str]) -> list[ShiftSite]:
    """The sites that stand in the given stages."""
    # The outermost containers are the stages where several hold sites (layer1 ... layer4), their children
    # where there is one (blocks.0 ...).
    containers = list(dict.fromkeys(_container(model, site.name) for site in sites))
    if len(containers) > 1:
        names = containers
    else:
        names = [f"{containers[0]}.{name}" for name, _ in model.get_submodule(containers[0]).named_children()]
    wanted: list[str] = []
    for stage in [stages] if isinstance(stages, (int, str)) else stages:
        known = stage in names if isinstance(stage, str) else 0 <= stage < len(names)
        if not known:
            raise ValueError(
                f"expected stages among 0 ... {len(names) - 1} or {', '.join(names)}, got {stage!r}"
            )
        wanted.append(stage if isinstance(stage, str) else names[stage])
    return [site for site in sites if any(f"{site.name}.".startswith(f"{name}.") for name in wanted)]


def _container(model: nn.Module, name: str) -> str:
    """The outermost Sequential or ModuleList on the way to a module."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        path = ".".join(parts[:depth])
        if isinstance(model.get_submodule(path), (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            return path
    return parts[0]


def _forget_compiled_graphs() -> None:
    # Dynamo does not guard on hooks being added or removed: a graph of this model made earlier would go on
    # running without them.
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
