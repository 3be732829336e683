"""Which ResNet weights are of, by torchvision's keys, which timm's share."""

import re
from collections.abc import Mapping

from torch import Tensor

from .layout import Choice, Given, Published
from .wrapped import Unwrapped

__all__ = ["STAGES", "classes_of", "every_block", "published_resnet", "resnet_of"]

STAGES = ("layer1", "layer2", "layer3", "layer4")
# blocks in each stage, and convolutions in a block
DEPTHS: dict[tuple[int, ...], str] = {
    (2, 2, 2, 2, 2): "resnet18",
    (3, 4, 6, 3, 2): "resnet34",
    (3, 4, 6, 3, 3): "resnet50",
    (3, 4, 23, 3, 3): "resnet101",
    (3, 8, 36, 3, 3): "resnet152",
}


def resnet_of(state: Mapping[str, Tensor], source: str) -> str:
    """The name of the ResNet.

    Raises:
        ValueError: another number of blocks, or of input channels than three: optical flow.
    """
    counts = tuple(
        len({key.split(".")[1] for key in state if key.startswith(f"{stage}.")}) for stage in STAGES
    )
    convolutions = len({key for key in state if re.fullmatch(r"layer1\.0\.conv\d\.weight", key)})
    name = DEPTHS.get((*counts, convolutions))
    if name is None:
        raise ValueError(
            f"expected a ResNet of 18, 34, 50, 101 or 152 layers, got stages of {counts} blocks in {source}. Make the "
            "model yourself, patch it, and call tsm_triton.load_checkpoint(model, ...) with its own keys."
        )
    first = next((value for key, value in state.items() if re.fullmatch(r"conv1(\.0)?\.weight", key)), None)
    if first is not None and first.shape[1] != 3:
        raise ValueError(
            f"expected weights of RGB frames, got a first convolution of {first.shape[1]} channels in {source}: "
            "optical flow, or differences of frames. Use the RGB weights of the same network."
        )
    return name


def published_resnet(
    layout: str,
    state: dict[str, Tensor],
    found: Unwrapped,
    given: Given,
    shifts: dict[str, Choice],
    mode: Choice | None,
    notes: tuple[str, ...] = (),
) -> Published:
    """A ResNet whose wrappers said where it is shifted, and what stands in it beside.

    Args:
        layout: its name.
        state: the weights by torchvision's keys.
        found: what the wrappers said, of sites by torchvision's names.
        given: what else is known.
        shifts: all but the place.
        mode: of the non-local blocks.
        notes: of the layout.

    Raises:
        ValueError: no ResNet, or one whose extras no model here has.
    """
    name, classes = resnet_of(state, given.source), classes_of(state, "fc", given)
    _check_pool(found, given)
    place = "block" if any(site.count(".") == 1 for site in found.shifted) else "blockres"
    always = place if found.shifted else None
    return Published(
        layout=layout,
        networks={"timm": (name, {}), "torchvision": (name, {})},  # they compute the same
        state={key: _flat(value) for key, value in state.items()},
        head="fc",
        classes=classes,
        shifts={**shifts, "place": given.choose("place", always=always, default=place, why="from the keys")},
        sites=tuple(sorted(found.shifted)),
        pooled=bool(found.pooled),
        non_local=tuple(sorted(found.non_local)),
        mode=mode,
        labels=given.labels(classes),
        notes=notes,
    )


def classes_of(state: Mapping[str, Tensor], head: str, given: Given) -> int:
    """How many classes a head's weights are of.

    Raises:
        ValueError: no weights of a head.
    """
    weight = state.get(f"{head}.weight")
    if weight is None:
        raise ValueError(
            f"expected the weights of a head, got none for {head!r} in {given.source}. Save the whole state dict."
        )
    return weight.shape[0]


def _flat(value: Tensor) -> Tensor:
    """A 1x1x1 convolution's weight as that of a 1x1 one."""
    return value.squeeze(-1) if value.dim() == 5 else value


def _check_pool(found: Unwrapped, given: Given) -> None:
    if found.pooled - {"layer2"}:
        raise ValueError(
            f"expected a temporal pool before layer2, got one before {', '.join(sorted(found.pooled))} in "
            f"{given.source}. Make the model yourself, and call tsm_triton.load_checkpoint(model, ...)."
        )
    if found.pooled and found.non_local:
        raise ValueError(
            f"expected a temporal pool or non-local blocks, got both in {given.source}: there the blocks take two "
            "clips for one, which no layer here does. Train it anew with create_model(..., non_local=..., "
            "temporal_pool=True)."
        )


def every_block(name: str, inside: str = ".conv1") -> tuple[str, ...]:
    """The names of what every block of a ResNet begins with."""
    counts = next(counts for counts, known in DEPTHS.items() if known == name)
    return tuple(
        f"{stage}.{block}{inside}"
        for stage, blocks in zip(STAGES, counts, strict=False)
        for block in range(blocks)
    )
