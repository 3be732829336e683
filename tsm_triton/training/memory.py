"""Activations that are computed again in the backward instead of being kept."""

from typing import Any

from torch import nn

__all__ = ["checkpoint_activations"]


def checkpoint_activations(model: nn.Module) -> None:
    """Let a timm model, in whatever wrapper, keep the inputs of its blocks alone.

    Raises:
        ValueError: a model that has no such setting.

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
                setting(True)
            except AssertionError as error:  # how timm says that a model has none
                raise ValueError(
                    f"expected a model that can compute activations again, got {type(module).__name__} ({error}): "
                    "drop checkpoint_activations"
                ) from error
            return
    raise ValueError(
        f"expected a timm model, which can compute activations again, got {type(model).__name__}: "
        "drop checkpoint_activations, or choose a timm model"
    )
