"""2D models by name, and video models made of them: with their head, shifted, with what the authors put beside."""

import difflib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from .arguments import as_count
from .choices import PLACES
from .integrations.origin import image_size
from .integrations.residual import STAGES
from .modules import DropoutLinear, NonLocal, TemporalPool
from .patching.patch import patch

__all__ = [
    "add_non_local",
    "add_temporal_pool",
    "create_backbone",
    "create_model",
    "head_of",
    "set_head",
]

# the authors' blocks of each stage, of ResNet-50
NON_LOCAL_BLOCKS = {"layer2": (0, 2), "layer3": (0, 2, 4)}


def create_model(
    name: str,
    num_segments: int = 8,
    num_classes: int = 174,
    pretrained: bool = False,
    direction: str = "bidirectional",
    *,
    place: str = "blockres",
    shift_div: int = 8,
    dropout: float = 0.5,
    size: int | None = None,
    non_local: str | None = None,
    temporal_pool: bool = False,
) -> nn.Module:
    """A shifted model by its name, with a head for these classes: the whole of a TSM but for its weights.

    It takes folded clips, `[N*T, 3, H, W]`, and gives a row a frame, `[N*T, num_classes]`; `VideoClassifier` around it
    takes `[N, T, 3, H, W]`. Weights that were trained as a TSM are loaded by `load_checkpoint`.

    Args:
        name: of timm, or `torchvision/` and a name of torchvision's classifiers.
        num_segments: T, the number of frames of a clip.
        num_classes: of the head, which is new where the weights have others; 174 as Something-Something.
        pretrained: with the library's weights of images, which are downloaded; to be trained on clips.
        direction: `"bidirectional"`, or `"causal"` for online video.
        place, shift_div: of the shift, see `patch`.
        dropout: before the head, as it trains; 0.5 as the authors. Models of torchvision get a
            `modules.DropoutLinear`, whose keys are those of the layer it replaces.
        size: of a frame's side in pixels, for networks that hold a table of positions; others take any.
        non_local: a mode of `modules.NonLocal`; puts one behind the blocks of a ResNet where the authors did, with
            keys `layer2.0.block.*` and `layer2.0.non_local.*`.
        temporal_pool: a `modules.TemporalPool` before a ResNet's second stage, whose keys become `layer2.stage.*`; the
            model then gives a row for every second frame.

    Returns:
        The patched model, in training mode.

    Raises:
        TypeError, ValueError: an unknown name, which lists close ones; bad arguments; extras of another model than a
            ResNet; what `patch` raises.

    Example:
        >>> import torch
        >>> model = create_model("resnet18", num_segments=4, num_classes=5, temporal_pool=True)
        >>> model(torch.randn(2 * 4, 3, 64, 64)).shape  # of two frames a clip
        torch.Size([4, 5])

    Source: the authors' release for the head, the dropout and where the extras stand.
    """
    num_segments, num_classes = as_count(num_segments, "num_segments"), as_count(num_classes, "num_classes")
    if place not in PLACES:
        raise ValueError(f"place must be one of {', '.join(map(repr, PLACES))}, got {place!r}: choose one")
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be from 0 to below 1, got {dropout!r}: pass 0 for none")
    model = _with_head(name, num_classes, pretrained, dropout)
    if size is not None and image_size(model) not in (None, (size, size)):
        model = _with_head(name, num_classes, pretrained, dropout, as_count(size, "size"))
    if temporal_pool:
        add_temporal_pool(model, num_segments)
    if non_local is not None:
        add_non_local(model, num_segments, non_local)
    return patch(model, num_segments, shift_div=shift_div, direction=direction, place=place)


def _with_head(
    name: str, num_classes: int, pretrained: bool, dropout: float, size: int | None = None
) -> nn.Module:
    if name.startswith("torchvision/"):
        model = create_backbone(name, pretrained=pretrained, **({} if size is None else {"image_size": size}))
        set_head(model, num_classes, dropout)
        return model
    options = {} if size is None else {"img_size": size}
    return create_backbone(name, pretrained=pretrained, num_classes=num_classes, drop_rate=dropout, **options)


