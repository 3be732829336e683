"""Activations that are computed again in the backward instead of being kept."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
            _take_hooks(module)
            if enable:
                _put_hooks(module)
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
        return nullcontext(), _leaving_buffers(block)

    if torch.compiler.is_compiling():  # a graph computes activations again, and moves no buffer
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


class _Buffers:
    """The buffers of some modules, to be put back as they were."""

    def __init__(self) -> None:
        self.held: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]] = []

    def hold(self, *modules: nn.Module) -> None:
        self.held = [
            (buffers, name, buffer, buffer.clone())
            for buffers in map(buffers_of, modules)
            for name, buffer in buffers.items()
            if buffer is not None
        ]

    def put_back(self) -> None:
        for buffers, name, buffer, value in self.held:
            buffers[name] = buffer
            if 0 not in buffer.stride():  # expanded, it cannot have been written
                buffer.data.copy_(value)  # no change that autograd would see
        self.held = []


@contextmanager
def _leaving_buffers(module: nn.Module) -> Iterator[None]:
    buffers = _Buffers()
    buffers.hold(*module.modules())
    try:
        yield
    finally:  # torch leaves a block by an exception, as soon as all that it misses is there again
        buffers.put_back()


class _Hooks:
    """The same as hooks of one module, which timm runs again itself."""

    def __init__(self) -> None:
        self.buffers = _Buffers()

    def before(self, module: nn.Module, _: Any) -> None:
        if not torch.compiler.is_compiling() and module.training and in_backward():
            self.buffers.hold(module)

    def behind(self, *_: Any) -> None:
        if not torch.compiler.is_compiling():
            self.buffers.put_back()


def _put_hooks(model: nn.Module) -> None:
    for module in model.modules():
        if buffers_of(module):
            hooks = _Hooks()
            module.register_forward_pre_hook(hooks.before, prepend=True)
            module.register_forward_hook(hooks.behind, always_call=True)


def _take_hooks(model: nn.Module) -> None:
    for module in model.modules():
        for hooks, take in ((pre_hooks, take_pre_hook), (forward_hooks, take_forward_hook)):
            for key, hook in list(hooks(module).items()):
                if isinstance(getattr(hook, "__self__", None), _Hooks):
                    take(module, key)
