"""Where a training runs: accelerate's choice of device, precision and processes, as torchrun started them."""

import os
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, broadcast
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from .settings import Settings

__all__ = ["accelerator_for", "any_process", "gathered_state", "share_buffers"]


def accelerator_for(settings: Settings, device: torch.device | None = None) -> Accelerator:
    """accelerate, set up for these settings.

    Args:
        settings: precision, accumulation and sharding.
        device: of this process; None for what accelerate finds, a GPU for each process of a machine that has some.

    Raises:
        ValueError: settings that need what is not there.
    """
    cpu = device is not None and device.type == "cpu"
    if device is not None and device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    # accelerate holds the settings of the first one in a process for all others
    AcceleratorState._reset_state()
    GradientState._reset_state()
    if (
        device is not None
        and PartialState._shared_state
        and str(PartialState().device).partition(":")[0] != device.type
    ):
        PartialState._reset_state()
    if settings.fsdp and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise ValueError(
            "expected several processes to shard weights over, got 1: start with torchrun, or drop fsdp"
        )
    plugin = None
    if settings.fsdp:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="size_based_wrap",
            min_num_params=100_000,
            cpu_ram_efficient_loading=False,
            state_dict_type="SHARDED_STATE_DICT",
        )
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=settings.precision,
        # by a plugin, which no ACCELERATE_GRADIENT_ACCUMULATION_STEPS of the environment overrules
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=settings.accumulate),
        fsdp_plugin=plugin,
    )
    if plugin is not None and accelerator.device.type == "cpu":
        # accelerate shards over GPUs alone; over CPUs, where it is tested, it does so when it is told that it does
        AcceleratorState._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if settings.sync_bn and accelerator.device.type == "cpu":
        raise ValueError(
            "expected GPUs for batch-norms that are synchronised, got CPUs: drop sync_bn, or freeze them"
        )
    return accelerator


def gathered_state(accelerator: Accelerator, model: nn.Module) -> dict[str, Any] | None:
    """The whole state dict of a sharded model on the main process; None of one that is whole on each."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return None
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


@torch.no_grad()
def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Give every process the buffers of the main one, which are kept; every process must call it.

    As DDP does before a forward, for models that are not inside of it: averaged ones, and sharded ones.
    """
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer.contiguous()))  # pyright: ignore[reportArgumentType]


def any_process(accelerator: Accelerator, asked: bool) -> bool:
    """Whether any process was asked: all of them then end at the same step."""
    if accelerator.num_processes == 1:
        return asked
    if asked:
        accelerator.set_trigger()
    return accelerator.check_trigger()
