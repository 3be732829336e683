"""MobileNetV2's keys in torchvision and in timm.

torchvision counts 17 blocks, `features.1` to `features.17`; timm has them in stages of 1, 2, 3, 4, 3, 3, 1, and names
layers by what they do.
"""

from collections.abc import Iterable

from torch import Tensor

from .layout import Choice, Given, Published
from .resnet import classes_of

__all__ = ["LAYERS", "SITES", "STAGES", "in_timm", "published_mobilenet"]

# the blocks of each stage
STAGES = (1, 2, 3, 4, 3, 3, 1)
# (stage, block) of each, from features.1 on
BLOCKS = tuple((stage, block) for stage, count in enumerate(STAGES) for block in range(count))
# the authors' sites: blocks with a shortcut and an expansion
SITES = tuple(f"features.{number}.conv.0.0" for number, (_, block) in enumerate(BLOCKS, 1) if block)
# the layers of a block in torchvision: of the first, and of all others
LAYERS = (
    {"conv_dw": "conv.0.0", "bn1": "conv.0.1", "conv_pw": "conv.1", "bn2": "conv.2"},
    {
        "conv_pw": "conv.0.0",
        "bn1": "conv.0.1",
        "conv_dw": "conv.1.0",
        "bn2": "conv.1.1",
        "conv_pwl": "conv.2",
        "bn3": "conv.3",
    },
)
OUTSIDE = {
    "features.0.0": "conv_stem",
    "features.0.1": "bn1",
    "features.18.0": "conv_head",
    "features.18.1": "bn2",
    "classifier.1": "classifier",
}


def _renamed() -> dict[str, str]:
    names = dict(OUTSIDE)
    for number, (stage, block) in enumerate(BLOCKS, 1):
        for timm, torchvision in LAYERS[number > 1].items():
            names[f"features.{number}.{torchvision}"] = f"blocks.{stage}.{block}.{timm}"
    return names


NAMES = _renamed()


def in_timm(key: str) -> str:
    """A key, or a layer's name, of torchvision's as timm has it.

    Example:
        >>> in_timm("features.3.conv.0.0.weight")
        'blocks.1.1.conv_pw.weight'
    """
    module, dot, last = key.rpartition(".")
    return NAMES[key] if key in NAMES else f"{NAMES.get(module, module)}{dot}{last}"


def published_mobilenet(
    layout: str,
    state: dict[str, Tensor],
    sites: Iterable[str],
    given: Given,
    shifts: dict[str, Choice],
    labels: list[str] | None = None,
    notes: tuple[str, ...] = (),
) -> Published:
    """A MobileNetV2 by torchvision's keys, with all choices but the place: no release has another than `blockres`.

    Raises:
        ValueError: no weights of a head.
    """
    classes = classes_of(state, "classifier.1", given)
    return Published(
        layout=layout,
        # they compute the same
        networks={"torchvision": ("mobilenet_v2", {}), "timm": ("mobilenetv2_100", {})},
        state=state,
        head="classifier.1",
        classes=classes,
        shifts={**shifts, "place": given.choose("place", always="blockres", why="as every MobileNetV2")},
        sites=tuple(sorted(sites)),
        keys={"timm": in_timm},
        labels=labels or given.labels(classes),
        notes=notes,
    )
