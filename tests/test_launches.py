"""What Inductor is given for an op on a GPU, and the code that it writes of it, on a machine without one."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Interpreter
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from triton.tools.tensor_descriptor import TensorDescriptor

from tsm_triton import ops
from tsm_triton.kernels import device as devices
from tsm_triton.kernels import launch
from tsm_triton.ops import declare
from tsm_triton.ops.inductor import INDUCTOR_FORMS, KERNEL_FORMS
from tsm_triton.ops.lowering import launches
from tsm_triton.testing import assert_close
from tsm_triton.torch_private import kernel_side_table, triton_kernel_wrapper_mutation

T = 4
SHIFT = (T, 2, 2, False)
ROOT = Path(__file__).parent.parent


def normal(*shape: int, dtype: torch.dtype = torch.float32, lie: str = "channels_last") -> Tensor:
    x = torch.randn(shape).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if lie == "channels_last" and x.dim() == 4 else x


def halves(*tensors: Tensor) -> list[Tensor]:
    return [x.half() for x in tensors]


def calls(clips: int) -> dict[str, tuple[Any, ...]]:
    """A call of each op that Inductor launches the kernel of, its frames `clips` times T."""
    torch.manual_seed(clips)
    x, branch, grad = (normal(clips * T, 8, 5, 3) for _ in range(3))
    identity, cache = normal(clips * T, 6, 5, 3), normal(clips * T, 2, 5, 3)
    scale, bias = normal(8), normal(8)
    weight, image = normal(6, 8) / 3, normal(clips * T, 3, 9, 9)
    deep = halves(normal(clips * T, 256, 8, 8), normal(128, 256) / 16, normal(128))
    maps = normal(clips * T, 128, 8, 8)
    thin = (*halves(maps, normal(128, 128) / 11), None, *halves(maps.flip(0)))
    return {
        "residual_shift": (branch, scale, bias, x, *SHIFT, "silu"),
        "residual_shift of contiguous maps": (
            branch.contiguous(),
            None,
            None,
            x.contiguous(),
            *SHIFT,
            "relu",
        ),
        "residual_shift_backward": (grad, branch, None, x, scale, bias, branch, *SHIFT, "silu"),
        "residual_shift_backward of one gradient": (None, grad, x, None, None, None, None, *SHIFT, "relu"),
        "shift_conv1x1": (x, weight, bias[:6], identity, *SHIFT, "relu6"),
        "shift_conv1x1 of the copy engine": (*deep, None, T, 32, 32, True, "relu"),
        "shift_conv1x1 of the copy engine with a sum": (*thin, 1, 0, 0, False, "none"),
        "shift_step_conv1x1": (x, cache, weight, None, identity, "hardswish"),
        "depthwise_convolution": (x, normal(8, 1, 3, 3), bias, [2, 2], [1, 1], [1, 1], "relu"),
        "stem_convolution": (image, normal(8, 3, 3, 3) / 5, bias, [2, 2], [1, 1], "relu"),
    }


NAMES = list(calls(1))
EVERY = pytest.mark.parametrize("name", NAMES)


def op_of(name: str) -> Any:
    return getattr(ops, name.partition(" ")[0])


def test_each_op_that_inductor_launches_is_tested():
    launched = {name for name, forms in INDUCTOR_FORMS.items() if forms["cuda"] == "kernel"}
    assert launched == {name.partition(" ")[0] for name in NAMES}


def fakes_of(arguments: Sequence[Any], clips: int) -> list[Any]:
    """The arguments as a compiler has them for any number of frames, CUDA tensors without memory."""
    symbols = ShapeEnv()
    source = ConstantSource("frames")
    symbol = symbols.create_symbol(clips * T, source, dynamic_dim=DimDynamic.DYNAMIC)
    frames = symbols.create_symintnode(symbol, hint=clips * T, source=source)
    assert frames % T == 0  # as the op's check has seen

    def fake(x: Tensor) -> Tensor:
        shape = [frames, *x.shape[1:]] if x.dim() == 4 and len(x) == clips * T else x.shape
        return torch.empty_strided(shape, x.stride(), dtype=x.dtype, device="cuda")

    with FakeTensorMode(shape_env=symbols):
        return [fake(value) if isinstance(value, Tensor) else value for value in arguments]


class Interpreted(Interpreter):
    """A graph of launches on a CPU, its kernels in Triton's interpreter."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is not triton_kernel_wrapper_mutation:
            return super().call_function(
                target, args, {**kwargs, "device": "cpu"} if "device" in kwargs else kwargs
            )
        of_table: Any = kernel_side_table.get_kernel(kwargs["kernel_idx"])
        kernel, ((constants, *_), *_) = of_table
        values = {**kwargs["kwargs"], **kernel_side_table.get_constant_args(kwargs["constant_args_idx"])}
        for name, (_, (block,)) in kwargs["tma_descriptor_metadata"].items():
            values[name] = TensorDescriptor.from_tensor(values[name], list(block))
        kernel[kwargs["grid"][0]](**values, **dict(constants))
        return None


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`launches` of a call, on a GPU that has a copy engine where the name says so, with kernels to interpret."""

    def of(name: str, arguments: Sequence[Any], clips: int) -> GraphModule | None:
        engine = "copy engine" in name
        monkeypatch.setattr(devices, "_capability", lambda device: (9 if engine else 8, 0))
        for module in ("shift_conv1x1", "stem"):
            path = f"tsm_triton.kernels.{module}.multiprocessors"
            monkeypatch.setattr(path, lambda device: 2)
        monkeypatch.setattr(launch, "is_interpreted", lambda kernel: False)
        monkeypatch.setattr(launch, "_tuned", lambda kernel, configs: (kernel, configs))
        with torch.no_grad():
            return launches(KERNEL_FORMS[op_of(name)], fakes_of(arguments, clips))

    return of


@EVERY
def test_what_inductor_is_given_is_the_op_for_any_number_of_clips(name, traced):
    graph = traced(name, calls(3)[name], 3)
    assert graph is not None
    table: Any = kernel_side_table
    kernels = [
        table.get_kernel(node.kwargs["kernel_idx"])[0].fn.__name__
        for node in graph.graph.nodes
        if node.target is triton_kernel_wrapper_mutation
    ]
    assert kernels == [KERNELS[name]]
    for clips in (1, 2, 3):
        arguments = calls(clips)[name]
        found = Interpreted(graph).run(*(value for value in arguments if isinstance(value, Tensor)))
        expected = op_of(name)(*arguments)
        for actual, wanted in zip(listed(found), listed(expected), strict=True):
            assert actual.stride() == wanted.stride()
            assert_close(actual, wanted)


KERNELS = {
    "residual_shift": "_residual_shift_kernel",
    "residual_shift of contiguous maps": "_residual_shift_kernel",
    "residual_shift_backward": "_residual_shift_backward_kernel",
    "residual_shift_backward of one gradient": "_residual_shift_backward_kernel",
    "shift_conv1x1": "_shift_conv1x1_kernel",
    "shift_conv1x1 of the copy engine": "_shift_conv1x1_tma_kernel",
    "shift_conv1x1 of the copy engine with a sum": "_shift_conv1x1_tma_kernel",
    "shift_step_conv1x1": "_shift_conv1x1_kernel",
    "depthwise_convolution": "_depthwise_kernel",
    "stem_convolution": "_stem_kernel",
}


def listed(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Inductor writes for a GPU, out of a process that holds no kernel of the interpreter's."""
    path = tmp_path_factory.mktemp("code") / "code.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.gpu_code", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def launched(code: str) -> Counter[str]:
    """How often the code launches each kernel, those of Inductor's own by their kind."""
    names = re.findall(r"(\w+)\.run\(", code)
    return Counter("inductor" if name.startswith("triton_") else re.sub(r"_\d+$", "", name) for name in names)


