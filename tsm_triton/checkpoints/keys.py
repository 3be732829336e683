"""A model's weights in what a file holds: inside of which dictionary, behind which prefix, and whether they fit."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..files import printable
from ..torch_private import COMPILED, COMPILED_CLASS, own_name

__all__ = ["configuration_in", "distinct", "fit", "fits", "renamed", "state_in", "unwrapped", "without_count"]

NAMED = 6  # keys in an error
# where others keep a state dict; averaged weights first, as timm takes them
CONTAINERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
)
# mmengine's hook exchanges the two: `state_dict` holds the averaged ones
MMENGINE = "mmengine_version"
# modules whose classes hold a model and add no weights; the last is this package, whatever it is imported as
LIBRARIES = ("torch.", "timm.", __name__.removesuffix("checkpoints.keys"))
# which classes do, and where
HOLDERS = {
    COMPILED_CLASS: COMPILED,
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
    "VideoClassifier": "model",
    "VideoFeatures": "model",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of what wraps it and has no weights of its own.

    Example:
        >>> from tsm_triton import VideoClassifier
        >>> unwrapped(nn.DataParallel(VideoClassifier(nn.Linear(1, 1))))
        Linear(in_features=1, out_features=1, bias=True)
    """
    while type(model).__name__ in HOLDERS and f"{type(model).__module__}.".startswith(LIBRARIES):
        model = getattr(model, HOLDERS[type(model).__name__])
    return model


def configuration_in(held: Mapping[str, Any]) -> str:
    """The text of the configuration that mmengine, or mmcv before it, writes beside weights; empty without one."""
    meta = held.get("meta")
    texts = (meta.get("cfg"), meta.get("config")) if isinstance(meta, Mapping) else ()
    return next((text for text in texts if isinstance(text, str)), "")


def distinct(renamed: Iterable[tuple[str, Tensor]], source: str) -> dict[str, Tensor]:
    """Weights under new keys.

    Raises:
        ValueError: two under one.
    """
    found: dict[str, Tensor] = {}
    for key, value in renamed:
        if key in found:
            raise ValueError(
                f"expected one tensor for each of a model's, got two for {printable(key)!r} in {source}: drop those of "
                "another model, or of another head"
            )
        found[key] = value
    return found


def renamed(state: Mapping[str, Tensor], rename: Callable[[str], str], source: str) -> dict[str, Tensor]:
    """Weights whose keys a function renames, no two to one, as `distinct`."""
    return distinct(((rename(key), value) for key, value in state.items()), source)


def without_count(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the counter that torch's `AveragedModel` keeps beside them."""
    counter = state.get("n_averaged")
    if counter is None or counter.dim():
        return dict(state)
    return {key: value for key, value in state.items() if key != "n_averaged"}


def state_in(held: Any, source: str) -> dict[str, Tensor]:
    """The state dict that `held` is, or holds under one of the usual names.

    Raises:
        ValueError: none, or one of other things than dense tensors.
    """
    inside, wrong = held, ""
    while isinstance(inside, Mapping):
        wrong = next((repr(key) for key, value in inside.items() if not _is_entry(key, value)), "")
        if inside and not wrong:
            return dict(inside)
        meta = inside.get("meta")
        usual = ("state_dict",) if isinstance(meta, Mapping) and MMENGINE in meta else ()
        inside = next(
            (inside[key] for key in (*usual, *CONTAINERS) if isinstance(inside.get(key), Mapping)), None
        )
    raise ValueError(
        f"expected a state dict of dense tensors in {source}, got {type(held).__name__}"
        f"{f' with {printable(wrong):.60}' if wrong else ''}: save model.state_dict()"
    )


def fits(state: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Whether a model's own keys are all there, behind a prefix or not."""
    expected = {own_name(key) for key in model.state_dict()}
    return any(expected <= keys.keys() for keys in _stripped({own_name(key): state[key] for key in state}))


def fit(
    state: Mapping[str, Tensor], model: nn.Module, source: str, advice: str = "", keep: str | None = None
) -> dict[str, Tensor]:
    """The weights under the model's own keys.

    A prefix that all keys share is taken off where exactly the model's keys are left, and only there: a model may
    have a child called `model` or `module`.

    Raises:
        ValueError: keys that are missing or unexpected, or tensors of other shapes or kinds, with their names.
    """
    own = model.state_dict()
    expected = {own_name(key): (key, value) for key, value in own.items()}
    given = renamed(state, own_name, source)
    if "n_averaged" not in expected:
        given = without_count(given)
    given = max(_stripped(given), key=lambda keys: len(keys.keys() & expected.keys()))
    if keep is not None:  # a layer whose weights stay the model's
        given = {key: value for key, value in given.items() if not key.startswith(f"{keep}.")}
        given |= {key: value for key, (_, value) in expected.items() if key.startswith(f"{keep}.")}
    if any(value.is_meta for _, value in expected.values()):
        raise ValueError(
            f"expected a model with memory to load weights into, got {type(model).__name__} on the meta device. Call "
            "model.to_empty(device='cpu') first."
        )
    wrong = {
        "missing": [key for key in expected if key not in given],
        "unexpected": [printable(key) for key in given if key not in expected],
        "of another shape": [
            f"{key} {tuple(given[key].shape)} for {tuple(value.shape)}"
            for key, (_, value) in expected.items()
            if key in given and given[key].shape != value.shape
        ],
        "of another kind": [
            f"{key} {given[key].dtype} for {value.dtype}"
            for key, (_, value) in expected.items()
            if key in given and _is_of_another_kind(value, given[key])
        ],
    }
    if any(wrong.values()):
        listed = "; ".join(
            f"{what}: {', '.join(keys[:NAMED])}{f' and {len(keys) - NAMED} more' if len(keys) > NAMED else ''}"
            for what, keys in wrong.items()
            if keys
        )
        classes = _other_head(wrong, given)
        here = None if classes is None else len(expected[classes][1])
        raise ValueError(
            f"expected the state dict of {type(model).__name__}, got one with keys {listed} in {source}. "
            + (
                f"Pass new_head={here} to leave the model's own head, of {here} classes, as it is."
                if here
                else f"Make the model as that one was made{advice}."
            )
        )
    for name, (key, _) in expected.items():
        own[key] = given[name]
    return own  # with the versions of its modules, without which MNASNet loads nothing


def _other_head(wrong: Mapping[str, list[str]], given: Mapping[str, Tensor]) -> str | None:
    """A key of the head, where one of another number of classes is all that differs."""
    keys = [item.partition(" ")[0] for item in wrong["of another shape"]]
    one = len({key.rpartition(".")[0] for key in keys}) == 1 and all(0 < given[key].dim() < 3 for key in keys)
    others = any(keys for what, keys in wrong.items() if what != "of another shape")
    return keys[0] if one and not others else None


def _is_of_another_kind(own: Tensor, given: Tensor) -> bool:
    """Whether one alone is complex, or integers or eight bits are given for floats: quantised, without their
    scales."""
    if own.is_complex() != given.is_complex():
        return True
    of_bytes = given.element_size() == 1 and own.element_size() > 1
    return own.is_floating_point() and (not given.is_floating_point() or of_bytes)


def _stripped(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """As it is, and without one, two ... of the parts of names that all keys begin with."""
    found = [state]
    while state:
        first = next(iter(state)).partition(".")[0] + "."
        if not all(key.startswith(first) for key in state):
            break
        state = {key.removeprefix(first): value for key, value in state.items()}
        found.append(state)
    return found


def _is_entry(key: object, value: object) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and not value.is_meta
        and value.layout is torch.strided
    )
