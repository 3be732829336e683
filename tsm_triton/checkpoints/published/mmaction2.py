"""mmaction2's ResNetTSM and MobileNetV2TSM, open-mmlab/mmaction2.

    backbone.*, cls_head.fc_cls.*           the network and its head
    layer1.0.conv1.{conv,bn}.*              torchvision's conv1, bn1
    layer1.0.downsample.{conv,bn}.*         torchvision's downsample.0, downsample.1
    layer1.0.conv1.conv.net.*               a shift before conv1: blockres
    layer1.0.net.conv1.*                    a shift before the block: block
    layer2.net.0.*                          a temporal pool before layer2
    layer2.0.block.*                        a block that a non-local one follows
    layer2.0.non_local_block.*              that: g.0.conv, theta.conv, phi.0.conv, conv_out.conv, conv_out.bn
    conv1, layer2.1.conv.0.net, conv2       of MobileNetV2: torchvision's features.0, features.3.conv.0, features.18

Of non-local blocks the Gaussian has no theta; embedded Gaussian and dot product have the same keys, and a name or the
caller says which. None of the configurations scales them. T stands in the file's name, or its folder's, as `1x1x8`, and
is 8 in the configurations otherwise; shift_div is 8 there, the direction `"bidirectional"` always. Where the file holds
its configuration (`meta`, `cfg`), that comes first. Its evaluation averages the softmax of views:
`VideoClassifier(model, view_average="softmax")`.

TSN has the keys of a ResNet without a shift, and so has C2D, which pools over time behind its first stage: where a name
or the configuration says C2D, it is refused.

Source: mmaction/models/backbones/{resnet_tsm,mobilenet_v2_tsm,mobilenet_v2}.py, mmaction/models/heads/tsm_head.py,
configs/recognition/tsm and configs/_base_/models of the repository; mmcv/cnn/bricks/non_local.py of open-mmlab/mmcv.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..keys import renamed
from .layout import Choice, Given, Layout, Published
from .mobilenet import LAYERS, published_mobilenet
from .mobilenet import STAGES as MOBILENET_STAGES
from .resnet import STAGES, published_resnet
from .wrapped import Unwrapped, unwrapped_keys

__all__ = ["MMACTION2"]

NON_LOCAL = {
    "g.0.conv": "g",
    "theta.conv": "theta",
    "phi.0.conv": "phi",
    "conv_out.conv": "out",
    "conv_out.bn": "norm",
}

UNSCALED = r"""\buse_scale['"]?\s*[=:]\s*False"""


def _recognises(state: Mapping[str, Tensor]) -> bool:
    return any(re.match(r"backbone\.conv1\.conv\.", key) for key in state)


def _read(state: dict[str, Tensor], given: Given) -> Published:
    if given.is_called(r"(?<![a-z0-9])c2d(?![a-z0-9])") or re.search(
        r"type\s*=\s*'C2D'", given.configuration
    ):
        raise ValueError(
            f"expected a ResNetTSM, a MobileNetV2TSM or a TSN, got C2D in {given.source}, whose pooling over time "
            "no key shows and no model here has. Use the weights of one of these."
        )
    # the pre-processor's mean and std are no weights
    own = {key: value for key, value in state.items() if not key.startswith("data_preprocessor.")}
    plain = renamed(own, lambda key: re.sub(r"^(backbone|cls_head)\.", "", key), given.source)
    if any(key.startswith("conv2.") for key in plain):
        found = unwrapped_keys(plain, given.source)
        weights = renamed(found.state, _mobilenet_key, given.source)
        sites = [_mobilenet_key(f"{site}.conv") for site in found.shifted]
        return published_mobilenet(MMACTION2.name, weights, sites, given, _shifts(given), notes=NOTES)
    found = unwrapped_keys(plain, given.source, STAGES, "non_local_block")
    mode = _mode(found, given)
    weights = renamed(found.state, _resnet_key, given.source)
    for block in found.non_local:  # mmcv's norm makes the bias of what is before it superfluous
        norm = weights.get(f"{block}.non_local.norm.bias")
        if norm is not None:
            weights.setdefault(f"{block}.non_local.out.bias", torch.zeros_like(norm))
    found.shifted = {site.removesuffix(".conv") for site in found.shifted}
    return published_resnet(MMACTION2.name, weights, found, given, _shifts(given), mode, NOTES)


NOTES = ('mmaction2 averages the softmax of views: VideoClassifier(model, view_average="softmax")',)


def _mode(found: Unwrapped, given: Given) -> Choice | None:
    if not found.non_local:
        return None
    if not any(".non_local.theta." in key for key in found.state):
        return given.choose("non_local", always="gaussian", why="from the keys")
    mode = given.choose(
        "non_local",
        in_configuration=r"\bmode\s*=\s*'(dot_product|embedded_gaussian)'",
        in_name=r"nl-(dot-product|embedded-gaussian)",
        why="'embedded_gaussian' and 'dot_product' have the same keys",
    )
    configured = "non_local_cfg" in given.configuration
    # mmcv scales where a configuration does not say
    if mode.value == "embedded_gaussian" and configured and not re.search(UNSCALED, given.configuration):
        raise ValueError(
            f"expected non-local blocks without a scale, got {given.source}, whose non_local_cfg does not say "
            "use_scale=False, which no layer here computes. Use weights of a configuration that says it."
        )
    return mode


def _shifts(given: Given) -> dict[str, Choice]:
    usual = "as its configurations"
    return {
        "num_segments": given.choose(
            "num_segments",
            in_configuration=r"\bnum_segments\s*=\s*(\d+)",
            in_name=r"1x1x(\d+)",
            default=8,
            why=usual,
        ),
        "shift_div": given.choose(
            "shift_div", in_configuration=r"\bshift_div\s*=\s*(\d+)", default=8, why=usual
        ),
        "direction": given.choose("direction", default="bidirectional", why=usual),
        "fold_order": given.choose("fold_order", always="future_first", why="as every file"),
    }


def _resnet_key(key: str) -> str:
    block, non_local, rest = key.partition(".non_local.")
    if non_local:
        layer, _, last = rest.rpartition(".")
        return f"{block}.non_local.{NON_LOCAL.get(layer, layer)}.{last}"
    key = re.sub(r"^fc_cls\.", "fc.", key)
    key = re.sub(r"\bdownsample\.(conv|bn)\b", lambda m: f"downsample.{('conv', 'bn').index(m[1])}", key)
    return re.sub(r"\bconv(\d)\.(conv|bn)\b", r"\2\1", key)


def _mobilenet_key(key: str) -> str:
    key = re.sub(r"^fc_cls\.", "classifier.1.", key)
    outside = re.match(r"conv([12])\.(conv|bn)\b(.*)$", key)
    if outside is not None:
        return f"features.{(0, 18)[outside[1] == '2']}.{('conv', 'bn').index(outside[2])}{outside[3]}"
    match = re.match(r"layer(\d)\.(\d+)\.conv\.(\d)\.(conv|bn)\b(.*)$", key)
    if match is None:
        return key
    number = 1 + sum(MOBILENET_STAGES[: int(match[1]) - 1]) + int(match[2])
    layers = list(LAYERS[number > 1].values())
    return f"features.{number}.{layers[2 * int(match[3]) + ('conv', 'bn').index(match[4])]}{match[5]}"


MMACTION2 = Layout("mmaction2", "open-mmlab/mmaction2", _recognises, _read)
