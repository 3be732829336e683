"""What Inductor writes for a GPU, on a machine without one: `python -m tests.gpu_code FILE` writes it to a file.

Inductor plans and writes its code for fake CUDA tensors; nothing is compiled or run. What it asks of a GPU on the way
is answered here as an H200 does. A process of its own, because the tests' own holds kernels for Triton's interpreter.
"""

import contextlib
import json
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch as replaced

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch._dynamo.device_interface import CudaInterface
from torch._dynamo.source import ConstantSource
from torch._inductor import config
from torch._inductor.codegen import cpp_wrapper_gpu
from torch._inductor.compile_fx import compile_fx, compile_fx_aot
from torch._inductor.graph import GraphLowering
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils import _triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

import tsm_triton
from tsm_triton import ops
from tsm_triton.exporting.capture import forms_without_kernel

from .test_fake_cuda import SIZE, on_fake
from .test_launches import SHIFT, T, calls, op_of

H200 = types.SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    L2_cache_size=60 * 2**20,
    total_memory=139 * 2**30,
)


class Driver:
    """What is asked of Triton's driver before anything is compiled."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@contextlib.contextmanager
def gpu() -> Iterator[None]:
    """A GPU that can be asked, and not used."""
    answers = {
        "get_device_properties": lambda device=None: H200,
        "get_device_capability": lambda device=None: (9, 0),
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "is_bf16_supported": lambda including_emulation=True: True,
    }
    # not of torch.cuda itself: Dynamo would ask for the state of its random numbers, Inductor make attention's patterns
    of_interface = {**answers, "is_available": lambda: True}
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(replaced.object(torch.cuda, name, answer))
        for name, answer in of_interface.items():
            stack.enter_context(replaced.object(CudaInterface, name, staticmethod(answer), create=True))
        for name in ("get_device_properties", "current_device"):
            stack.enter_context(replaced.object(CudaInterface.Worker, name, staticmethod(answers[name])))
        stack.enter_context(SEEN)
        driver.set_active(Driver())  # type: ignore[arg-type]
        yield


# nothing out of a cache, and nothing made or timed on the way
SETTINGS = config.patch(fx_graph_cache=False, joint_graph_constant_folding=False, shape_padding=False)


# that Inductor reads boxes of the copy engine in a kernel's code
SEEN = replaced.object(_triton, "has_triton_tensor_descriptor_host_tma", lambda: True)


class Written(BaseException):
    """Inductor has written its code."""


def code_of(compiling: Callable[[], Any]) -> str:
    """The code that Inductor writes, of the first graph that it is given."""
    written = []

    def write(self: GraphLowering) -> Any:
        code, *_ = self.codegen()
        written.append(code.value)
        raise Written

    with gpu(), replaced.object(GraphLowering, "compile_to_module", write), SETTINGS:
        try:
            compiling()
        except Written:
            return written[0]
    raise AssertionError("Inductor wrote no code")


@contextlib.contextmanager
def fake_mode() -> Iterator[FakeTensorMode]:
    """Tensors without memory, whose sizes may be symbols."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    with torch.no_grad(), mode:
        yield mode


def frames_of(mode: FakeTensorMode, example: int) -> Any:
    """A number of frames that is free."""
    symbols = mode.shape_env
    assert symbols is not None
    source = ConstantSource("frames")
    symbol = symbols.create_symbol(example, source, dynamic_dim=DimDynamic.DYNAMIC)
    return symbols.create_symintnode(symbol, hint=example, source=source)


