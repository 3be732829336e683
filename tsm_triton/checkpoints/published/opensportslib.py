"""OpenSportsLib's spotting models, OpenSportsLab/opensportslib: E2E-Spot's, their parts named otherwise.

`backbone._features.*` are E2E-Spot's `_features.*`, `head._pred_fine.*` its `_pred_fine.*`; all else is as in `spot`,
the shift in place too. The trainer writes `{"model_state_dict": ...}`.

Source: opensportslib/models/backbones/builder.py, opensportslib/models/heads/builder.py,
opensportslib/models/utils/shift.py and opensportslib/core/trainer/localization_trainer.py of the repository.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from ..keys import renamed
from .layout import Given, Layout, Published
from .spot import read_spotter

__all__ = ["OPENSPORTSLIB"]


def _recognises(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("backbone._features.") for key in state)


def _read(state: dict[str, Tensor], given: Given) -> Published:
    plain = renamed(state, lambda key: re.sub(r"^(backbone|head)\.(?=_)", "", key), given.source)
    return read_spotter(OPENSPORTSLIB.name, plain, given)


OPENSPORTSLIB = Layout("OpenSportsLib", "OpenSportsLab/opensportslib", _recognises, _read)
