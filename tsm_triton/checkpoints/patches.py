"""How a model is shifted, as plain values: read off its hooks, compared, and put on a model again."""

from typing import Any

from torch import nn

from ..patching.frame_counter import FrameCounter
from ..patching.hooks import shifts_in
from ..patching.patch import patch
from ..patching.shift_hook import ShiftHook
from ..sites import ShiftSite
from ..torch_private import own_name, pre_hooks

__all__ = ["apply_patch", "check_same_patch", "described", "patch_of"]

SETTINGS = ("shift_div", "direction", "fold_order", "place")
NAMED = 4  # sites in an error


def patch_of(model: nn.Module) -> dict[str, Any] | None:
    """The settings and sites of a patch, None of an unpatched model.

    Raises:
        ValueError: parts that are patched differently, or whose frames something outside counts.
    """
    counters: dict[FrameCounter, str] = {}
    for name, module in model.named_modules():
        for hook in pre_hooks(module).values():
            if isinstance(hook, FrameCounter):
                counters[hook] = own_name(name)
    hooks = [(own_name(name), hook) for name, hook in shifts_in(model)]
    if not hooks:
        return None
    if any(hook.counter is not None and hook.counter not in counters for _, hook in hooks):
        raise ValueError(
            f"expected a model that counts its own frames, got {type(model).__name__}, a part or a graph of one whose "
            "rows are windows. Pass the model itself."
        )
    settings = [{key: getattr(hook, key, "future_first") for key in SETTINGS} for _, hook in hooks]
    if any(other != settings[0] for other in settings):
        other = next(other for other in settings if other != settings[0])
        raise ValueError(
            f"expected one shift for the whole model, got {settings[0]} at {hooks[0][0]!r} and {other} elsewhere. Save "
            "the parts by themselves."
        )
    sites = [
        {
            "name": name,
            "channels": hook.channels,
            "channel_dim": hook.channel_dim,
            "frames_from": None if hook.counter is None else counters[hook.counter],
            "num_segments": hook.told.length,
        }
        for name, hook in hooks
    ]
    return {"num_segments": hooks[0][1].told.length, **settings[0], "sites": sites}


def apply_patch(model: nn.Module, record: dict[str, Any]) -> None:
    """Shift a model as the record says. Its sites were compared with the model's dataflow when they were found."""
    sites = [ShiftSite.from_dict(site, model) for site in record["sites"]]
    order = record["fold_order"]
    options: dict[str, Any] = {} if order == "future_first" else {"fold_order": order}
    patch(
        model,
        record["num_segments"],
        shift_div=record["shift_div"],
        direction=record["direction"],
        place=record["place"],
        sites=sites,
        verify=False,
        **options,
    )
    for site, values in zip(sites, record["sites"], strict=True):
        for hook in pre_hooks(site.module).values():
            if isinstance(hook, ShiftHook):
                hook.num_segments = values["num_segments"]


def check_same_patch(model: nn.Module, record: dict[str, Any] | None, source: str) -> None:
    """Raise unless the model is shifted as the weights were, but for the number of frames, which no weight knows."""
    own = patch_of(model)
    if own is None and record is not None:
        raise RuntimeError(
            f"expected {type(model).__name__} to be patched as the weights in {source} were ({described(record)}), got "
            "an unpatched model. Call tsm_triton.load_checkpoint(path) for the patched model, or "
            f"{_call(record)} before."
        )
    if own is not None and record is None:
        raise ValueError(
            f"expected weights that were trained with the shift of {type(model).__name__} ({described(own)}), got "
            f"those of an unshifted network in {source}. Call load_checkpoint first, then tsm_triton.patch, and train."
        )
    if own is None or record is None:
        return
    differ = [key for key in SETTINGS[:3] if own[key] != record[key]]
    here, there = ({_place(site) for site in patch["sites"]} for patch in (own, record))
    if differ or here != there:
        only = [
            f"{where}: {', '.join(names[:NAMED])}{f' and {len(names) - NAMED} more' if len(names) > NAMED else ''}"
            for where, names in (
                ("shifted in the file only", sorted(name for name, *_ in there - here)),
                ("in the model only", sorted(name for name, *_ in here - there)),
            )
            if names
        ]
        outer = _prefix_of(here, there)
        if outer and not differ:
            raise ValueError(
                f"expected the patched model itself, got a {type(model).__name__} that holds it as {outer!r}, for the "
                f"weights in {source}: pass model.get_submodule({outer!r})"
            )
        raise ValueError(
            f"expected {type(model).__name__} to be patched as the weights in {source} were ({described(record)}), got "
            f"{'; '.join([described(own), *only])}. Call tsm_triton.unpatch(model) and {_call(record)}, or "
            "tsm_triton.load_checkpoint(path) for the patched model."
        )


def described(record: dict[str, Any] | None) -> str:
    """A patch in words."""
    if record is None:
        return "unshifted"
    order = "" if record["fold_order"] == "future_first" else f", fold_order={record['fold_order']!r}"
    return (
        f"direction={record['direction']!r}, shift_div={record['shift_div']}, place={record['place']!r}{order}, "
        f"{len(record['sites'])} sites"
    )


def _prefix_of(here: set[tuple[str, int, str | None]], there: set[tuple[str, int, str | None]]) -> str:
    """The module in which one model's places are another's, empty where there is none."""
    outer = min(name for name, *_ in here).removesuffix(f".{min(name for name, *_ in there)}")
    inside = {
        (f"{outer}.{name}", axis, None if counted is None else f"{outer}.{counted}")
        for name, axis, counted in there
    }
    return outer if inside == here else ""


def _place(site: dict[str, Any]) -> tuple[str, int, str | None]:
    return site["name"], site["channel_dim"], site["frames_from"]


def _call(record: dict[str, Any]) -> str:
    usual = {"shift_div": 8, "direction": "bidirectional", "fold_order": "future_first", "place": "blockres"}
    options = "".join(f", {key}={record[key]!r}" for key, value in usual.items() if record[key] != value)
    return f"tsm_triton.patch(model, {record['num_segments']}{options}) with the same sites"
