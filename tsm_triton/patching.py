"""Shift a model in place, with forward pre-hooks: find the sites, hold the hooks, take them off again."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import ops
from .functional import check_shift, clip_boundaries, fold_counts, temporal_shift
from .integrations.dataflow import Merge, Skipped, analyse, verify_shifts
from .integrations.tracing import BATCH, Trace, input_shape, trace
from .sites import ShiftSite

__all__ = [
    "ShiftHook",
    "find_sites",
    "is_patched",
    "packed_clips",
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
    them, so changing one on an installed hook recompiles correctly. Where the argument has several rows a
    frame, sorted by frame (windows), `counter` knows how many frames there are.
    """

    # what stands in for the shift while tsm_triton.stepping runs the model on one frame
    step: Callable[[Tensor], Tensor] | None = None
    # where clips of different lengths begin, inside `packed_clips`
    boundaries: Tensor | None = None

    def __init__(
        self,
        num_segments: int,
        shift_div: int,
        direction: str,
        channel_dim: int,
        counter: "FrameCounter | None" = None,
    ) -> None:
        self.num_segments = num_segments
        self.shift_div = shift_div
        self.direction = direction
        self.channel_dim = channel_dim
        self.counter = counter
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
        if self.step is not None:
            return self.step(x)
        if self.counter is None:
            return self._shift(x, self.channel_dim)
        # [N*T*k, ...] as [N*T, k, ...]: the shift moves whole frames of k rows
        frames = self.counter.frames
        rows = x.reshape(frames, x.shape[0] // frames, *x.shape[1:])
        channel_dim = self.channel_dim if self.channel_dim < 0 else self.channel_dim + 1
        return self._shift(rows, channel_dim).reshape(x.shape)

    def _shift(self, x: Tensor, channel_dim: int) -> Tensor:
        if self.boundaries is not None:
            counts = fold_counts(x.shape[channel_dim], self.shift_div, self.direction)
            return ops.temporal_shift_packed(x, self.boundaries, *counts, True, channel_dim)
        return temporal_shift(
            x,
            self.num_segments,
            shift_div=self.shift_div,
            direction=self.direction,
            channel_dim=channel_dim,
        )

    def __repr__(self) -> str:
        return (
            f"ShiftHook(num_segments={self.num_segments}, shift_div={self.shift_div}, "
            f"direction={self.direction!r}, channel_dim={self.channel_dim}, enabled={self.enabled})"
        )


class FrameCounter:
    """The forward pre-hook that notes how many frames a module receives, for the shifts behind it."""

    def __init__(self) -> None:
        self.frames = 1

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        self.frames = x.shape[0]


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
            `"blocks.2"`). A stage is `layer1` ... `layer4` of a ResNet, `blocks.i` of timm's MobileNets,
            EfficientNets and ViTs, `features.i` of torchvision's.
        filter_fn: called with each site's module and name; keeps those it returns true for. It also says
            that sites of a family that is refused otherwise (NASNet, LCNetV2) are wanted.
        example_input: gives the shape of the model's input, where its `pretrained_cfg` does not.

    Raises:
        TypeError: not a module, or a scripted one.
        ValueError: the model cannot be traced, has no residual branch, or a family is refused; no site is
            left; an unknown place or stage.

    Example:
        >>> import timm
        >>> find_sites(timm.create_model("resnet18"))[0]
        ShiftSite('layer1.0.conv1', Conv2d, channels=64, channel_dim=1)
    """
    return _find(model, place, stages, filter_fn, example_input).sites


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
    sites: Sequence[ShiftSite] | None = None,
    verify: bool = True,
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
        sites: exactly these, instead of what `find_sites` would choose.
        verify: trace the patched model on the meta device and compare: it must be the original plus these
            shifts, with every shortcut unshifted.

    Returns:
        The same model.

    Raises:
        TypeError, ValueError: bad arguments; no site; a site with fewer channels than `shift_div`. Where the
            dataflow chose the sites and others are wide enough, a warning names the ones left out.
        RuntimeError: a model that is patched already, or compiled, or whose patch fails the verification.
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
            "expected an unpatched model, got one that is patched already. Call tsm_triton.unpatch(model) "
            "first, or tsm_triton.set_num_segments(model, T) to change the clip length."
        )
    if any(type(m).__name__ == "OptimizedModule" or m._compiled_call_impl for m in model.modules()):
        raise RuntimeError(
            "expected a model that is not compiled, got a compiled one, which would silently ignore the "
            "shift. Patch first, then torch.compile."
        )
    if sites is None:
        found = _find(model, place, stages, filter_fn, example_input)
    elif stages is None and filter_fn is None:
        found = _Found(_checked_sites(model, sites), [], _backbones(model, place, example_input))
    else:
        raise ValueError("expected either sites, or stages and filter_fn to choose among them, got both")
    chosen = _wide_enough(found, shift_div, direction)
    _add_hooks(model, chosen, num_segments, shift_div, direction)
    if verify:
        difference = _difference(found.backbones, chosen, place)
        if difference is not None:
            unpatch(model)
            raise RuntimeError(
                f"expected the patched {type(model).__name__} to be the original plus {len(chosen)} shifts "
                f"with each shortcut unshifted, got a difference: {difference}. The patch is taken back. Leave "
                "the site out with filter_fn, or shift by hand with tsm_triton.temporal_shift."
            )
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
            if isinstance(hook, (ShiftHook, FrameCounter)):
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


@contextmanager
def packed_clips(model: nn.Module, clip_lengths: Sequence[int] | Tensor) -> Iterator[None]:
    """Run a patched model on clips of different lengths, packed along the frame axis without padding.

    Args:
        model: a patched model.
        clip_lengths: how many frames each clip has; they add up to the frames the model is called with.

    Raises:
        RuntimeError: the model is not patched.
        TypeError, ValueError: lengths that are not non-negative integers, or (in the model's forward) do not
            add up to its frames.

    Example:
        >>> import timm, torch
        >>> model = patch(timm.create_model("resnet18").eval())
        >>> with packed_clips(model, [3, 5]):
        ...     model(torch.randn(3 + 5, 3, 64, 64)).shape
        torch.Size([8, 1000])
    """
    hooks = shift_hooks(model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    boundaries = clip_boundaries(clip_lengths, int(sum(clip_lengths)), device)
    before = [(hook, hook.boundaries) for hook in hooks]
    try:
        for hook in hooks:
            hook.boundaries = boundaries
        yield
    finally:
        for hook, earlier in before:
            hook.boundaries = earlier


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


@dataclass
class _Backbone:
    """A model of a library, or the user's whole model, inside the module that was given.

    Attributes:
        prefix: its name there, with a dot behind where there is one.
        module: the model.
        sites: its sites, named relative to it.
        example_input: gives the shape to trace it with.
        graph: its trace, once there is one.
        merges: its residual merges, once they are known.
    """

    prefix: str
    module: nn.Module
    sites: list[ShiftSite]
    example_input: Tensor | None
    by_dataflow: bool = False
    graph: Trace | None = None
    merges: Sequence[Merge] = ()
    skipped: Sequence[Skipped] = ()


@dataclass
class _Found:
    sites: list[ShiftSite]
    skipped: list[Skipped]
    backbones: list[_Backbone]


def _find(
    model: nn.Module,
    place: str,
    stages: Iterable[int | str] | None,
    filter_fn: Callable[[nn.Module, str], bool] | None,
    example_input: Tensor | None,
) -> _Found:
    _check_model(model)
    if place not in PLACES:
        raise ValueError(f"place must be one of {', '.join(map(repr, PLACES))}, got {place!r}")
    backbones = _backbones(model, place, example_input, forced=filter_fn is not None)
    found = [
        replace(
            site,
            name=backbone.prefix + site.name,
            frames_from=None if site.frames_from is None else backbone.prefix + site.frames_from,
        )
        for backbone in backbones
        for site in backbone.sites
    ]
    if not found:
        instead = (
            'place="block" shifts the input of each of its blocks instead, or shift'
            if place == "blockres"
            else "Shift"
        )
        raise ValueError(
            f"expected a model with residual branches, or one that holds such a model, got "
            f"{type(model).__name__} with none. {instead} by hand, with tsm_triton.temporal_shift in its "
            "forward."
        )
    kept = found if stages is None else _in_stages(model, found, stages)
    if filter_fn is not None:
        kept = [site for site in kept if filter_fn(site.module, site.name)]
    if not kept:
        raise ValueError(
            f"expected stages and filter_fn to keep at least one of the {len(found)} sites of "
            f"{type(model).__name__}, got none. The sites are {', '.join(site.name for site in found)}."
        )
    skipped = [
        Skipped(backbone.prefix + skip.name, skip.reason)
        for backbone in backbones
        for skip in backbone.skipped
    ]
    return _Found(kept, skipped, backbones)


def _backbones(
    model: nn.Module, place: str, example_input: Tensor | None, forced: bool = True
) -> list[_Backbone]:
    """The libraries' models that `model` is or holds, else the model itself, with their sites."""
    backbones: list[_Backbone] = []
    for prefix, module in model.named_modules():
        if any(f"{prefix}.".startswith(outer.prefix) for outer in backbones):
            continue
        for integration in _integrations(module):
            outer = f"{prefix}." if prefix else ""
            sites = integration.find_sites(module, place)
            if sites is not None:
                backbones.append(_Backbone(outer, module, sites, example_input))
                break
            if integration.is_model(module):
                reason = None if forced else integration.refusal(module)
                if reason is not None:
                    raise ValueError(
                        "expected a model whose residual branches can be shifted, got "
                        f"{type(module).__name__}: {reason}. Choose sites with filter_fn, which is called with "
                        "each module and its name."
                    )
                backbones.append(_by_dataflow(outer, module, place, example_input))
                break
    return backbones or [_by_dataflow("", model, place, example_input)]


def _integrations(module: nn.Module) -> Iterator[Any]:
    """What is known about the libraries that a module's class comes from."""
    libraries = {cls.__module__.partition(".")[0] for cls in type(module).__mro__}
    for library in libraries.intersection(INTEGRATIONS):
        yield import_module(f".integrations.{library}", __package__)


def _by_dataflow(prefix: str, module: nn.Module, place: str, example_input: Tensor | None) -> _Backbone:
    found = analyse(module, place, example_input=example_input)
    return _Backbone(
        prefix, module, found.sites, example_input, True, found.graph, found.merges, found.skipped
    )


def _checked_sites(model: nn.Module, sites: Sequence[ShiftSite]) -> list[ShiftSite]:
    modules = dict(model.named_modules())
    for site in sites:
        if modules.get(site.name) is not site.module:
            raise ValueError(
                f"expected sites of this very model, got {site!r}, whose module is not the model's. "
                "Find them with tsm_triton.find_sites(model), or rebuild them with ShiftSite.from_dict."
            )
    if not sites:
        raise ValueError("expected at least one site, got none")
    return list(sites)


def _wide_enough(found: _Found, shift_div: int, direction: str) -> list[ShiftSite]:
    """The sites where something would move."""
    wide = [s for s in found.sites if max(fold_counts(s.channels, shift_div, direction)) > 0]
    narrow = [site for site in found.sites if site not in wide]
    if not narrow:
        return wide
    if not wide or not all(backbone.by_dataflow for backbone in found.backbones):
        site = narrow[0]
        raise ValueError(
            f"expected at least shift_div={shift_div} channels at every site, got {site.channels} at "
            f"{site.name!r}: nothing would move there. Lower shift_div, or leave the site out with filter_fn."
        )
    warnings.warn(
        f"expected at least shift_div={shift_div} channels at every site, got fewer at {len(narrow)} of "
        f"{len(found.sites)}, which stay unshifted: {', '.join(site.name for site in narrow)}. Lower "
        "shift_div to shift them too.",
        stacklevel=3,
    )
    return wide


def _add_hooks(
    model: nn.Module, sites: Sequence[ShiftSite], num_segments: int, shift_div: int, direction: str
) -> None:
    counters: dict[str, FrameCounter] = {}
    for site in sites:
        counter = None
        if site.frames_from is not None:
            counter = counters.get(site.frames_from)
            if counter is None:
                counter = counters[site.frames_from] = FrameCounter()
                model.get_submodule(site.frames_from).register_forward_pre_hook(counter, with_kwargs=True)
        hook = ShiftHook(num_segments, shift_div, direction, site.channel_dim, counter)
        site.module.register_forward_pre_hook(hook, with_kwargs=True)


def _difference(backbones: Sequence[_Backbone], sites: Sequence[ShiftSite], place: str) -> str | None:
    """What else, or less, than the shifts of these sites a patch has changed."""
    for backbone in backbones:
        inside = [
            replace(site, name=site.name.removeprefix(backbone.prefix))
            for site in sites
            if site.name.startswith(backbone.prefix)
        ]
        shape = input_shape(backbone.module, backbone.example_input)
        if backbone.graph is None:
            backbone.graph = trace(backbone.module, shape, shifted=False)
            backbone.merges = analyse(backbone.module, graph=backbone.graph).merges
        after = trace(backbone.module, shape, num_segments=BATCH)
        difference = verify_shifts(
            backbone.graph, after, inside, backbone.merges if place == "blockres" else ()
        )
        if difference is not None:
            return difference
    return None


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
