"""Activations that are computed again in the backward instead of being kept."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial, update_wrapper
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .buffers import keep_buffers, leaving_buffers, move_buffers

__all__ = ["checkpoint_activations"]

LISTS = (nn.Sequential, nn.ModuleList)


def checkpoint_activations(model: nn.Module, enable: bool = True) -> None:
    """Let a model, in whatever wrapper, keep the inputs of its blocks alone; in place.

    A block that is computed again leaves its buffers as they are, so statistics of batch-norms count each batch once.
    A spectral norm, which computes with what it moves, is one iteration further then; and timm's blocks that were
    compiled one by one count a batch twice: compile the whole model.

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
            (keep_buffers if enable else move_buffers)(module)
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
            # so that a checkpoint sees the forward that it is, and names the model's builder
            block.forward = update_wrapper(partial(_checkpointed, block, block.forward), block.forward)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What stands in a list of modules and is no list itself, nor a single layer."""
    for child in module.children():
        if isinstance(module, LISTS) and not isinstance(child, LISTS):
            if any(True for _ in child.children()):
                yield child
        else:
            yield from _blocks(child)


def _checkpointed(block: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), leaving_buffers(block)

    if torch.compiler.is_compiling():  # a graph computes activations again, and moves no buffer
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)
