"""Convolutions and products in int8, by onnxruntime's static quantisation and by torchao's PT2E.

What stands between them stays in floats: a shift moves the values that a network has there, and computes none.

Weights of ONNX and activations of PT2E take 7 of the 8 bits: x86 without VNNI adds two products in 16 bits, which 8
times 8 overflow without a word.
"""

import operator
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from ..extras import check_installed
from .capture import captured
from .description import KEY, as_text
from .interface import Interface
from .onnx import write

__all__ = ["COMPUTED", "NEEDS", "quantised", "write_int8"]

COMPUTED = ["Conv", "Gemm", "MatMul"]  # what is computed in int8
NEEDS = "torch.ao.quantization.fx._decomposed"  # registers the operators of a quantised .pt2


def write_int8(
    program: ExportedProgram,
    interface: Interface,
    description: dict[str, Any],
    path: Path,
    inputs: Iterable[tuple[Tensor, ...]],
) -> None:
    """An ONNX file whose weights are int8, a scale a channel, and whose ranges were measured on `inputs`."""
    check_installed("an int8 file", "onnx", "onnxruntime")
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from ..files import replacing

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rows: Iterator[tuple[Tensor, ...]] = iter(inputs)

        def get_next(self) -> Any:
            row = next(self.rows, None)
            return (
                None
                if row is None
                else {n: x.cpu().numpy() for n, x in zip(interface.inputs, row, strict=True)}
            )

    with TemporaryDirectory() as folder:
        plain, folded, small = (Path(folder, name) for name in ("plain.onnx", "folded.onnx", "int8.onnx"))
        write(program, interface, description, plain)
        quant_pre_process(plain, folded, skip_symbolic_shape=True)  # batch-norms go into the convolutions
        quantization.quantize_static(
            folded,
            small,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=COMPUTED,
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"ActivationSymmetric": True},  # TensorRT's parser wants zero points of zero
        )
        model = onnx.load(small)
    del model.metadata_props[:]
    model.producer_name, model.producer_version = KEY, description["versions"]["tsm_triton"]
    onnx.helper.set_model_props(model, {KEY: as_text(description)})
    with replacing(path) as temporary:
        onnx.save(model, temporary)


def quantised(
    program: ExportedProgram, interface: Interface, inputs: Iterable[tuple[Tensor, ...]]
) -> ExportedProgram:
    """A captured program with its convolutions and linear layers in int8, for Inductor on x86, by PT2E.

    Raises:
        ValueError: it has none that PT2E knows.
    """
    check_installed("an int8 file", "torchao")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torchao's, of torch's own changes
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
            X86InductorQuantizer,
            get_default_x86_inductor_quantization_config,
        )

        quantizer = X86InductorQuantizer().set_global(
            get_default_x86_inductor_quantization_config(reduce_range=True)
        )
        network: Any = program.module(check_guards=False)
        _hide_shifts(network)
        network = prepare_pt2e(network, quantizer)
        for row in inputs:
            network(*row)
        network = convert_pt2e(network)
    if not any("quantize_per_tensor" in str(node.target) for node in network.graph.nodes):
        raise ValueError(
            "expected a model whose convolutions or linear layers PT2E finds with int8, got one where it found none, "
            "which a fused one is: pass the patched model, or to='onnx'"
        )
    return captured(interface, GraphModule(network, network.graph))  # without the floats that it read before


def _hide_shifts(network: GraphModule) -> None:
    """Let a shift be part of no module: torchao takes what a module's hook computes for a second output of it."""
    for node in network.graph.nodes:
        source = node.args[0] if node.target is operator.getitem else node
        if str(getattr(source, "target", "")).startswith("tsm_triton."):
            for key in ("nn_module_stack", "torch_fn", "source_fn_stack"):
                node.meta.pop(key, None)