def create_backbone(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A 2D model of timm's or torchvision's by its name.

    Args:
        name: a timm name, or `torchvision/` and a name of torchvision's classifiers.
        pretrained: with the library's weights, which are downloaded; nothing is otherwise.
        kwargs: passed on to the library, `num_classes` for instance.

    Raises:
        ValueError: an unknown name; the message lists close ones. Weights that cannot be downloaded, or are not there.

    Example:
        >>> type(create_backbone("torchvision/resnet18", num_classes=2)).__module__
        'torchvision.models.resnet'
    """
    library, _, rest = name.rpartition("/")
    if library == "torchvision":
        from torchvision import models

        _check_name(name, rest, models.list_models(module=models), "torchvision")
        weights = "DEFAULT" if pretrained else None
        with _downloading(name, pretrained):
            return models.get_model(rest, weights=weights, **kwargs)
    import timm

    if not timm.is_model(name):
        _check_name(name, name, timm.list_models(), "timm")
    elif "." in name:
        _check_name(name, name, timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True), "timm")
    with _downloading(name, pretrained):
        return timm.create_model(name, pretrained=pretrained, **kwargs)


@contextmanager
def _downloading(name: str, pretrained: bool) -> Iterator[None]:
    """What fails with a library's own weights and not without: libraries and their hubs raise what they like."""
    try:
        yield
    except Exception as error:
        if not pretrained or isinstance(error, TypeError):  # of arguments
            raise
        raise ValueError(
            f"expected weights of {name!r}, which its library downloads, got {type(error).__name__} "
            f"({str(error).strip().partition(chr(10))[0]}). Check the network, choose a name that has "
            "weights, or leave pretrained out."
        ) from error


def head_of(model: nn.Module) -> str:
    """The name of the linear layer that gives a classifier's logits.

    Raises:
        ValueError: it ends in another layer.

    Example:
        >>> head_of(create_backbone("torchvision/mobilenet_v2"))
        'classifier.1'
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if not layers or not isinstance(model.get_submodule(layers[-1]), nn.Linear):
        raise ValueError(
            f"expected a classifier that ends in a linear layer, got {type(model).__name__}. Patch it with "
            "tsm_triton.patch, and give it its head yourself."
        )
    return layers[-1]


def set_head(model: nn.Module, num_classes: int, dropout: float = 0.0) -> None:
    """Give a classifier of torchvision's a linear layer for these classes, and dropout before it.

    The weights are kept where there are as many classes already.

    Raises:
        ValueError: a model that does not end in a linear layer.
    """
    name = head_of(model)
    old: Any = model.get_submodule(name)
    parent, _, last = name.rpartition(".")
    layers = list(model.get_submodule(parent).named_children())
    before = [layer for key, layer in layers[: [key for key, _ in layers].index(last)] if key]
    if before and isinstance(before[-1], nn.Dropout):
        before[-1].p = dropout
        dropout = 0
    options = {"p": dropout} if dropout else {}
    new = (DropoutLinear if dropout else nn.Linear)(
        old.in_features, num_classes, old.bias is not None, **options
    )
    if old.out_features == num_classes:
        new.load_state_dict(old.state_dict())
    model.set_submodule(name, new.train(old.training))
    if getattr(model, "num_classes", None) == old.out_features:  # torchvision's transformers say it
        model.num_classes = num_classes  # pyright: ignore[reportArgumentType]


def add_temporal_pool(model: nn.Module, num_segments: int) -> None:
    """Put a `TemporalPool` before a ResNet's second stage.

    Raises:
        ValueError: another model, or an odd number of frames.
    """
    stages = _stages(model, "temporal_pool")
    pool = TemporalPool(num_segments)
    model.layer2 = nn.Sequential(OrderedDict(pool=pool, stage=stages["layer2"]))


def add_non_local(
    model: nn.Module,
    num_segments: int,
    mode: str,
    blocks: Mapping[str, Sequence[int]] = NON_LOCAL_BLOCKS,
) -> None:
    """Put a `NonLocal` behind blocks of a ResNet, by default those of the authors.

    Raises:
        ValueError: another model, one with fewer blocks, or an unknown mode.
    """
    stages = _stages(model, "non_local")
    for name, numbers in blocks.items():
        if len(stages[name]) <= max(numbers, default=0):
            raise ValueError(
                f"expected {max(numbers) + 1} blocks or more in {name} for the authors' non-local blocks, got "
                f"{len(stages[name])}. Use a ResNet of 50 layers or more, or put tsm_triton.modules.NonLocal in "
                "yourself."
            )
    layers = {
        (name, number): NonLocal(_width(stages[name][number]), num_segments, mode)
        for name, numbers in blocks.items()
        for number in numbers
    }
    for (name, number), layer in layers.items():
        stages[name][number] = nn.Sequential(OrderedDict(block=stages[name][number], non_local=layer))


def _stages(model: Any, extra: str) -> dict[str, Any]:
    """A ResNet's stages by their names, without a pool before them."""
    stages = {name: getattr(model, name, None) for name in STAGES}
    if not all(isinstance(stage, nn.Sequential) for stage in stages.values()):
        raise ValueError(
            f"{extra}: expected a ResNet, of stages layer1 to layer4, got {type(model).__name__}. Leave {extra} out, "
            "or put the layers of tsm_triton.modules in yourself."
        )
    return {name: getattr(stage, "stage", stage) for name, stage in stages.items()}


def _width(block: Any) -> int:
    return (block.conv3 if hasattr(block, "conv3") else block.conv2).out_channels


def _check_name(given: str, name: str, known: list[str], library: str) -> None:
    if name in known:
        return
    prefix = "torchvision/" if library == "torchvision" else ""
    close = [prefix + match for match in difflib.get_close_matches(name, known, n=4)]
    raise ValueError(
        f"expected the name of a {library} model, got {given!r}. "
        + (f"Did you mean {', '.join(close)}? " if close else "")
        + "Pass a name of timm's, or torchvision/NAME."
    )
