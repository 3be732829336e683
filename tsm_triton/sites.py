"""Where a model is shifted: the record that the integrations produce and `patch` consumes."""

from dataclasses import dataclass

from torch import nn

__all__ = ["ShiftSite"]


@dataclass(frozen=True)
class ShiftSite:
    """A module whose input is shifted.

    Attributes:
        name: the module's name in `model.named_modules()`.
        module: the module itself; its first argument is what gets shifted.
        channels: number of channels of that argument.
        channel_dim: the axis they stand on: 1 for `[N*T, C, H, W]`, -1 for tokens and NHWC.
    """

    name: str
    module: nn.Module
    channels: int
    channel_dim: int = 1

    def __repr__(self) -> str:
        return (
            f"ShiftSite({self.name!r}, {type(self.module).__name__}, "
            f"channels={self.channels}, channel_dim={self.channel_dim})"
        )
