"""Where a module is shifted: the models of known libraries inside it, their sites, and the choice among them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain

import torch
from torch import Tensor, nn

from ..arguments import as_int
from ..choices import PLACES
from ..dataflow.branches import analyse
from ..dataflow.merges import Merge, Skipped
from ..dataflow.tracing import Trace
from ..integrations.library import Library
from ..sites import ShiftSite

__all__ = [
    "Backbone",
    "Found",
    "backbones_of",
    "check_model",
    "choose_sites",
    "find_sites",
    "skipped_sites",
]

INTEGRATIONS = ("timm", "torchvision")


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
        stages: which stages of each backbone to keep, by index from 0 or by module name (`"layer3"`,
            `"blocks.2"`). A stage is `layer1` ... `layer4` of a ResNet, `blocks.i` of timm's MobileNets,
            EfficientNets and ViTs, `features.i` of torchvision's.
        filter_fn: called with each site's module and name; keeps those it returns true for. It also says
            that sites are wanted which are left out otherwise: of a refused family (NASNet, LCNetV2), or
            where timm's `reparameterize_model` would lose the shift (some of NextViT and TinyViT).
        example_input: gives the shape of the model's input, where its `pretrained_cfg` does not.

    Raises:
        TypeError: not a module, or a scripted one; an argument of another type.
        ValueError: the model cannot be traced, has no residual branch, or a family is refused; no site is
            left; an unknown place or stage.

    Example:
        >>> import timm
        >>> find_sites(timm.create_model("resnet18"))[0]
        ShiftSite('layer1.0.conv1', Conv2d, channels=64, channel_dim=1)
    """
    return choose_sites(model, place, stages, filter_fn, example_input).sites


def skipped_sites(
    model: nn.Module, *, place: str = "blockres", example_input: Tensor | None = None
) -> list[Skipped]:
    """What looks like a residual branch, or a module that begins one, and gets no shift; nothing is changed.

    Args:
        model, place, example_input: as for `find_sites`.

    Returns:
        A record with the `name` of a module and the `reason` for each.

    Raises:
        TypeError, ValueError: as `find_sites`, but for a model without a site.

    Example:
        >>> import timm
        >>> skipped = skipped_sites(timm.create_model("tiny_vit_5m_224"))
        >>> skipped[0].name, skipped[0].reason
        ('stages.0.blocks.0.conv1', 'reparameterize_model replaces this module, and would lose the shift')
    """
    check_model(model)
    return _skipped(backbones_of(model, place, example_input, forced=False))


def check_model(model: nn.Module) -> None:
    """Refuse what takes no hooks."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}: pass the model itself")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TypeError(
            f"expected an eager module, got the scripted {type(model).__name__}, whose graph takes no hooks. "
            "Patch the eager model; export it with torch.export."
        )
    sharded = next((module for module in model.modules() if _is_sharded(module)), None)
    if sharded is not None:
        raise RuntimeError(
            f"expected a model that is not sharded, got {type(sharded).__name__}, whose weights this process holds "
            "a part of. Patch first, then fully_shard or FullyShardedDataParallel."
        )


def _is_sharded(module: nn.Module) -> bool:
    return any(
        cls.__name__ in ("FSDPModule", "FullyShardedDataParallel")
        and cls.__module__.startswith("torch.distributed.")
        for cls in type(module).__mro__
    )


@dataclass
class Backbone:
    """A model of a library, or the user's whole model, inside the module that was given.

    Attributes:
        prefix: its name there, with a dot behind where there is one.
        module: the model.
        sites: its sites, named relative to it.
        example_input: gives the shape to trace it with.
        by_dataflow: whether its dataflow chose the sites, not the authors' rule.
        graph: its trace, once there is one.
        merges: its residual merges, once they are known.
        skipped: what got no site, and why.
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
class Found:
    """What was chosen in a module, what was not and why, and the models it was found in."""

    sites: list[ShiftSite]
    skipped: list[Skipped]
    backbones: list[Backbone]


def choose_sites(
    model: nn.Module,
    place: str,
    stages: Iterable[int | str] | None,
    filter_fn: Callable[[nn.Module, str], bool] | None,
    example_input: Tensor | None,
) -> Found:
    """What `find_sites` finds, with all that was learned on the way."""
    check_model(model)
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(
            f"filter_fn must be called with a module and its name, got {filter_fn!r} of type "
            f"{type(filter_fn).__name__}. Pass lambda module, name: ..., or choose with stages."
        )
    backbones = backbones_of(model, place, example_input, forced=filter_fn is not None)
    found = [
        replace(
            site,
            name=backbone.prefix + site.name,
            frames_from=None if site.frames_from is None else backbone.prefix + site.frames_from,
        )
        for backbone in backbones
        for site in backbone.sites
    ]
    _check_found(model, place, filter_fn is not None, backbones)
    kept = found if stages is None else _in_stages(backbones, found, stages)
    if filter_fn is not None:
        kept = [site for site in kept if filter_fn(site.module, site.name)]
    if not kept:
        raise ValueError(
            f"expected stages and filter_fn to keep at least one of the {len(found)} sites of "
            f"{type(model).__name__}, got none. Choose among {', '.join(site.name for site in found)}."
        )
    return Found(kept, _skipped(backbones), backbones)


