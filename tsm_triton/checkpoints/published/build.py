"""A model made of published weights, or these loaded into one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...backbones import add_non_local, add_temporal_pool, create_backbone, set_head
from ...integrations.layers import is_of_library, layers_of, other_layer
from ...integrations.residual import first_conv
from ...modules import RecurrentHead
from ...patching.patch import patch
from ...preparation import set_preparation
from ...sites import ShiftSite
from ..keys import fit
from ..patches import check_same_patch, patch_of
from .layout import Published

__all__ = ["build_published", "full_name", "load_published", "sites_of"]


def build_published(published: Published, source: str, into: str | None = None) -> nn.Module:
    """The model of published weights, patched, in evaluation mode.

    Args:
        published: the weights.
        source: where from, for messages.
        into: the library of the model; by default the first that computes what these weights were trained with.

    Raises:
        ValueError: a library that has no such model, or a version of it that has none; keys that differ.
    """
    library = next(iter(published.networks)) if into is None else into
    if library not in published.networks:
        raise ValueError(
            f"into must be one of {', '.join(map(repr, published.networks))}, whose models compute what {source} was "
            f"trained with, got {into!r}: choose one"
        )
    name, options = published.networks[library]
    try:
        model = _network(published, full_name(library, name), options)
    except ValueError as error:
        raise ValueError(
            f"expected a {library} that has {name!r}, which {source} is of, got one that has not ({error}). Use a "
            f"later version of {library}."
        ) from error
    num_segments = published.shifts["num_segments"].value
    if published.recurrent is not None:
        _put_recurrent(model, published, num_segments, library)
    if published.pooled:
        add_temporal_pool(model, num_segments)
    if published.non_local:
        assert published.mode is not None
        add_non_local(model, num_segments, published.mode.value, _by_stage(published.non_local))
    if published.sites:
        patch(
            model,
            num_segments,
            **{key: choice.value for key, choice in published.shifts.items() if key != "num_segments"},
            sites=[_site(model, name) for name in sites_of(published, library)],
            verify=False,  # these are the sites that the weights were trained with
        )
    model.load_state_dict(fit(_state(published, library), model, source))
    _say(model, published)
    return model.eval()


def load_published(model: nn.Module, published: Published, source: str, own_head: str | None = None) -> None:
    """Load published weights into a model that is patched as they were trained.

    Args:
        model: of one of the libraries.
        published: the weights.
        source: where from, for messages.
        own_head: a layer of the model that stays as it is.

    Raises:
        RuntimeError, ValueError: another model or shift, or another number of classes. The model is as it was.
    """
    library = _library_of(model, published)
    check_same_patch(model, _record(model, published, library), source)
    state = fit(_state(published, library), model, source, keep=own_head)
    _check_layers(model, published, library, source, own_head)
    model.load_state_dict(state)
    _say(model, published, labels=own_head is None)


def sites_of(published: Published, library: str) -> list[str]:
    """The names of the modules of a library's model whose input is shifted."""
    key = _key(published, library)
    return [_placed(key(name), published) for name in published.sites]


def full_name(library: str, name: str) -> str:
    """As `create_model` and the commands take it."""
    return name if library == "timm" else f"{library}/{name}"


def _library_of(model: nn.Module, published: Published) -> str:
    """The library that has most of a model's keys; where two have as many, the one whose class it is."""
    own = model.state_dict()
    return max(
        published.networks,
        key=lambda library: (
            len(own.keys() & _state(published, library).keys()),
            is_of_library(model, library),
        ),
    )


def _network(published: Published, name: str, options: dict[str, Any]) -> nn.Module:
    if name.startswith("torchvision/"):
        model = create_backbone(name, **options)
        set_head(model, published.classes, published.dropout)
        return model
    return create_backbone(name, num_classes=published.classes, drop_rate=published.dropout, **options)


def _put_recurrent(model: Any, published: Published, num_segments: int, library: str) -> None:
    assert published.recurrent is not None
    name = _key(published, library)(published.head)
    linear: Any = model.get_submodule(name)
    head = RecurrentHead(
        linear.in_features,
        published.classes,
        published.recurrent.hidden,
        published.recurrent.layers,
        num_segments=num_segments,
        dropout=published.dropout,
    )
    model.set_submodule(name, head)
    if hasattr(model, "drop_rate"):
        model.drop_rate = 0.0  # the head has its own


