"""PaddleVideo's TSM, PP-TSM and PP-TSMv2, PaddlePaddle/PaddleVideo.

    backbone.*, head.fc.*                 the network and its head; PP-TSMv2's is backbone.fc
    _mean, _variance                      torch's running_mean, running_var
    the weight of a linear layer          [in, out], torch's transposed
    TSM, a ResNet:
      conv._conv, conv._batch_norm        conv1, bn1
      res2a.conv0._conv                   layer1.0.conv1; of 101 layers res4a, res4b1, res4b2 ... in the third stage
      res2a.short._conv                   layer1.0.downsample.0
    PP-TSM, a ResNet-D of leaky ReLUs:
      conv1_1, conv1_2, conv1_3           timm's conv1.0 and .1, conv1.3 and .4, conv1.6 and bn1
      bb_0_0.conv0._conv                  layer1.0.conv1
      bb_0_0.short._conv                  layer1.0.downsample.1, behind a pool, or what stands for one
    PP-TSMv2, PP-LCNetV2:
      stages.2.0.dw_conv_list.0.conv      the same in timm's lcnetv2_base
      .se.conv1, .pw_conv_1               .se.fc1, .pw_conv.0
      last_conv                           conv_head

The shift is Paddle's (`fold_order="past_first"`), and one part in T of the channels moves each way: shift_div is T.
Every block of a ResNet is shifted, of 101 layers too, where the authors shift every second one. PP-TSMv2 has one shift,
before its third stage (`place="block"` at `stages.2`), and a factor of 0.8 in evaluation, which its dropout leaves: it
is multiplied into the head here. PP-TSM on MobileNetV2 and V3 has an expansion in its first block that no model of the
libraries has.

TSN has the keys of TSM, and PP-TSN, whose activations are plain ReLUs, those of PP-TSM. The file's name tells them
apart: one that says `tsn`, and not `tsm`, holds no shift.

A `.pdparams` file is a pickle of arrays, which `torch.load(weights_only=True)` does not read: write it anew, where
Paddle is, with `safetensors.numpy.save_file`.

Source: paddlevideo/modeling/backbones/{resnet_tsm,resnet_tweaks_tsm,pptsm_v2,pptsm_mv2}.py,
paddlevideo/modeling/heads/{tsm_head,pptsm_head}.py and configs/recognition/{tsm,pptsm} of the repository;
paddle.nn.functional.temporal_shift.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..keys import distinct, renamed
from .layout import Choice, Given, Layout, Published
from .resnet import classes_of, every_block, resnet_of

__all__ = ["PADDLEVIDEO"]

STATISTICS = {"_mean": "running_mean", "_variance": "running_var"}
# of PP-TSMv2: what dropout of "downscale_in_infer" multiplies by in evaluation
KEPT = 0.8


def _recognises(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("backbone.") and key.endswith("._mean") for key in state)


def _read(state: dict[str, Tensor], given: Given) -> Published:
    plain = distinct(map(_plain, state.items()), given.source)
    if any(key.startswith("stages.") for key in plain):
        return _version_2(plain, given)
    if any("_expand_conv" in key or key.startswith("last_second_conv") for key in plain):
        raise ValueError(
            f"expected PP-TSM of a ResNet or PP-TSMv2, got one of a MobileNet in {given.source}, whose first block no "
            "model of timm's or torchvision's has. Use the weights of PP-TSMv2 or of a ResNet."
        )
    return _resnet(plain, given)


def _plain(entry: tuple[str, Tensor]) -> tuple[str, Tensor]:
    key, value = entry
    layer, _, last = key.removeprefix("backbone.").rpartition(".")
    return f"{layer}.{STATISTICS.get(last, last)}", value.T.contiguous() if value.dim() == 2 else value


def _resnet(plain: dict[str, Tensor], given: Given) -> Published:
    tweaked = any(key.startswith("bb_") for key in plain)
    is_shifted = given.is_called("tsm") or not given.is_called("tsn")
    if tweaked and not is_shifted:
        raise ValueError(
            f"expected TSM, PP-TSM, PP-TSMv2 or TSN, got PP-TSN in {given.source}, whose activations no model here "
            "has. Use the weights of one of these."
        )
    state = renamed(plain, lambda key: _resnet_key(key, tweaked), given.source)
    name = resnet_of(state, given.source)
    if name in ("resnet18", "resnet34"):
        raise ValueError(
            f"expected a ResNet of 50 layers or more, got {name} in {given.source}, of which nothing was released. "
            "Make the model yourself, patch it, and call tsm_triton.load_checkpoint(model, ...) with its own keys."
        )
    classes = classes_of(state, "fc", given)
    networks: dict[str, tuple[str, dict[str, Any]]] = {"timm": (name, {}), "torchvision": (name, {})}
    if tweaked:  # torchvision has no ResNet-D
        networks = {"timm": (f"{name}d", {"act_layer": "leaky_relu"})}
    return Published(
        layout=PADDLEVIDEO.name,
        networks=networks,
        state=state,
        head="fc",
        classes=classes,
        shifts=_shifts(
            given,
            given.choose("num_segments", default=8, why="as its configurations"),
            given.choose("place", always="blockres", why="as every ResNet"),
        ),
        sites=every_block(name) if is_shifted else (),
        labels=given.labels(classes),
    )


def _version_2(plain: dict[str, Tensor], given: Given) -> Published:
    if any(key.startswith("global_attention.") for key in plain):
        raise ValueError(
            f"expected PP-TSMv2 without temporal attention, got one with it in {given.source}, which no layer here "
            "computes. Use the released weights, which have none."
        )
    listed = {key.partition(".dw_conv_list.")[0] for key in plain if ".dw_conv_list." in key}
    # what reparameterising would write to, and training leaves as it began
    own = {
        key: value
        for key, value in plain.items()
        if not (".dw_conv." in key and key.partition(".dw_conv.")[0] in listed)
    }
    state = renamed(own, _version_2_key, given.source)
    classes = classes_of(state, "classifier", given)
    state["classifier.weight"] = state["classifier.weight"] * KEPT
    return Published(
        layout=PADDLEVIDEO.name,
        networks={"timm": ("lcnetv2_base", {})},
        state=state,
        head="classifier",
        classes=classes,
        shifts=_shifts(
            given,
            given.choose(
                "num_segments",
                in_name=r"(?<![A-Za-z0-9])(8|16)f(?:rames)?(?![A-Za-z0-9])",
                why="its configurations have 8 and 16",
            ),
            given.choose("place", always="block", why="as every PP-TSMv2"),
        ),
        sites=("stages.2",),
        labels=given.labels(classes),
        dropout=0.2,
    )


def _shifts(given: Given, num_segments: Choice, place: Choice) -> dict[str, Choice]:
    always = "as every file of PaddleVideo"
    return {
        "num_segments": num_segments,
        "shift_div": given.choose("shift_div", default=num_segments.value, why="as many as num_segments"),
        "direction": given.choose("direction", always="bidirectional", why=always),
        "fold_order": given.choose("fold_order", always="past_first", why=always),
        "place": place,
    }


def _resnet_key(key: str, tweaked: bool) -> str:
    key = key.removeprefix("head.")
    key = re.sub(r"^conv\._(conv|batch_norm)\.", lambda m: f"{'conv' if m[1] == 'conv' else 'bn'}1.", key)
    stem = re.match(r"conv1_(\d)\._(conv|batch_norm)\.(.*)$", key)
    if stem is not None:  # of three convolutions, timm has the last norm outside
        number, layer, last = int(stem[1]) - 1, stem[2], stem[3]
        if layer == "conv":
            return f"conv1.{3 * number}.{last}"
        return f"bn1.{last}" if number == 2 else f"conv1.{3 * number + 1}.{last}"
    block = re.match(r"(?:bb_(\d)_(\d+)|res(\d)([a-z])(\d*))\.(conv\d|short)\._(conv|batch_norm)\.(.*)$", key)
    if block is None:
        return key
    if block[1] is not None:
        stage, number = int(block[1]) + 1, int(block[2])
    else:  # res2a, res2b ... or res4a, res4b1, res4b2 ...
        stage, number = int(block[3]) - 1, int(block[5]) if block[5] else ord(block[4]) - ord("a")
    kind, layer, last = block[6], block[7], block[8]
    if kind == "short":
        return f"layer{stage}.{number}.downsample.{('conv', 'batch_norm').index(layer) + tweaked}.{last}"
    return f"layer{stage}.{number}.{'conv' if layer == 'conv' else 'bn'}{int(kind[-1]) + 1}.{last}"


def _version_2_key(key: str) -> str:
    key = re.sub(r"\.se\.conv(\d)\.", r".se.fc\1.", key)
    key = re.sub(r"\.pw_conv_(\d)\.", lambda m: f".pw_conv.{int(m[1]) - 1}.", key)
    return re.sub(r"^fc\.", "classifier.", re.sub(r"^last_conv\.", "conv_head.", key))


PADDLEVIDEO = Layout("PaddleVideo", "PaddlePaddle/PaddleVideo", _recognises, _read)
