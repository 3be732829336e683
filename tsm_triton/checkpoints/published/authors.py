"""The authors' release, mit-han-lab/temporal-shift-module: ResNets and MobileNetV2.

    module.*                      DataParallel's
    base_model.*                  the network, by torchvision's names
    new_fc.*                      the head; base_model.fc, base_model.classifier of what was trained without dropout
    layer1.0.conv1.net.*          a shift before conv1: blockres
    layer1.0.net.conv1.*          a shift before the block: block
    layer2.net.0.*                a temporal pool before layer2
    layer2.0.block.*              a block that a non-local one follows, embedded Gaussian
    layer2.0.nl.*                 that: g.0, theta, phi.0, W.0 (a convolution), W.1 (its norm)
    features.3.conv.0.net.*       a shift in MobileNetV2, whose layers inside of conv count activations too

The file's name says the rest: `TSM_kinetics_RGB_resnet50_shift8_blockres_avg_segment8_e50.pth`; a training gives it to
the folder, with `ckpt.best.pth.tar` in it. Where neither says it, T is 8 and shift_div 8, as in what was released. The
direction is `"bidirectional"` in all of it.

Source: ops/models.py, ops/temporal_shift.py, ops/non_local.py, archs/mobilenet_v2.py, main.py, test_models.py and the
table of README.md of the repository.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from ..keys import renamed
from .layout import Choice, Given, Layout, Published
from .mobilenet import LAYERS, published_mobilenet
from .resnet import STAGES, published_resnet
from .wrapped import unwrapped_keys

__all__ = ["AUTHORS", "mobilenet_key"]

NON_LOCAL = {"g.0": "g", "theta": "theta", "phi.0": "phi", "W.0": "out", "W.1": "norm"}


def _recognises(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("base_model.") for key in state)


def _read(state: dict[str, Tensor], given: Given) -> Published:
    plain = renamed(state, lambda key: key.removeprefix("base_model."), given.source)
    found = unwrapped_keys(plain, given.source, STAGES)
    if any(key.startswith("features.") for key in plain):
        weights = renamed(found.state, mobilenet_key, given.source)
        sites = map(mobilenet_key, found.shifted)
        return published_mobilenet(AUTHORS.name, weights, sites, given, _shifts(given))
    weights = renamed(found.state, _resnet_key, given.source)
    mode = None
    if found.non_local:
        mode = given.choose("non_local", always="embedded_gaussian", why="as every such file")
    return published_resnet(AUTHORS.name, weights, found, given, _shifts(given), mode)


def mobilenet_key(key: str) -> str:
    """A key, or a layer's name, of the authors' MobileNetV2 as torchvision has it.

    Example:
        >>> mobilenet_key("features.2.conv.3.weight"), mobilenet_key("features.1.conv.3.weight")
        ('features.2.conv.1.0.weight', 'features.1.conv.1.weight')
    """
    key = re.sub(r"^(new_fc|classifier)\.", "classifier.1.", key)
    match = re.match(r"(features\.(\d+))\.conv\.(\d)(.*)$", key)
    if match is None:
        return key
    block, number, layer, rest = match.groups()
    # conv, norm, activation, conv, norm, activation, conv, norm
    layers = list(LAYERS[number != "1"].values())
    place = 2 * (int(layer) // 3) + int(layer) % 3
    return f"{block}.{layers[place]}{rest}"


def _resnet_key(key: str) -> str:
    block, non_local, rest = key.partition(".non_local.")
    if non_local:
        layer, _, last = rest.rpartition(".")
        return f"{block}.non_local.{NON_LOCAL.get(layer, layer)}.{last}"
    return re.sub(r"^new_fc\.", "fc.", key)


def _shifts(given: Given) -> dict[str, Choice]:
    usual = "as the released ones"
    return {
        "num_segments": given.choose("num_segments", in_name=r"segment(\d+)", default=8, why=usual),
        "shift_div": given.choose("shift_div", in_name=r"shift(\d+)", default=8, why=usual),
        "direction": given.choose("direction", default="bidirectional", why=usual),
        "fold_order": given.choose("fold_order", always="future_first", why="as every file"),
    }


AUTHORS = Layout("authors", "mit-han-lab/temporal-shift-module", _recognises, _read)
