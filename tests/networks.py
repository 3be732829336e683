"""Models without weights or with visible ones, and what one frame reaches in them."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

T = 4


def on_meta(name: str, **options) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, **options)


def visible(model: nn.Module) -> Any:
    for name, parameter in model.named_parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
        if (parameter.dim() == 1 and name.endswith("weight")) or "gamma" in name or "layer_scale" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def with_statistics(model: nn.Module) -> nn.Module:
    """Draw every batch-norm anew, running statistics too: defaults would hide branches and wrong folding.

    The statistics are then taken from data, so that values neither vanish nor explode, and moved a little.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(torch.randn(T, 3, 64, 64))
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean += 0.2 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt()
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.4)
    return model.eval().requires_grad_(True)


def reached(model: Callable[[torch.Tensor], torch.Tensor], frames: torch.Tensor, frame: int) -> list[bool]:
    changed = frames.clone()
    changed[frame] = torch.randn(frames.shape[1:])
    with torch.no_grad():
        return (model(frames) != model(changed)).flatten(1).any(1).tolist()


class Block(nn.Module):
    """A residual block of a user's own, with a downsample."""

    def __init__(self, stride: int):
        super().__init__()
        self.down = nn.Conv2d(16, 16, 1, stride)
        self.first = nn.Conv2d(16, 16, 3, stride, 1)
        self.second = nn.Conv2d(16, 16, 3, 1, 1)

    def forward(self, x):
        return self.down(x) + self.second(self.first(x).relu())
