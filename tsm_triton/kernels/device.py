"""The device that a launch goes to."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def device_guard(x: Tensor) -> AbstractContextManager[object]:
    """Make `x`'s GPU the current one for a launch; costs nothing where it already is."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()
