"""What a machine offers a training, and tensors on it; needs nothing beside torch."""

import os

import torch
from torch import Tensor

__all__ = ["default_precision", "default_workers", "placed"]


def default_precision() -> str:
    """bfloat16 on a GPU that multiplies it, else float32."""
    return (
        "bf16"
        if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        else "no"
    )


def default_workers() -> int:
    """Processes that decode for this one: its share of the cores, less the one that it runs on, at most eight."""
    cores = os.cpu_count() or 1
    return min(8, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def placed(inputs: Tensor, device: torch.device) -> Tensor:
    """Inputs on a device; frames in channels_last on a GPU, as the kernels read them best."""
    inputs = inputs.to(device, non_blocking=True)
    if device.type == "cuda" and inputs.dim() > 4:
        frames = inputs.flatten(0, -4).contiguous(memory_format=torch.channels_last)
        return frames.unflatten(0, inputs.shape[:-3])
    return inputs