def new(*shape: Any, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor of the GPU, a map in channels_last."""
    if len(shape) == 4:
        frames, channels, height, width = shape
        return torch.empty((frames, height, width, channels), dtype=dtype, device="cuda").permute(0, 3, 1, 2)
    return torch.empty(shape, dtype=dtype, device="cuda")


def graph_of_call(function: Callable[..., Any], arguments: Sequence[Any], forms: Any = None) -> GraphModule:
    """A call's graph, whose inputs are the tensors."""

    def call(*inputs: Tensor) -> Any:
        left = iter(inputs)
        return function(*(next(left) if isinstance(value, Tensor) else value for value in arguments))

    return make_fx(call, decomposition_table=forms)(*(x for x in arguments if isinstance(x, Tensor)))


def code_of_call(function: Callable[..., Any], *arguments: Any) -> str:
    """The code of a call, whose tensors are the inputs; inside of `fake_mode`."""
    graph, tensors = graph_of_call(function, arguments), [x for x in arguments if isinstance(x, Tensor)]
    with unset_fake_temporarily():  # the inputs have theirs
        return code_of(lambda: compile_fx(graph, tensors))


def code_of_package(function: Callable[..., Any], *arguments: Any) -> str:
    """The C++ of a call as AOTInductor writes it for a package, see `code_of_call`."""
    graph, written = graph_of_call(function, arguments, forms_without_kernel()), []
    tensors = [x for x in arguments if isinstance(x, Tensor)]

    def write(self: GraphLowering) -> Any:
        self.codegen()
        written.append(self.wrapper_code._aot_output)
        raise Written

    # kernels are tuned by a run of the package, not while its code is written
    at_run_time = config.patch("triton.autotune_at_compile_time", False)
    writing = replaced.object(GraphLowering, "codegen_with_cpp_wrapper", write)
    with unset_fake_temporarily(), gpu(), SETTINGS, at_run_time, writing, ops.without_python():
        try:
            compile_fx_aot(graph, tensors)
        except Written:
            return written[0]
    raise AssertionError("Inductor wrote no code")


def code_of_packages() -> dict[str, str]:
    """The C++ of an inverted residual, and of calls that no kernel serves."""

    def block(x: Tensor, expand: Tensor, depthwise: Tensor, project: Tensor, bias: Tensor) -> Tensor:
        wide = ops.shift_conv1x1(x, expand, None, None, *SHIFT, "relu6")
        wide = ops.depthwise_convolution(wide, depthwise, bias, [1, 1], [1, 1], [1, 1], "relu6")
        return ops.convolution(wide, project, None, x, [1, 1], [0, 0], [1, 1], 1, "none")

    with fake_mode() as mode:
        x, side = new(frames_of(mode, 2 * T), 16, 14, 14), frames_of(mode, 14)
        weights = [new(64, 16), new(64, 1, 3, 3), new(16, 64, 1, 1), new(64)]
        free = new(2 * T, 16, 14, side)
        return {
            "block": code_of_package(block, x, *weights),
            "a free width": code_of_package(ops.residual_shift, free, None, None, free, *SHIFT, "relu"),
        }


def code_of_op(name: str) -> str:
    """The code of a call of the tests, for any number of clips, at so many that the copy engine is worth it."""
    arguments = calls(3)[name]
    with fake_mode() as mode:
        frames = frames_of(mode, 512 * T)
        assert frames % T == 0

        def fake(x: Tensor) -> Tensor:
            shape = [frames, *x.shape[1:]] if x.dim() == 4 and len(x) == 3 * T else x.shape
            return torch.empty_strided(shape, x.stride(), dtype=x.dtype, device="cuda")

        values = [fake(value) if isinstance(value, Tensor) else value for value in arguments]
        return code_of_call(op_of(name), *values)


def code_of_fused(model: nn.Module) -> str:
    """The code of a fused model, for any number of clips."""
    tsm_triton.patch(model.eval().bfloat16(), T, verify=False)
    with fake_mode() as mode:
        fused = tsm_triton.fuse(on_fake(model, mode, "cuda"), example_input=torch.empty(T, *SIZE))
        return code_of_call(fused, new(frames_of(mode, 2 * T), *SIZE))


def few_blocks() -> nn.Module:
    return torchvision.models.MobileNetV2(5, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]])


def code_of_training() -> str:
    """The code of a residual sum and its gradients, called one after the other: autograd itself needs a GPU."""

    def step(branch: Tensor, scale: Tensor, bias: Tensor, identity: Tensor) -> Any:
        y, shifted = ops.residual_shift(branch, scale, bias, identity, *SHIFT, "silu")
        grads = (y.exp(), shifted.exp())
        return ops.residual_shift_backward(*grads, y, branch, scale, bias, identity, *SHIFT, "silu")

    with fake_mode() as mode:
        frames = frames_of(mode, 2 * T)
        maps = [new(frames, 16, 14, 14) for _ in range(2)]
        channels = [new(16, dtype=torch.float32) for _ in range(2)]
        return code_of_call(step, maps[0], *channels, maps[1])


def code_of_what_is_not_served() -> dict[str, str]:
    """The code of calls that no kernel serves, or whose memory may begin anywhere."""

    def somewhere(x: Tensor) -> Any:
        x = x[1:].view(2 * T, 14, 14, 16).permute(0, 3, 1, 2)
        return ops.residual_shift(x, None, None, x, *SHIFT, "relu")

    with fake_mode() as mode:
        side = frames_of(mode, 14)
        free, double = new(2 * T, 16, 14, side), new(2 * T, 3, 9, 9, dtype=torch.float64)
        weight, bias = (new(*shape, dtype=torch.float64) for shape in ((8, 3, 3, 3), (8,)))
        stem = (weight, bias, [2, 2], [1, 1], "relu")
        return {
            "a free width": code_of_call(ops.residual_shift, free, None, None, free, *SHIFT, "relu"),
            "float64": code_of_call(ops.stem_convolution, double, *stem),
            "an odd address": code_of_call(somewhere, new(2 * T * 16 * 14 * 14 + 1)),
        }


def code_of_packed_clips() -> str:
    with fake_mode() as mode:
        frames = frames_of(mode, 2 * T)
        boundaries = new(frames + 1, dtype=torch.bool)
        return code_of_call(ops.temporal_shift_packed, new(frames, 16, 14, 14), boundaries, 2, 2, False, 1)


def code_of_what_is_not_seen() -> str:
    """The code of a kernel that Inductor cannot read the writes of, or what is said of it."""
    unseen = replaced.object(_triton, "has_triton_tensor_descriptor_host_tma", lambda: False)
    with replaced.object(sys.modules[__name__], "SEEN", unseen):
        try:
            return code_of_op("shift_conv1x1 of the copy engine")
        except Exception as error:
            return str(error)


def written() -> dict[str, Any]:
    """All of it."""
    return {
        "calls": {name: code_of_op(name) for name in calls(1)},
        "fused": {
            "resnet": code_of_fused(timm.create_model("test_resnet", num_classes=5)),
            "mobilenet": code_of_fused(few_blocks()),
        },
        "training": code_of_training(),
        "not served": code_of_what_is_not_served(),
        "packed": code_of_packed_clips(),
        "unseen": code_of_what_is_not_seen(),
        "packages": code_of_packages()
        if hasattr(cpp_wrapper_gpu, "generate_aoti_kernel_config_header")
        else {},
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(written()))
