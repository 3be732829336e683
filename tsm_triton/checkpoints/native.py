"""Our own format: weights, how they are shifted, whose they are, and how frames are prepared.

A dictionary of plain values, the same in a `.safetensors` file and in one of `torch.save`:

    format       "tsm_triton"
    version      1
    written_by   the version of this package
    state_dict   the backbone's weights by its own keys, without any wrapper's prefix
    patch        num_segments, shift_div, direction, fold_order, place, and sites as `ShiftSite.to_dict` gives them,
                 each with its num_segments; None of an unshifted network
    model        class; library, name and options of the call that builds it, or why_not
    frames       size, short_side, mean, std, interpolation and crop_pct where timm says them, and the sampling that
                 clips were trained with where a training says it; None if unknown
    labels       a name a class, or None
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from ..backbones import head_of
from ..files import printable
from ..functional import DIRECTIONS
from ..fusion.fuse import FusedModel
from ..integrations.origin import Origin, origin_of, other_function
from ..patching.finding import check_model
from ..patching.hooks import shift_hooks
from ..patching.keeping import check_whole
from ..preparation import Preparation, module_of, preparation_of, set_preparation
from ..torch_private import own_name
from ..version import __version__
from .files import read, write
from .keys import configuration_in, fit, state_in, unwrapped
from .labels import as_label
from .patches import apply_patch, check_same_patch, patch_of

__all__ = ["Checkpoint", "built", "labels_of", "load_into", "read_checkpoint", "save_checkpoint"]

FORMAT, VERSION = "tsm_triton", 1
MAX_SIZE = 4096  # of a picture's side
# what a timm model, or a training, says of its frames beyond `Preparation`
BESIDES = ("interpolation", "crop_pct", "sampling")


@dataclass(frozen=True)
class Checkpoint:
    """What was read.

    Attributes:
        source: where from, for messages.
        state: the weights.
        ours: whether it is of our own format; else the state dict is all there is.
        patch: see `patches.patch_of`; None of an unshifted network.
        origin: how to build the model, or None.
        why_not: why it cannot be built.
        preparation: of frames.
        besides: interpolation, crop_pct and sampling, where they were said.
        labels: of the classes.
        configuration: the text of that which mmengine writes beside weights.
    """

    source: str
    state: dict[str, Tensor]
    ours: bool = False
    patch: dict[str, Any] | None = None
    origin: Origin | None = None
    why_not: str = ""
    preparation: Preparation | None = None
    besides: Mapping[str, Any] | None = None
    labels: list[str] | None = None
    configuration: str = ""


def save_checkpoint(
    model: nn.Module, path: str | os.PathLike[str], labels: Sequence[str] | None = None
) -> None:
    """Write a model's weights with all that is needed to use them, for `tsm_triton.load_checkpoint`.

    That is how they are shifted, whose they are, and how frames are prepared (`transform_for`). What wraps the model
    and holds no weights (a VideoClassifier, DDP, a compiled module, averaged weights) is left out. A model of timm's
    or torchvision's whose builder, called again, gives the same structure is built by `load_checkpoint(path)`; any
    other is loaded into. Dropout rates are not held.

    Args:
        model: patched, or not.
        path: of the file, which appears whole or not at all; `.safetensors` makes it one. Its T is that which `patch`
            or `set_num_segments` was told: calls of a VideoClassifier with other clips leave it.
        labels: a name for each class, by default those that the model was loaded with.

    Raises:
        TypeError: no model, or a fused copy or a scripted one; labels that are no strings.
        ValueError: labels of another number than classes; sharded weights; parts that are patched differently.

    Example:
        >>> import tempfile, timm, torch, tsm_triton
        >>> model = tsm_triton.patch(timm.create_model("test_resnet", num_classes=2), direction="causal")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(model, f"{folder}/best.pt", labels=["left", "right"])
        ...     again = tsm_triton.load_checkpoint(f"{folder}/best.pt")
        >>> again(torch.zeros(8, 3, 64, 64)).shape
        torch.Size([8, 2])
    """
    inner = unwrapped(module_of(model))
    check_whole(inner)
    check_model(inner)
    if any(isinstance(module, FusedModel) for module in inner.modules()):
        raise TypeError(
            "expected a patched model, got a fused copy, whose weights are folded. Save the model it was made of."
        )
    weights = inner.state_dict()
    for key, value in weights.items():
        if not isinstance(value, Tensor) or value.is_meta or hasattr(value, "full_tensor"):
            raise ValueError(
                f"expected plain tensors as weights, got {type(value).__name__} at {key!r}. Save on one process what "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict gathers into a plain model."
            )
    origin, why_not = origin_of(inner)
    labels = _checked_labels(labels_of(inner) if labels is None else labels, inner)
    write(
        {
            "format": FORMAT,
            "version": VERSION,
            "written_by": __version__,
            "state_dict": {
                own_name(key): value.detach().to("cpu", copy=True).contiguous()
                for key, value in weights.items()
            },
            "patch": patch_of(inner),
            "model": {
                "class": type(inner).__name__,
                **({"why_not": why_not} if origin is None else _plain(asdict(origin))),
            },
            "frames": _frames_of(inner),
            "labels": labels,
        },
        path,
    )


def read_checkpoint(source: str | os.PathLike[str] | Mapping[str, Any]) -> Checkpoint:
    """What a file, or what was read from one, holds.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `load_checkpoint`.
    """
    if isinstance(source, Mapping):
        held, name = source, "the given dictionary"
    elif isinstance(source, (str, os.PathLike)):
        held, name = read(source), repr(os.fspath(source))
    else:
        raise TypeError(f"source must be a path or a state dict, got {type(source).__name__}")
    if not (isinstance(held, Mapping) and held.get("format") == FORMAT):
        return Checkpoint(name, state_in(held, name), configuration=configuration_in(held))
    return _parsed(held, name)


def built(checkpoint: Checkpoint) -> nn.Module:
    """The model that was saved, in evaluation mode."""
    if checkpoint.origin is None:
        why_not = (
            checkpoint.why_not
            or "a state dict says nothing of its model, and no published layout has these keys"
        )
        raise ValueError(
            f"expected a checkpoint whose model can be built, got {checkpoint.source}: {why_not}. Make the model as it "
            "was made, patch it, and call tsm_triton.load_checkpoint(model, ...)."
        )
    try:
        model = checkpoint.origin.build()
    except Exception as error:  # of whatever kind a library raises
        raise ValueError(
            f"expected {checkpoint.origin.full_name} with {checkpoint.origin.options}, as {checkpoint.source} names "
            f"it, got {type(error).__name__} from this version of {checkpoint.origin.library}. Make the model "
            "yourself, patch it, and call tsm_triton.load_checkpoint(model, ...)."
        ) from error
    if checkpoint.patch is not None:
        apply_patch(model, checkpoint.patch)
    check_same_patch(model, checkpoint.patch, checkpoint.source)
    _take(model, checkpoint, fit(checkpoint.state, model, checkpoint.source))
    return model.eval()


def load_into(
    model: nn.Module, checkpoint: Checkpoint, advice: str = "", *, own_head: str | None = None
) -> None:
    """Load weights, once it is sure that they are of this very model; but for a layer of that name, where one is.

    What is said of the weights before goes with them: labels, but for those of a layer that stays, and sampling.
    """
    inner = unwrapped(module_of(model))
    if isinstance(inner, FusedModel):
        raise TypeError(
            "expected a patched model, got a fused copy, whose weights are folded. Pass the model it was made of, and "
            "fuse it again."
        )
    if checkpoint.ours:
        check_same_patch(inner, checkpoint.patch, checkpoint.source)
    else:
        shift_hooks(inner)
    state = fit(checkpoint.state, inner, checkpoint.source, advice, keep=own_head)
    if checkpoint.origin is not None:
        difference = other_function(inner, checkpoint.origin, own_head)
        if difference is not None:
            raise ValueError(
                f"expected {type(inner).__name__} to compute what {checkpoint.source} was trained with, got "
                f"{difference}. Make the model as that one was made, or call tsm_triton.load_checkpoint(path)."
            )
    _take(inner, checkpoint, state, own_head)


def _take(
    model: nn.Module,
    checkpoint: Checkpoint,
    state: dict[str, Tensor],
    own_head: str | None = None,
) -> None:
    """Load weights that fit, and let the model say what they say, and no longer what others said."""
    model.load_state_dict(state)
    besides, preparation = dict(checkpoint.besides or {}), checkpoint.preparation
    if preparation is not None and _frames_of(model) != _frames(preparation, besides):
        set_preparation(model, preparation)
        _resay(model, besides, BESIDES)
    elif preparation is None:
        _resay(model, {}, ("sampling",))
    if own_head is None:
        labels = {} if checkpoint.labels is None else {"label_names": list(checkpoint.labels)}
        _resay(model, labels, ("label_names",))


def _resay(model: nn.Module, said: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Let a model say of these keys what is said, and nothing of the others."""
    own = getattr(model, "pretrained_cfg", None)
    held = own if isinstance(own, dict) else {}
    if said or any(key in held for key in keys):
        config: Any = {key: value for key, value in held.items() if key not in keys} | dict(said)
        model.pretrained_cfg = config


