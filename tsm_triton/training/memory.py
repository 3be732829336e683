"""Activations that are computed again in the backward instead of being kept."""

from collections.abc import Iterator
from functools import partial, update_wrapper
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpoint_activations"]

LISTS = (nn.Sequential, nn.ModuleList)


def checkpoint_activations(model: nn.Module, enable: bool = True) -> None:
    """Let a model, in whatever wrapper, keep the inputs of its blocks alone; in place.

    Args:
        model: of timm, which knows it itself; of another library with blocks in an `nn.Sequential`, as torchvision's.
        enable: False takes it back.

    Raises:
        ValueError: a model that has no such setting, and no blocks.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_resnet")
        >>> checkpoint_activations(model)
        >>> model.grad_checkpointing
        True
    """
    for module in model.modules():
        setting: Any = getattr(module, "set_grad_checkpointing", None)
        if callable(setting):
            try:
                setting(enable)
            except AssertionError as error:  # how timm says that a model has none
                raise ValueError(
                    f"expected a model that can compute activations again, got {type(module).__name__} ({error}): "
                    "drop checkpoint_activations"
                ) from error
            return
    blocks = list(_blocks(model))
    if not blocks:
        raise ValueError(
            f"expected a model of blocks in an nn.Sequential, which can be computed again, got {type(model).__name__}: "
            "drop checkpoint_activations, or choose another model"
        )
    for block in blocks:
        vars(block).pop("forward", None)
        if enable:
            again = partial(checkpoint, block.forward, use_reentrant=False)
            # so that a checkpoint sees the forward that it is, and names the model's builder
            block.forward = update_wrapper(again, block.forward)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What stands in a list of modules and is no list itself, nor a single layer."""
    for child in module.children():
        if isinstance(module, LISTS) and not isinstance(child, LISTS):
            if any(True for _ in child.children()):
                yield child
        else:
            yield from _blocks(child)