def _site(model: nn.Module, name: str) -> ShiftSite:
    module = model.get_submodule(name)
    return ShiftSite(name, module, first_conv(name, module)[1].in_channels)


def _by_stage(blocks: tuple[str, ...]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for block in blocks:
        stage, _, number = block.rpartition(".")
        found.setdefault(stage, []).append(int(number))
    return found


def _state(published: Published, library: str) -> dict[str, Tensor]:
    """The weights by the keys of a library's model, with the counters that old files lack."""
    key = _key(published, library)
    state = {_placed(key(name), published): value for name, value in published.state.items()}
    norms = [name.removesuffix("running_var") for name in state if name.endswith("running_var")]
    return {**{f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}, **state}


def _key(published: Published, library: str) -> Callable[[str], str]:
    return published.keys.get(library, str)


def _placed(name: str, published: Published) -> str:
    """A key, or a module's name, in the network with its non-local blocks and its pool."""
    for block in published.non_local:
        if name.startswith(f"{block}.") and not name.startswith(f"{block}.non_local."):
            name = f"{block}.block.{name.removeprefix(f'{block}.')}"
    if published.pooled and name.startswith("layer2."):
        name = f"layer2.stage.{name.removeprefix('layer2.')}"
    return name


def _record(model: nn.Module, published: Published, library: str) -> dict[str, Any] | None:
    """The patch that the weights were trained with, as `patch_of` has it."""
    if not published.sites:
        return None
    own = patch_of(model)
    known = {} if own is None else {site["name"]: site for site in own["sites"]}
    blank = {"channel_dim": 1, "frames_from": None}
    return {
        **{key: choice.value for key, choice in published.shifts.items()},
        "sites": [{**blank, **known.get(name, {}), "name": name} for name in sites_of(published, library)],
    }


def _check_layers(
    model: nn.Module, published: Published, library: str, source: str, own_head: str | None
) -> None:
    """Raise for layers without weights of their own that compute something else: keys say nothing of them."""
    modules = dict(model.named_modules())
    for block in published.non_local:
        name = _placed(f"{block}.non_local.mode", published).removesuffix(".mode")
        mode, wanted = getattr(modules.get(name), "mode", None), published.mode and published.mode.value
        if mode != wanted:
            raise ValueError(
                f"expected a NonLocal of mode {wanted!r} at {name!r}, as {source} was trained with, got {mode!r}. "
                f"Create the model with create_model(..., non_local={wanted!r})."
            )
    name, options = published.networks[library]
    with torch.device("meta"):
        twin = create_backbone(full_name(library, name), **options)
    if _activations(model) != _activations(twin):
        raise ValueError(
            f"expected a model of {', '.join(_activations(twin))}, as {source} was trained with, got one of "
            f"{', '.join(_activations(model))}. Create it with {name!r} and the options {options}."
        )
    others = {_placed(layer, published): each for layer, each in layers_of(twin).items()}
    if published.recurrent is not None:  # the twin has a linear layer there
        del others[_key(published, library)(published.head)]
    different = other_layer(layers_of(model), others, own_head, is_of_library(model, library))
    if different is not None:
        raise ValueError(
            f"expected {type(model).__name__} to compute what {source} was trained with, got {different}. Make it as "
            f"{name!r} with the options {options} is made, or call tsm_triton.load_checkpoint(path)."
        )


def _activations(model: nn.Module) -> list[str]:
    kinds = {type(module) for module in model.modules()}
    return sorted(kind.__name__ for kind in kinds if "activation" in kind.__module__)


def _say(model: nn.Module, published: Published, labels: bool = True) -> None:
    """How frames are prepared, and what the classes are called."""
    set_preparation(model, published.preparation)
    config: Any = dict(getattr(model, "pretrained_cfg", None) or {})
    config.pop("label_names", None)
    config.pop("sampling", None)  # of weights that were there before
    if labels and published.labels is not None:
        config["label_names"] = list(published.labels)
    if labels:
        config["num_classes"] = published.classes
    model.pretrained_cfg = config
