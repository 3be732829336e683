"""The authors' online demo, mit-han-lab/temporal-shift-module, folder online_demo: a causal MobileNetV2 for gestures.

A flat dictionary: `features.*` as in `authors`, whose first convolutions are wrapped in nothing, and `classifier.*`.
Before the first convolution of the ten blocks with a shortcut and an expansion, the first eighth of the channels is the
previous frame's: `direction="causal"`, `place="blockres"`, `shift_div=8`. It was released as
`mobilenetv2_jester_online.pth.tar`, with 27 classes of Jester.

Source: online_demo/mobilenet_v2_tsm.py and online_demo/main.py.
"""

from collections.abc import Mapping

from torch import Tensor

from ..keys import renamed
from .authors import mobilenet_key
from .layout import Given, Layout, Published
from .mobilenet import SITES, published_mobilenet

__all__ = ["AUTHORS_ONLINE"]

JESTER = (
    "Doing other things",
    "Drumming Fingers",
    "No gesture",
    "Pulling Hand In",
    "Pulling Two Fingers In",
    "Pushing Hand Away",
    "Pushing Two Fingers Away",
    "Rolling Hand Backward",
    "Rolling Hand Forward",
    "Shaking Hand",
    "Sliding Two Fingers Down",
    "Sliding Two Fingers Left",
    "Sliding Two Fingers Right",
    "Sliding Two Fingers Up",
    "Stop Sign",
    "Swiping Down",
    "Swiping Left",
    "Swiping Right",
    "Swiping Up",
    "Thumb Down",
    "Thumb Up",
    "Turning Hand Clockwise",
    "Turning Hand Counterclockwise",
    "Zooming In With Full Hand",
    "Zooming In With Two Fingers",
    "Zooming Out With Full Hand",
    "Zooming Out With Two Fingers",
)


def _recognises(state: Mapping[str, Tensor]) -> bool:
    # torchvision's own has conv.0.0 and classifier.1
    return "features.3.conv.0.weight" in state and "classifier.weight" in state


def _read(state: dict[str, Tensor], given: Given) -> Published:
    always = "as the online demo"
    return published_mobilenet(
        AUTHORS_ONLINE.name,
        renamed(state, mobilenet_key, given.source),
        SITES,
        given,
        {
            "num_segments": given.choose("num_segments", default=8, why="any: a stream has no clips"),
            "shift_div": given.choose("shift_div", always=8, why=always),
            "direction": given.choose("direction", always="causal", why=always),
            "fold_order": given.choose("fold_order", always="future_first", why=always),
        },
        labels=list(JESTER) if len(state["classifier.weight"]) == len(JESTER) else None,
        notes=(
            "tsm_triton.Streaming(model) runs it frame by frame; the demo takes every second frame of a camera",
        ),
    )


AUTHORS_ONLINE = Layout("authors' online demo", "mit-han-lab/temporal-shift-module", _recognises, _read)