def through_python(code: str) -> list[str]:
    return re.findall(r"^(?!\s*#).*= (torch\.ops\.tsm_triton\.\w+)\.default\(", code, re.MULTILINE)


# what Inductor's own kernels are needed for: weights in the order that a kernel reads them in
ARRANGED = {"depthwise_convolution", "stem_convolution"}


@EVERY
def test_inductor_launches_the_kernel_itself_and_copies_no_map(name, code):
    written = code["calls"][name]
    assert through_python(written) == []
    assert launched(written) == Counter([KERNELS[name], *["inductor"] * (name in ARRANGED)])


def test_inductor_chooses_among_few_tiles(code):
    (configs,) = re.findall(r"configs=(\[.*\]),\n", code["calls"]["shift_conv1x1"])
    assert 1 < configs.count("BLOCK_M") <= 3


def test_a_fused_resnet_calls_its_kernels_without_python(code):
    written = code["fused"]["resnet"]
    found = launched(written)
    assert (found["_stem_kernel"], found["_shift_conv1x1_kernel"], found["_residual_shift_kernel"]) == (
        1,
        4,
        1,
    )
    assert set(through_python(written)) <= {"torch.ops.tsm_triton.convolution"}


def test_a_fused_mobilenet_calls_its_kernels_without_python(code):
    written = code["fused"]["mobilenet"]
    found = launched(written)
    assert (found["_stem_kernel"], found["_depthwise_kernel"]) == (1, 3)
    assert found["_shift_conv1x1_kernel"] == 6
    assert through_python(written) == []


