"""Shift a model in place and take the shift off again: which hooks go where, and the check of the result."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import Tensor, nn

from ..dataflow.branches import analyse
from ..dataflow.tracing import BATCH, input_shape, trace
from ..functional import check_shift, fold_counts
from ..sites import ShiftSite
from ..torch_private import is_compiled
from .copying import keep_in_copies
from .description import describe
from .finding import Backbone, backbones_of, check_model, choose_sites, find_sites
from .frame_counter import FrameCounter
from .hook_calls import first_parameter
from .hook_guards import guard_hooks
from .hooks import is_patched, packed_clips, set_num_segments, shift_disabled, shift_hooks
from .keeping import PatchRecord, remove_hooks
from .shift_hook import ShiftHook
from .verification import verify_shifts

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

Model = TypeVar("Model", bound=nn.Module)


def patch(
    model: Model,
    num_segments: int = 8,
    *,
    shift_div: int = 8,
    direction: str = "bidirectional",
    fold_order: str = "future_first",
    place: str = "blockres",
    stages: Iterable[int | str] | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    example_input: Tensor | None = None,
    sites: Iterable[ShiftSite] | None = None,
    verify: bool = True,
) -> Model:
    """Shift a 2D model in time, in place: it then takes folded clips `[N*T, 3, H, W]`.

    Keys of `state_dict` stay as they were. Compile after patching. A site is a place: a module that takes the place
    of another (`convert_sync_batchnorm`, adapters of PEFT) takes its shift, too, and where a place is gone the
    next call of the model raises, and so does compiling or exporting it.

    Args:
        model: a timm or torchvision model, or a module that holds one.
        num_segments: T, the number of frames of a clip.
        shift_div: one part in how many of a site's channels moves each way.
        direction: `"bidirectional"`, or `"causal"` for online video.
        fold_order: `"past_first"` for weights that were trained with PaddlePaddle: its first fold reads t-1, its
            second t+1 and ends at `2 * C // shift_div`.
        place, stages, filter_fn, example_input: which sites, see `find_sites`.
        sites: exactly these, instead of what `find_sites` would choose; with the `place` they were found for.
        verify: trace the patched model on the meta device and compare: it must be the original plus these
            shifts, with every shortcut unshifted.

    Returns:
        The same model.

    Raises:
        TypeError, ValueError: bad arguments; no site; a site with fewer channels than `shift_div`. Where the
            dataflow or the caller chose the sites and others are wide enough, a warning names the ones left out.
        RuntimeError: a model that is patched already, or compiled, or whose patch fails the verification.
        The model is left as it was.

    Example:
        >>> import timm, torch
        >>> model = patch(timm.create_model("resnet18", num_classes=10), num_segments=8)
        >>> model(torch.randn(2 * 8, 3, 64, 64)).shape  # a row per frame
        torch.Size([16, 10])

    Source: the authors' release for which sites, `place` and ResNet-101's every second block.
    """
    num_segments, shift_div = check_shift(num_segments, shift_div, direction, fold_order)
    check_model(model)
    guard_hooks()
    if is_patched(model):
        raise RuntimeError(
            "expected an unpatched model, got one that is patched already. Call tsm_triton.unpatch(model) "
            "first, or tsm_triton.set_num_segments(model, T) to change the clip length."
        )
    if any(map(is_compiled, model.modules())):
        raise RuntimeError(
            "expected a model that is not compiled, got a compiled one, which would silently ignore the "
            "shift. Patch first, then torch.compile."
        )
    if sites is None:
        found = choose_sites(model, place, stages, filter_fn, example_input)
        chosen, backbones = found.sites, found.backbones
        may_skip = all(backbone.by_dataflow for backbone in backbones)
    elif stages is None and filter_fn is None:
        chosen, may_skip = _checked_sites(model, sites), True
        backbones = _around(model, chosen, place, example_input) if verify else []
    else:
        raise ValueError(
            "expected either sites, or stages and filter_fn to choose among them, got both: pass one"
        )
    chosen = _wide_enough(chosen, shift_div, direction, may_skip)
    remove_hooks(model)  # what stood elsewhere when the shift was taken off
    try:
        _add_hooks(model, chosen, num_segments, shift_div, direction, fold_order, place)
        difference = _difference(backbones, chosen, place) if verify else None
        if difference is not None:
            raise RuntimeError(
                f"expected the patched {type(model).__name__} to be the original plus {len(chosen)} shifts "
                f"with each shortcut unshifted, got a difference: {difference}. The patch is taken back. Leave "
                "the site out with filter_fn, or shift by hand with tsm_triton.temporal_shift."
            )
        set_num_segments(model, num_segments)  # fewer behind a pool
    except BaseException:
        remove_hooks(model)
        raise
    return model


def unpatch(model: Model) -> Model:
    """Take the shift off again: the model computes, and holds, exactly what it did before `patch`.

    Gradient checkpointing runs blocks again in the backward, without the shift by then: take it off after the backward
    only. A model that shares some of the shifted modules, and keeps other shifts, refuses to run.

    Raises:
        RuntimeError: the model is not patched.

    Example:
        >>> import timm
        >>> is_patched(unpatch(patch(timm.create_model("resnet18"))))
        False
    """
    shift_hooks(model)
    remove_hooks(model)
    return model


def _checked_sites(model: nn.Module, sites: Iterable[ShiftSite]) -> list[ShiftSite]:
    sites = list(sites)
    modules = dict(model.named_modules())
    for site in sites:
        if modules.get(site.name) is not site.module:
            raise ValueError(
                f"expected sites of this very model, got {site!r}, whose module is not the model's. "
                "Find them with tsm_triton.find_sites(model), or rebuild them with ShiftSite.from_dict."
            )
        if site.frames_from is not None and site.frames_from not in modules:
            raise ValueError(
                f"expected frames_from to name a module of {type(model).__name__}, got {site.frames_from!r} "
                f"at {site.name!r}. Find sites with tsm_triton.find_sites(model)."
            )
        if site.channel_dim not in (1, -1):
            raise ValueError(f"channel_dim must be 1 or -1, got {site.channel_dim} at {site.name!r}")
    if not sites:
        raise ValueError("expected at least one site, got none: find some with tsm_triton.find_sites(model)")
    twice = [name for name, count in Counter(site.name for site in sites).items() if count > 1]
    if twice:
        raise ValueError(
            f"expected each site once, got {', '.join(map(repr, twice))} more than once: drop the others"
        )
    return sites


def _around(
    model: nn.Module, sites: Sequence[ShiftSite], place: str, example_input: Tensor | None
) -> list[Backbone]:
    """The models inside `model` that hold all of the sites, else `model` itself."""
    backbones = backbones_of(model, place, example_input)
    if all(site.name.startswith(tuple(backbone.prefix for backbone in backbones)) for site in sites):
        return backbones
    return [Backbone("", model, [], example_input)]


def _wide_enough(
    sites: Sequence[ShiftSite], shift_div: int, direction: str, may_skip: bool
) -> list[ShiftSite]:
    """The sites where something would move."""
    wide = [site for site in sites if fold_counts(site.channels, shift_div, direction)[0] > 0]
    narrow = [site for site in sites if site not in wide]
    if not narrow:
        return wide
    if not wide or not may_skip:
        site = narrow[0]
        raise ValueError(
            f"expected at least shift_div={shift_div} channels at every site, got {site.channels} at "
            f"{site.name!r}: nothing would move there. Lower shift_div, or leave the site out with filter_fn."
        )
    warnings.warn(
        f"expected at least shift_div={shift_div} channels at every site, got fewer at {len(narrow)} of "
        f"{len(sites)}, which stay unshifted: {', '.join(site.name for site in narrow)}. Lower "
        "shift_div to shift them too.",
        stacklevel=3,
    )
    return wide


def _add_hooks(
    model: nn.Module,
    sites: Sequence[ShiftSite],
    num_segments: int,
    shift_div: int,
    direction: str,
    fold_order: str,
    place: str,
) -> None:
    counters: dict[str, FrameCounter] = {}
    hooks: dict[str, ShiftHook] = {}
    for site in sites:
        counter = None
        if site.frames_from is not None:
            counter = counters.get(site.frames_from)
            if counter is None:
                counter = counters[site.frames_from] = FrameCounter()
                counted = model.get_submodule(site.frames_from)
                counter.argument = first_parameter(counted)
                counted.register_forward_pre_hook(counter, with_kwargs=True)
        hook = ShiftHook(num_segments, shift_div, direction, site.channel_dim, counter, fold_order)
        hook.channels, hook.place = site.channels, place
        hook.argument = first_parameter(site.module)
        site.module.register_forward_pre_hook(hook, with_kwargs=True)
        describe(site.module, hook)
        keep_in_copies(site.module)
        hooks[site.name] = hook
    record = PatchRecord(model, [*counters.items(), *hooks.items()])
    model.register_forward_pre_hook(record, with_kwargs=True)


def _difference(backbones: Sequence[Backbone], sites: Sequence[ShiftSite], place: str) -> str | None:
    """What else, or less, than the shifts of these sites a patch has changed."""
    for backbone in backbones:
        inside = [
            replace(site, name=site.name.removeprefix(backbone.prefix))
            for site in sites
            if site.name.startswith(backbone.prefix)
        ]
        if backbone.graph is None:
            shape = input_shape(backbone.module, backbone.example_input)
            backbone.graph = trace(backbone.module, shape, shifted=False)
            backbone.merges = analyse(backbone.module, graph=backbone.graph).merges
        after = trace(backbone.module, backbone.graph.values[0].shape, num_segments=BATCH)
        difference = verify_shifts(
            backbone.graph, after, inside, backbone.merges if place == "blockres" else ()
        )
        if difference is not None:
            return difference
    return None
