"""What `print(model)` says of a shifted module."""

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from .shift_hook import ShiftHook

__all__ = ["describe", "forget_description"]


class _Description:
    """Stands in for a module's `extra_repr`: a plain object, which pickles and deep-copies with its module."""

    def __init__(self, module: nn.Module, hook: "ShiftHook") -> None:
        self.module = module
        self.hook = hook

    def __call__(self) -> str:
        hook = self.hook
        if hook.removed:  # through a graph of torch.fx
            return type(self.module).extra_repr(self.module)
        shift = f"shift={hook.direction}, num_segments={hook.num_segments}, shift_div={hook.shift_div}"
        own = type(self.module).extra_repr(self.module)
        return ", ".join(filter(None, (own, shift if hook.enabled else f"{shift}, off")))


def describe(module: nn.Module, hook: "ShiftHook") -> None:
    """Let the module's line in `print(model)` name its shift, as it is when printed.

    Example:
        >>> import timm, tsm_triton
        >>> tsm_triton.patch(timm.create_model("resnet18"), num_segments=4).layer1[0].conv1
        Conv2d(64, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False, shift=bidirectional, \
num_segments=4, shift_div=8)
    """
    own = vars(module).get("extra_repr")
    if own is None or (isinstance(own, _Description) and own.hook.removed):  # else somebody else's
        module.extra_repr = _Description(module, hook)


def forget_description(module: nn.Module) -> None:
    """Take back what `describe` did."""
    if isinstance(vars(module).get("extra_repr"), _Description):
        del module.extra_repr
