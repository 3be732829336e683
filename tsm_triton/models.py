"""Shifted models among timm's: importing this registers `tsm_resnet50` and others.

    import timm, tsm_triton.models

    timm.create_model("tsm_resnet50", num_segments=8, direction="causal")
    timm.list_models("tsm*"), timm.list_pretrained("tsm*")

They take the options of `tsm_triton.create_model` and those of timm's own. Their configurations name what the authors
released; one's own weights are filled in, an address, a file or a repository of the hub, in any published layout or
ours:

    timm.create_model("tsm_resnet50", pretrained=True, checksum="0123abcd...",
                      pretrained_cfg_overlay=dict(url="https://...", num_classes=174))

and `timm.create_model("hf-hub:owner/name")` takes a repository whose config.json has a `tsm_` architecture.
"""

from pathlib import Path
from typing import Any

import timm
from timm.models import generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import nn

from .backbones import add_non_local, add_temporal_pool, create_model
from .checkpoints import load_checkpoint
from .checkpoints.download import HUB_FILES
from .checkpoints.load import open_checkpoint
from .patching.patch import patch

__all__ = ["create_model", "default_cfgs"]

NAMES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "mobilenetv2_100",
    "regnety_002",
    "regnety_008",
    "convnext_tiny",
)
RELEASED = "https://hanlab18.mit.edu/projects/tsm/models/TSM_"


def _released(name: str, num_classes: int) -> dict[str, Any]:
    return {"url": f"{RELEASED}{name}.pth", "num_classes": num_classes}


# as the authors' README lists them; a tag ends in the number of frames
default_cfgs = generate_default_cfgs(
    {
        "tsm_resnet50.mit_k400_8f": _released("kinetics_RGB_resnet50_shift8_blockres_avg_segment8_e50", 400),
        "tsm_resnet50.mit_k400_16f": _released(
            "kinetics_RGB_resnet50_shift8_blockres_avg_segment16_e50", 400
        ),
        "tsm_resnet50.mit_k400_dense_8f": _released(
            "kinetics_RGB_resnet50_shift8_blockres_avg_segment8_e100_dense", 400
        ),
        "tsm_resnet50.mit_sthv1_8f": _released(
            "something_RGB_resnet50_shift8_blockres_avg_segment8_e45", 174
        ),
        "tsm_resnet50.mit_sthv1_16f": _released(
            "something_RGB_resnet50_shift8_blockres_avg_segment16_e45", 174
        ),
        "tsm_resnet50.mit_sthv2_8f": _released(
            "somethingv2_RGB_resnet50_shift8_blockres_avg_segment8_e45", 174
        ),
        "tsm_resnet50.mit_sthv2_16f": _released(
            "somethingv2_RGB_resnet50_shift8_blockres_avg_segment16_e45", 174
        ),
        "tsm_resnet101.mit_sthv1_8f": _released(
            "something_RGB_resnet101_shift8_blockres_avg_segment8_e45", 174
        ),
        "tsm_resnet101.mit_sthv2_8f": _released(
            "somethingv2_RGB_resnet101_shift8_blockres_avg_segment8_e45", 174
        ),
        "tsm_mobilenetv2_100.mit_k400_dense_8f": _released(
            "kinetics_RGB_mobilenetv2_shift8_blockres_avg_segment8_e100_dense", 400
        ),
        **{
            f"tsm_{name}.untrained": {}
            for name in ("resnet18", "resnet34", "regnety_002", "regnety_008", "convnext_tiny")
        },
    }
)


def _create(
    name: str,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: Any = None,
    *,
    num_segments: int | None = None,
    num_classes: int | None = None,
    direction: str = "bidirectional",
    place: str = "blockres",
    shift_div: int = 8,
    non_local: str | None = None,
    temporal_pool: bool = False,
    checksum: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """timm's entry point of a shifted model.

    Raises:
        ValueError: pretrained, and no weights are named; what `patch` and `load_checkpoint` raise.
    """
    config = resolve_pretrained_cfg(f"tsm_{name}", pretrained_cfg, pretrained_cfg_overlay)
    source = _source(config)
    if num_segments is None and pretrained and source is not None:
        num_segments = _length_said(source, checksum)
    if num_segments is None:
        num_segments = 16 if str(config.tag).endswith("_16f") else 8
    if pretrained and source is None:
        raise ValueError(
            f"expected weights of tsm_{name}, got pretrained=True and none named. Pass "
            "pretrained_cfg_overlay=dict(url=..., num_classes=...), or one with file or hf_hub_id."
        )
    classes = config.num_classes if num_classes is None else num_classes
    model = timm.create_model(name, num_classes=classes, **kwargs)
    if temporal_pool:
        add_temporal_pool(model, num_segments)
    if non_local is not None:
        add_non_local(model, num_segments, non_local)
    patch(model, num_segments, shift_div=shift_div, direction=direction, place=place)
    own: Any = model.pretrained_cfg
    # the architecture stays that of the network inside, by which `save_checkpoint` proves how it is built
    for key in ("input_size", "interpolation", "crop_pct", "mean", "std", "num_classes", "label_names"):
        own[key] = getattr(config, key)
    if pretrained and source is not None:
        new_head = None if classes == config.num_classes else classes
        load_checkpoint(model, source, new_head=new_head, checksum=checksum, non_local=non_local)
    return model


def _length_said(source: Any, checksum: str | None) -> int | None:
    """T of the weights, where their file says it."""
    checkpoint, published = open_checkpoint(source, checksum, asks=False)
    if published is not None:
        return published.shifts["num_segments"].value if published.sites else None
    return None if checkpoint.patch is None else checkpoint.patch["num_segments"]


def _source(config: Any) -> Any:
    """Where the weights of a configuration are, what is nearest first, as in timm."""
    if config.state_dict:
        return config.state_dict
    if config.file:  # a folder, of `local-dir:`
        inside = [path for name in HUB_FILES if (path := Path(config.file, name)).is_file()]
        return inside[0] if inside else config.file
    if config.hf_hub_id:
        return f"hf-hub:{config.hf_hub_id}" + (f":{config.hf_hub_filename}" if config.hf_hub_filename else "")
    return config.url


ENTRY = """timm's {name}, shifted: folded clips `[N*T, 3, H, W]` -> logits `[N*T, num_classes]`, a row a frame.

Args:
    pretrained: load the weights that the configuration names, or `pretrained_cfg_overlay`; strictly, whatever layout.
    num_segments: T; by default that of the weights, or 8.
    num_classes: by default the configuration's; another number gives a new head.
    direction, place, shift_div, non_local, temporal_pool: see `tsm_triton.create_model`; for pretrained weights
        those that they were trained with. `temporal_pool` halves the rows.
    checksum: the SHA-256 of the weights, or its beginning.
    kwargs: timm's own, `drop_rate` for instance.

Raises:
    ValueError: pretrained without weights, weights that do not fit, or what `tsm_triton.patch` raises.

Example:
    >>> import timm, torch, tsm_triton.models
    >>> model = timm.create_model("tsm_{name}", num_segments=4, num_classes=5)
    >>> model(torch.zeros(2 * 4, 3, 64, 64)).shape
    torch.Size([8, 5])
"""


def _register(name: str) -> None:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(name, pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = f"tsm_{name}"
    entry.__doc__ = ENTRY.format(name=name)
    globals()[entry.__name__] = register_model(entry)


for _name in NAMES:
    _register(_name)
