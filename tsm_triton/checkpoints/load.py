"""A model out of a file, whoever wrote it, or its weights into a model."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, overload

from torch import nn

from ..arguments import as_count
from ..backbones import head_of, set_head
from ..files import printable
from ..fusion.fuse import FusedModel
from ..modules import NonLocal, RecurrentHead
from ..patching.hooks import clip_lengths_in, set_num_segments, shift_hooks
from ..preparation import module_of
from .download import check_sum, is_remote, local_file
from .keys import fits, unwrapped
from .native import Checkpoint, built, load_into, read_checkpoint

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .published import Published  # a file a layout, imported when one is asked for

__all__ = ["load_checkpoint", "open_checkpoint"]

Source = str | os.PathLike[str] | Mapping[str, Any]
# what a file of ours says itself
PUBLISHED_OPTIONS = ("place", "shift_div", "direction", "non_local", "into")


class _Options(TypedDict, total=False):
    num_segments: int | None
    place: str | None
    shift_div: int | None
    direction: str | None
    non_local: str | None
    new_head: int | None
    checksum: str | None


@overload
def load_checkpoint(
    source: Source, /, *, into: str | None = None, **options: "Unpack[_Options]"
) -> nn.Module: ...
@overload
def load_checkpoint(model: nn.Module, source: Source, /, **options: "Unpack[_Options]") -> nn.Module: ...


def load_checkpoint(
    *arguments: Any, new_head: int | None = None, checksum: str | None = None, **options: Any
) -> Any:
    """`load_checkpoint(source)` builds the model that a file is of, patched; `load_checkpoint(model, source)` loads
    weights into one.

    Files of `save_checkpoint` say all that is needed. Of what others published the layout is recognised by its keys:
    the authors' release and their online demo, mmaction2, PaddleVideo, E2E-Spot, OpenSportsLib (docs/checkpoints.md).
    What decides the numbers is read from the keys, then from a configuration in the file, its name, or that of a run's
    folder, and is asked for where none says it and the layout's files differ; `tsm-triton inspect FILE` prints it.

    No code of the file is run. Loading is strict. What others wrap around a state dict is recognised: dictionaries
    with `state_dict` or `model`, averaged weights (`state_dict_ema`, `model_ema`), which come first as in timm, and
    prefixes (`module.`, `model.`, `_orig_mod.`, any other) that leave exactly the model's keys.

    Args:
        model: patched as the weights were, but for `num_segments`, which stays the model's own: no weight knows it.
            A bare state dict does not say how it was shifted: it goes into any patched model that the options given
            do not contradict. Labels and the sampling that `model` says are those of its weights: they go with them.
        source: a file of `save_checkpoint`, of `torch.save` or of safetensors; an address of one (`https://...`, into
            torch.hub's cache, or `hf-hub:owner/name`); or what was read from one.
        num_segments, place, shift_div, direction, non_local: of published weights, where their file does not say them.
            `num_segments` of a file of ours is another clip length.
        into: `"timm"` or `"torchvision"`, the library of the model of published weights.
        new_head: a number of classes: the head becomes a new one, or that of `model`, which has so many, stays.
        checksum: the SHA-256 of the file, or its beginning.

    Returns:
        The model: patched as it was when it was saved and in evaluation mode, or the very one that was given.
        `transform_for(model)` prepares frames as for the one that was saved.

    Raises:
        FileNotFoundError: no such file.
        TypeError: other arguments.
        RuntimeError: weights with a shift, and a model without.
        ValueError: no weights, keys or shapes that differ, another shift or function (activations, pooling), a file
            that names no model that can be built, or is of a later version; a setting that nobody says, or that the
            file or the model contradicts; a download that fails. The model is as it was before.

    Example:
        >>> import timm, torch, tsm_triton
        >>> model = tsm_triton.patch(timm.create_model("test_resnet"))
        >>> state = torch.nn.DataParallel(model).state_dict()
        >>> load_checkpoint(model, {"epoch": 3, "state_dict": state}) is model
        True
    """
    unknown = options.keys() - {"num_segments", *PUBLISHED_OPTIONS}
    if unknown:
        raise TypeError(
            f"load_checkpoint: expected options num_segments, {', '.join(PUBLISHED_OPTIONS)}, new_head and checksum, "
            f"got {', '.join(sorted(unknown))}: drop it"
        )
    into = options.pop("into", None)
    options = {key: value for key, value in options.items() if value is not None}
    if "num_segments" in options:
        options["num_segments"] = as_count(options["num_segments"], "num_segments")
    if len(arguments) == 1 and not isinstance(arguments[0], nn.Module):
        checkpoint, published = open_checkpoint(arguments[0], checksum, options)
        model = _build(checkpoint, published, into, options)
        if new_head is not None:
            _give_head(model, new_head)
        return model
    if len(arguments) == 2:
        model, source = arguments
        if into is not None:
            raise TypeError(
                f"into: expected none with a model, which is of its library, got {into!r}: drop it"
            )
        _load(model, source, checksum, options, new_head)
        return model
    raise TypeError(
        f"expected load_checkpoint(source) or load_checkpoint(model, source), got "
        f"{', '.join(type(argument).__name__ for argument in arguments) or 'nothing'}: pass a path or a state dict last"
    )


def open_checkpoint(
    source: Source,
    checksum: str | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    asks: bool = True,
) -> tuple[Checkpoint, "Published | None"]:
    """What a file holds, and what it is where others published it.

    With `asks=False` settings that nobody says are None, and no error.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `load_checkpoint`.
    """
    checkpoint, path = _read(source, checksum)
    if checkpoint.ours:
        return checkpoint, None
    return checkpoint, _published(checkpoint, path, options or {}, asks)


def _published(
    checkpoint: Checkpoint, path: str, options: Mapping[str, Any], asks: bool = True
) -> "Published | None":
    from .published import Given, read_published

    *folders, name = path.split("/")
    folder = folders[-1] if folders else ""
    return read_published(
        checkpoint.state, Given(checkpoint.source, name, folder, checkpoint.configuration, options, asks)
    )


def _read(source: Source, checksum: str | None) -> tuple[Checkpoint, str]:
    """What is read, and the file's path, its folders behind slashes."""
    if isinstance(source, Mapping):
        if checksum is not None:
            raise TypeError(
                "checksum: expected a file or an address with it, got a dictionary: drop checksum"
            )
        return read_checkpoint(source), ""
    if isinstance(source, str) and is_remote(source):
        return read_checkpoint(local_file(source, checksum)), printable(source)
    if checksum is not None and isinstance(source, (str, os.PathLike)) and Path(source).is_file():
        check_sum(Path(source), checksum)  # before anything of it is read
    return read_checkpoint(source), printable(Path(source).absolute().as_posix())


def _build(
    checkpoint: Checkpoint, published: "Published | None", into: str | None, options: Mapping[str, Any]
) -> nn.Module:
    if published is not None:
        from .published.build import build_published

        return build_published(published, checkpoint.source, into)
    _check_options(checkpoint, {**options, "into": into})
    model = built(checkpoint)
    if "num_segments" in options:
        set_num_segments(model, options["num_segments"])
    return model


def _load(
    model: nn.Module, source: Source, checksum: str | None, options: Mapping[str, Any], new_head: int | None
) -> None:
    checkpoint, path = _read(source, checksum)
    inner = unwrapped(module_of(model))
    own_head = None
    if new_head is not None and not isinstance(inner, FusedModel):
        own_head = _checked_head(inner, new_head)
    if not checkpoint.ours and not isinstance(inner, FusedModel) and not fits(checkpoint.state, inner):
        published = _published(checkpoint, path, options)
        if published is not None:
            from .published.build import load_published

            length = options.get("num_segments") if published.sites else None
            if length is not None:
                clip_lengths_in(inner, length)
            load_published(inner, published, checkpoint.source, own_head)
            if length is not None:
                set_num_segments(inner, length)
            return
    _check_options(checkpoint, options)
    if not isinstance(inner, FusedModel):
        if not checkpoint.ours:
            _check_own(inner, options, checkpoint.source)
        if "num_segments" in options:
            clip_lengths_in(inner, options["num_segments"])
            if checkpoint.ours and checkpoint.patch is None:
                shift_hooks(inner)
    load_into(model, checkpoint, own_head=own_head)
    if "num_segments" in options:
        set_num_segments(inner, options["num_segments"])


def _check_options(checkpoint: Checkpoint, options: Mapping[str, Any]) -> None:
    said = [key for key in PUBLISHED_OPTIONS if options.get(key) is not None]
    if checkpoint.ours and said:
        raise ValueError(
            f"expected no {said[0]} with a checkpoint of ours, which says it itself, got {options[said[0]]!r} for "
            f"{checkpoint.source}: drop it"
        )


def _check_own(model: nn.Module, options: Mapping[str, Any], source: str) -> None:
    """Raise for a model that is made otherwise than is said of a bare state dict."""
    hooks, blocks = shift_hooks(model), [m for m in model.modules() if isinstance(m, NonLocal)]
    own = {key: [getattr(hook, key) for hook in hooks] for key in ("place", "shift_div", "direction")}
    own["non_local"] = [block.mode for block in blocks] or [None]
    for key, values in own.items():
        others = [value for value in values if value != options.get(key, value)]
        if others:
            raise ValueError(
                f"expected {type(model).__name__} to be made with {key}={options[key]!r}, as is said of {source}, got "
                f"{key}={others[0]!r}. Pass what the weights were trained with, and make and patch the model so."
            )


def _checked_head(model: nn.Module, classes: int) -> str:
    """The name of the layer that is to stay."""
    name = head_of(model)
    layer: Any = model.get_submodule(name)
    if layer.out_features != classes:
        raise ValueError(
            f"new_head: expected {layer.out_features}, the classes of the model whose head is to stay, got "
            f"{classes!r}. Pass new_head={layer.out_features}."
        )
    return name


def _give_head(model: Any, classes: int) -> None:
    """A head for other classes, new."""
    name = head_of(model)
    parent: Any = model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, RecurrentHead):
        parent.fc = nn.Linear(parent.fc.in_features, classes)
    elif hasattr(model, "reset_classifier"):
        model.reset_classifier(classes)
    else:
        layer: Any = model.get_submodule(name)
        set_head(model, classes, getattr(layer, "p", 0.0))
    config: Any = dict(getattr(model, "pretrained_cfg", None) or {})
    config.pop("label_names", None)
    config["num_classes"] = classes
    model.pretrained_cfg = config
    model.eval()