def _frames(preparation: Preparation, besides: Mapping[str, Any]) -> dict[str, Any]:
    return {**_plain(asdict(preparation)), **besides}


def _frames_of(model: nn.Module) -> dict[str, Any] | None:
    config = getattr(model, "pretrained_cfg", None)
    besides = {key: config[key] for key in BESIDES if key in config} if isinstance(config, dict) else {}
    with suppress(ValueError):  # models inside that want other frames
        return _frames(preparation_of(model), besides)
    return None


def labels_of(model: nn.Module) -> Sequence[str] | None:
    """The names of the classes that a model says, None if it says none of its own."""
    config = getattr(model, "pretrained_cfg", None)
    labels = config.get("label_names") if isinstance(config, dict) else None
    # those of the pretrained weights, where the head was changed
    return None if labels is None or len(labels) != getattr(model, "num_classes", len(labels)) else labels


def _checked_labels(labels: Any, model: nn.Module) -> list[str] | None:
    if labels is None:
        return None
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise TypeError(f"labels must be strings, got {labels!r:.80}: pass one for each class")
    labels, classes = list(labels), getattr(model, "num_classes", None)
    if classes is None and type(model).__module__.startswith("torchvision."):  # whose models do not say it
        with suppress(ValueError):
            classes = model.get_submodule(head_of(model)).out_features
    if isinstance(classes, int) and len(labels) != classes:
        raise ValueError(
            f"expected {classes} labels, as many as {type(model).__name__} has classes, got {len(labels)}: pass one "
            "for each class"
        )
    return labels


