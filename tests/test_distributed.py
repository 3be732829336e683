"""A patched model in DDP and FSDP2: two processes compute the gradients that one does."""

import os
import socket

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

import tsm_triton

T = 4


def build() -> nn.Module:
    torch.manual_seed(0)
    # eval: batch statistics differ between one process and two
    return tsm_triton.patch(timm.create_model("test_resnet", num_classes=5).eval(), T)


def clips() -> torch.Tensor:
    return torch.randn(2 * T, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, frames: torch.Tensor) -> dict[str, torch.Tensor]:
    # the mean over processes of each one's mean is the mean over all frames
    model(frames).square().mean().backward()
    found = {}
    for name, parameter in model.named_parameters():
        if (grad := parameter.grad) is not None:
            found[name.removeprefix("module.")] = grad.full_tensor() if isinstance(grad, DTensor) else grad
    return found


def worker(rank: int, port: int, wrapper: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        model = build()
        expected = gradients(build(), clips())
        if wrapper == "ddp":
            model = nn.parallel.DistributedDataParallel(model)
        else:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh("cpu", (2,))
            for site in tsm_triton.find_sites(model):
                fully_shard(model.get_submodule(site.name), mesh=mesh)
            fully_shard(model, mesh=mesh)
        assert tsm_triton.is_patched(model)
        actual = gradients(model, clips()[rank * T : (rank + 1) * T])
        assert actual.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name], msg=lambda m, name=name: f"{name}: {m}")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_two_processes_compute_the_gradients_of_one(wrapper):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(worker, args=(port, wrapper), nprocs=2)
