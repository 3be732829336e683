"""E2E-Spot, jhong93/spot: RegNet-Y, ResNet and ConvNeXt that score every frame.

    _features.*                               torchvision's ResNet, timm's RegNet-Y or ConvNeXt, without its head
    _features.layer1.0.conv1.net.*            a shift of a ResNet
    _features.s1.b1.conv1.net.conv.*          a shift of a RegNet-Y
    _features.stages.0.blocks.0.conv_dw.net.* a shift of a ConvNeXt
    _features.*.gsm.*                         a gated shift, which is no TSM
    _pred_fine._fc_out.*                      the head, a linear layer for each frame
    _pred_fine._gru.*                         the head, a GRU, with _pred_fine._fc_out._fc_out

The shift stands before the first convolution, and writes to the block's input: the shortcut, which is read afterwards,
is shifted too. So this is `place="block"`, and never `"blockres"`. shift_div is 8, the direction `"bidirectional"`. A
clip has as many frames as the configuration says, 100 by default; shorter ones are padded with zeros there. Frames are
224 pixels high when they are extracted.

Source: model/shift.py, model/impl/tsm.py, model/modules.py, train_e2e.py and dataset/frame.py of the repository.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...preparation import Preparation
from ..keys import distinct
from .layout import Given, Layout, Published, Recurrent
from .resnet import resnet_of
from .wrapped import unwrapped_keys

__all__ = ["SPOT", "read_spotter"]

# channels of RegNet-Y's four stages
REGNETS: dict[tuple[int, ...], str] = {(24, 56, 152, 368): "regnety_002", (64, 128, 320, 768): "regnety_008"}


def _recognises(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("_features.") for key in state) and any(
        key.startswith("_pred_fine.") for key in state
    )


def _read(state: dict[str, Tensor], given: Given) -> Published:
    return read_spotter(SPOT.name, state, given)


def read_spotter(layout: str, state: Mapping[str, Tensor], given: Given) -> Published:
    """A network of `_features.*` and `_pred_fine.*`.

    Raises:
        ValueError: a gated shift, another head than a GRU or a linear layer, another network.
    """
    if any(".gsm." in key for key in state):
        raise ValueError(
            f"expected a temporal shift, got a gated one (GSM, with weights of its own) in {given.source}. Use the "
            "weights whose architecture ends in _tsm."
        )
    features = {
        key.removeprefix("_features."): value for key, value in state.items() if key.startswith("_features.")
    }
    found = unwrapped_keys(features, given.source)
    networks, head = _network(found.state, given)
    recurrent, classes = _head(state, given)
    heads = ((_head_key(key, head), value) for key, value in state.items() if key.startswith("_pred_fine."))
    found.state = distinct([*found.state.items(), *heads], given.source)
    always = f"as every file of {layout}"
    return Published(
        layout=layout,
        networks=networks,
        state=found.state,
        head=head,
        classes=classes,
        shifts={
            "num_segments": given.choose("num_segments", default=100, why="as its configurations' clip_len"),
            "shift_div": given.choose("shift_div", always=8, why=always),
            "direction": given.choose("direction", always="bidirectional", why=always),
            "fold_order": given.choose("fold_order", always="future_first", why=always),
            "place": given.choose("place", always="block", why=always),
        },
        # what a block begins with stands for the block
        sites=tuple(sorted(site.rpartition(".")[0] for site in found.shifted)),
        recurrent=recurrent,
        preparation=Preparation(size=224, short_side=224),
        dropout=0.5 if recurrent else 0.0,
        notes=("a row a frame: class 0 is no event",),
    )


def _network(state: Mapping[str, Tensor], given: Given) -> tuple[dict[str, tuple[str, dict[str, Any]]], str]:
    """The network by library, and the name of its head."""
    if "layer1.0.conv1.weight" in state:
        name = resnet_of(state, given.source)
        return {"timm": (name, {}), "torchvision": (name, {})}, "fc"
    widths = tuple(len(state.get(f"s{stage}.b1.conv1.conv.weight", ())) for stage in range(1, 5))
    first = state.get("stem.conv.weight", state.get("stem.0.weight"))
    if first is not None and first.shape[1] != 3:
        raise ValueError(
            f"expected weights of RGB frames, got a first convolution of {first.shape[1]} channels in {given.source}. "
            "Use the RGB weights of the same network."
        )
    if widths in REGNETS:
        return {"timm": (REGNETS[widths], {})}, "head.fc"
    if "stages.2.blocks.8.conv_dw.weight" in state and first is not None and len(first) == 96:
        return {"timm": ("convnext_tiny", {})}, "head.fc"
    raise ValueError(
        f"expected a ResNet, RegNet-Y 200MF or 800MF, or ConvNeXt-T, got another network in {given.source}. Make the "
        "model yourself, patch it, and call tsm_triton.load_checkpoint(model, ...) with its own keys."
    )


def _head_key(key: str, head: str) -> str:
    name = re.sub(r"^_pred_fine\._gru\.", f"{head}.gru.", key)
    name = re.sub(r"^_pred_fine\._fc_out\._fc_out\.", f"{head}.fc.", name)
    return re.sub(r"^_pred_fine\._fc_out\.", f"{head}.", name)


def _head(state: Mapping[str, Tensor], given: Given) -> tuple[Recurrent | None, int]:
    linear = state.get("_pred_fine._fc_out.weight")
    if linear is not None:
        return None, len(linear)
    linear, hidden = state.get("_pred_fine._fc_out._fc_out.weight"), state.get("_pred_fine._gru.weight_hh_l0")
    if linear is None or hidden is None:
        raise ValueError(
            f"expected a head of a GRU, or a linear layer, got another (MS-TCN, ASFormer) in {given.source}, which no "
            "layer here computes. Use the weights of a GRU head."
        )
    layers = sum(re.fullmatch(r"_pred_fine\._gru\.weight_hh_l\d", key) is not None for key in state)
    return Recurrent(hidden.shape[1], layers), len(linear)


SPOT = Layout("E2E-Spot", "jhong93/spot", _recognises, _read)