def _parsed(held: Mapping[str, Any], source: str) -> Checkpoint:
    """The parts of our own format, each checked: a file may be damaged, or written by another."""
    version = held.get("version")
    if version != VERSION:
        raise ValueError(
            f"expected a checkpoint of version {VERSION}, got version {version!r:.20} in {source}, written by "
            f"tsm_triton {printable(str(held.get('written_by')))[:20]}. Import it with that version of the package."
        )
    get = _Reader(source)
    state, frames, labels = (
        state_in(held.get("state_dict"), source),
        held.get("frames"),
        get(held, "labels", _LABELS),
    )
    model = get(held, "model", _DICT)
    origin = None
    if "name" in model:
        options = {key: _tupled(value) for key, value in get(model, "options", _DICT).items()}
        origin = Origin(get(model, "library", _LIBRARY), printable(get(model, "name", _TEXT)), options)
    preparation, besides = None, {}
    if frames is not None:
        frames = get(held, "frames", _DICT)
        preparation = Preparation(
            get(frames, "size", _PIXELS),
            get(frames, "short_side", _PIXELS),
            tuple(get(frames, "mean", _COLOURS)),
            tuple(get(frames, "std", _COLOURS)),
        )
        besides = {key: frames[key] for key in BESIDES if isinstance(frames.get(key), (str, int, float))}
    return Checkpoint(
        source,
        state,
        True,
        _parsed_patch(held, get),
        origin,
        printable(str(model.get("why_not", ""))),
        preparation,
        besides,
        labels and [as_label(label) for label in labels],
    )


def _parsed_patch(held: Mapping[str, Any], get: "_Reader") -> dict[str, Any] | None:
    if held.get("patch") is None:
        return None
    record = get(held, "patch", _DICT)
    return {
        "num_segments": get(record, "num_segments", _COUNT),
        "shift_div": get(record, "shift_div", _COUNT),
        "direction": get(record, "direction", _one_of(*DIRECTIONS)),
        "fold_order": get(record, "fold_order", _one_of("future_first", "past_first")),
        "place": get(record, "place", _one_of("blockres", "block")),
        "sites": [
            {
                "name": get(site, "name", _TEXT),
                "channels": get(site, "channels", _COUNT),
                "channel_dim": get(site, "channel_dim", _one_of(1, -1)),
                "frames_from": get(site, "frames_from", _TEXT_OR_NONE),
                "num_segments": get(site, "num_segments", _COUNT),
            }
            for site in get(record, "sites", _DICTS)
        ],
    }


_Kind = tuple[str, Callable[[Any], bool]]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_list_of(kind: type | tuple[type, ...], value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, kind) for item in value)


def _one_of(*values: Any) -> _Kind:
    return f"one of {', '.join(map(repr, values))}", lambda value: any(
        value == known and type(value) is type(known) for known in values
    )


_DICT: _Kind = "a dictionary", lambda value: isinstance(value, dict)
_DICTS: _Kind = "a list of dictionaries", lambda value: bool(value) and _is_list_of(dict, value)
_TEXT: _Kind = "a string", lambda value: isinstance(value, str)
_TEXT_OR_NONE: _Kind = "a string or None", lambda value: value is None or isinstance(value, str)
_COUNT: _Kind = "a positive integer", _is_count
_LIBRARY = _one_of("timm", "torchvision")
_LABELS: _Kind = "a list of strings", lambda value: value is None or _is_list_of(str, value)
_PIXELS: _Kind = f"from 1 to {MAX_SIZE} pixels", lambda value: _is_count(value) and value <= MAX_SIZE
_COLOURS: _Kind = (
    "three numbers",
    lambda value: _is_list_of((int, float), value) and len(value) == 3 and all(map(math.isfinite, value)),
)


class _Reader:
    """Takes values out of a record, or says which is wrong."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __call__(self, record: Mapping[str, Any], key: str, kind: _Kind) -> Any:
        value = record.get(key)
        what, holds = kind
        if not holds(value):
            raise ValueError(
                f"expected {key} to be {what} in {self.source}, got {printable(repr(value)):.40}: save it again with "
                "tsm_triton.save_checkpoint"
            )
        return value


def _plain(value: Any) -> Any:
    """With lists for tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value
