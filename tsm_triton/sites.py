"""Where a model is shifted: the record that the integrations produce and `patch` consumes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
        frames_from: None where the argument has one row a frame. Where it has several (the windows of
            Swin V2, sorted by frame), the name of the module whose input still has one: it runs before, or around.
    """

    name: str
    module: nn.Module
    channels: int
    channel_dim: int = 1
    frames_from: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The site as plain values, for JSON.

        Example:
            >>> ShiftSite("conv", nn.Conv2d(8, 8, 1), channels=8).to_dict()
            {'name': 'conv', 'channels': 8, 'channel_dim': 1, 'frames_from': None}
        """
        return {
            "name": self.name,
            "channels": self.channels,
            "channel_dim": self.channel_dim,
            "frames_from": self.frames_from,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], model: nn.Module) -> "ShiftSite":
        """The site of `model` that `to_dict` described.

        Raises:
            ValueError: the model has no module of that name, or a value is missing.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(8, 8, 1))
            >>> ShiftSite.from_dict({"name": "0", "channels": 8, "channel_dim": 1}, model)
            ShiftSite('0', Conv2d, channels=8, channel_dim=1)
        """
        missing = {"name", "channels", "channel_dim"} - values.keys()
        if missing:
            raise ValueError(
                f"expected a site as to_dict gives it, got one without {', '.join(sorted(missing))}: write "
                "them with ShiftSite.to_dict"
            )
        try:
            module = model.get_submodule(values["name"])
        except AttributeError:
            raise ValueError(
                f"expected a module of {type(model).__name__}, got {values['name']!r}, which it does not "
                "have. Pass the model that the sites were found in."
            ) from None
        return cls(
            values["name"], module, values["channels"], values["channel_dim"], values.get("frames_from")
        )

    def __repr__(self) -> str:
        folded = f", frames_from={self.frames_from!r}" if self.frames_from is not None else ""
        return (
            f"ShiftSite({self.name!r}, {type(self.module).__name__}, "
            f"channels={self.channels}, channel_dim={self.channel_dim}{folded})"
        )
