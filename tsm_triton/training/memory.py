"""Activations that are computed again in the backward instead of being kept."""

from collections.abc import Iterator
from functools import partial, update_wrapper
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..torch_private import (
    buffers_of,
    forward_hooks,
    in_backward,
    pre_hooks,
    take_forward_hook,
    take_pre_hook,
)

__all__ = ["checkpoint_activations"]

LISTS = (nn.Sequential, nn.ModuleList)


def checkpoint_activations(model: nn.Module, enable: bool = True) -> None:
    """Let a model, in whatever wrapper, keep the inputs of its blocks alone; in place.

    What a block is computed again for are its activations: statistics of batch-norms, and whatever else modules keep in
    buffers, count each batch once. A spectral norm, which computes with what it moves, is one iteration further then.

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
    _leave_buffers(model, enable)
    for module in model.modules():
        setting: Any = getattr(module, "set_grad_checkpointing", None)
        if callable(setting):
            try:
                setting(enable)
            except AssertionError as error:  # how timm says that a model has none
                _leave_buffers(model, False)
                raise ValueError(
                    f"expected a model that can compute activations again, got {type(module).__name__} ({error}): "
                    "drop checkpoint_activations"
                ) from error
            return
    blocks = list(_blocks(model))
    if not blocks:
        _leave_buffers(model, False)
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


class _Again:
    """The hooks of a module whose buffers a backward that runs it again leaves as they were."""

    def __init__(self) -> None:
        self.before: list[tuple[str, Tensor, Tensor]] = []

    def remember(self, module: nn.Module, _: Any) -> None:
        if not torch.compiler.is_compiling() and module.training and in_backward():
            held = buffers_of(module).items()
            self.before = [(name, buffer, buffer.clone()) for name, buffer in held if buffer is not None]

    def restore(self, module: nn.Module, _: Any, __: Any) -> None:
        for name, buffer, value in self.before:
            buffers_of(module)[name] = buffer
            buffer.data.copy_(value)  # no change that autograd would see
        self.before = []


def _leave_buffers(model: nn.Module, enable: bool) -> None:
    for module in model.modules():
        for hooks, take in ((pre_hooks, take_pre_hook), (forward_hooks, take_forward_hook)):
            for key, hook in list(hooks(module).items()):
                if isinstance(getattr(hook, "__self__", None), _Again):
                    take(module, key)
        if enable and buffers_of(module):
            again = _Again()
            module.register_forward_pre_hook(again.remember, prepend=True)
            # also where what was missing is there, and the rest of the block is left out
            module.register_forward_hook(again.restore, always_call=True)