def test_a_sum_and_its_gradient_are_launched_without_python(code):
    found = launched(code["training"])
    assert (found["_residual_shift_kernel"], found["_residual_shift_backward_kernel"]) == (1, 1)
    assert through_python(code["training"]) == []


@pytest.mark.parametrize("name", ["a free width", "float64", "an odd address"])
def test_what_no_kernel_serves_stays_a_call_of_the_op(name, code):
    written = code["not served"][name]
    assert len(through_python(written)) == 1
    assert not any(name.endswith("_kernel") for name in launched(written))


def test_a_package_launches_its_kernels_and_calls_no_op(code):
    """Nor Python: an op would be called through the package's proxy executor."""
    packages = code["packages"]
    if not packages:
        pytest.skip("this torch runs what AOTInductor writes while it writes it, which needs a GPU")
    found = {
        name: Counter(re.findall(r"^ *call_(\w+_kernel)_\d+\(", each, re.MULTILINE))
        for name, each in packages.items()
    }
    assert found["block"] == {"_shift_conv1x1_kernel": 1, "_depthwise_kernel": 1}
    assert found["a free width"] == {}
    assert not [name for name, each in packages.items() if "proxy_executor_call" in each]


def test_packed_clips_are_shifted_by_inductors_own_code(code):
    assert through_python(code["packed"]) == []
    assert launched(code["packed"]) == {"inductor": 1}


def test_a_kernel_whose_writes_inductor_does_not_see_is_never_left_out(code):
    # torch 2.11 takes all tensors for written where it cannot read a kernel, later ones none
    refused = "expected torch.compile to see that the kernel of tsm_triton::shift_conv1x1 writes"
    assert refused in code["unseen"] or launched(code["unseen"])["_shift_conv1x1_tma_kernel"] == 1


def test_what_was_compiled_of_another_kernel_is_not_taken_from_a_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(declare, "__file__", str(tmp_path / "ops" / "declare.py"))
    digests = {declare._sources()}  # of an archive, which has no files
    for folder in ("kernels", "ops"):
        (tmp_path / folder).mkdir()
        for source in ("a = 1", "a = 2"):
            (tmp_path / folder / "shift.py").write_text(source)
            digests.add(declare._sources())
    assert len(digests) == 5