def _check_found(model: nn.Module, place: str, forced: bool, backbones: Sequence[Backbone]) -> None:
    """Raise where nothing in a model can be shifted, or, unless the sites are `forced`, not all models in it."""
    if not any(backbone.sites for backbone in backbones):
        raise ValueError(
            f"expected a model with residual branches, or one that holds such a model, got "
            f"{type(model).__name__} with none. "
            + (
                'Pass place="block", which shifts the input of each of its blocks, or shift'
                if place == "blockres"
                else "Shift"
            )
            + " by hand, with tsm_triton.temporal_shift in its forward."
        )
    without = [backbone.prefix.rstrip(".") for backbone in backbones if not backbone.sites]
    if without and not forced:
        raise ValueError(
            f"expected residual branches in every model inside {type(model).__name__}, got none in "
            f"{', '.join(map(repr, without))}, which would stay unshifted. Patch the others by themselves, or "
            "say with filter_fn that their sites are all that is wanted."
        )


def _skipped(backbones: Sequence[Backbone]) -> list[Skipped]:
    skipped = [
        Skipped(backbone.prefix + skip.name, skip.reason)
        for backbone in backbones
        for skip in backbone.skipped
    ]
    return list(dict.fromkeys(skipped))


def backbones_of(
    model: nn.Module, place: str, example_input: Tensor | None, forced: bool = True
) -> list[Backbone]:
    """The libraries' models that `model` is or holds, else the model itself, with their sites."""
    if place not in PLACES:
        raise ValueError(
            f"place must be one of {', '.join(map(repr, PLACES))}, got {place!r}: choose the first to shift "
            "residual branches, the second for whole blocks"
        )
    if example_input is not None and not isinstance(example_input, Tensor):
        raise TypeError(
            f"example_input must be a torch.Tensor, got {example_input!r}. Pass torch.empty of the input's shape."
        )
    backbones: list[Backbone] = []
    for prefix, module in model.named_modules():
        if any(f"{prefix}.".startswith(outer.prefix) for outer in backbones):
            continue
        for integration in _integrations(module):
            outer = f"{prefix}." if prefix else ""
            sites = integration.find_sites(module, place)
            if sites is not None:
                backbones.append(Backbone(outer, module, list(sites), example_input))
                break
            if integration.is_model(module):
                reason = None if forced else integration.refusal(module)
                if reason is not None:
                    raise ValueError(
                        "expected a model whose residual branches can be shifted, got "
                        f"{type(module).__name__}: {reason}. Choose sites with filter_fn, which is called with "
                        "each module and its name."
                    )
                backbone = _by_dataflow(outer, module, place, example_input)
                if not forced and backbone.graph is not None:
                    lost = integration.lost_when_reparameterised(backbone.sites, backbone.graph)
                    names = {skip.name for skip in lost}
                    backbone.sites = [site for site in backbone.sites if site.name not in names]
                    backbone.skipped = [*backbone.skipped, *lost]
                backbones.append(backbone)
                break
    return backbones or [_by_dataflow("", model, place, example_input)]


def _integrations(module: nn.Module) -> Iterator[Library]:
    """What is known about the libraries that a module's class comes from."""
    libraries = {cls.__module__.partition(".")[0] for cls in type(module).__mro__}
    for library in libraries.intersection(INTEGRATIONS):
        yield import_module(f"..integrations.{library}", __package__).Rules()


def _by_dataflow(prefix: str, module: nn.Module, place: str, example_input: Tensor | None) -> Backbone:
    found = analyse(module, place, example_input=example_input)
    return Backbone(
        prefix, module, found.sites, example_input, True, found.graph, found.merges, found.skipped
    )


def _in_stages(
    backbones: Sequence[Backbone], sites: Sequence[ShiftSite], stages: Iterable[int | str]
) -> list[ShiftSite]:
    """The sites that stand in the given stages; an index is counted in each backbone."""
    names = [_stage_names(backbone) for backbone in backbones if backbone.sites]
    wanted: list[str] = []
    for stage in [stages] if isinstance(stages, str) or not isinstance(stages, Iterable) else stages:
        if isinstance(stage, str):
            chosen = [stage] if stage in chain(*names) else []
        else:
            index = as_int(stage, "an index of stages")
            chosen = [of_one[index] for of_one in names if 0 <= index < len(of_one)]
        if not chosen:
            raise ValueError(
                f"expected stages among 0 ... {max(map(len, names)) - 1} or {', '.join(chain(*names))}, "
                f"got {stage!r}: choose among them"
            )
        wanted += chosen
    return [site for site in sites if any(f"{site.name}.".startswith(f"{name}.") for name in wanted)]


def _stage_names(backbone: Backbone) -> list[str]:
    # The outermost containers are the stages where several hold sites (layer1 ... layer4), their children
    # where there is one (blocks.0 ...).
    names = list(dict.fromkeys(_container(backbone.module, site.name) for site in backbone.sites))
    if len(names) == 1:
        inside = backbone.module.get_submodule(names[0]).named_children()
        names = [f"{names[0]}.{name}" for name, _ in inside]
    return [backbone.prefix + name for name in names]


def _container(model: nn.Module, name: str) -> str:
    """The outermost Sequential or ModuleList on the way to a module."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        path = ".".join(parts[:depth])
        if isinstance(model.get_submodule(path), (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            return path
    return parts[0]
