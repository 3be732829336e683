"""Which calls go another way than through the dispatcher: of plain tensors on a CPU, and of ONNX's exporter."""

import os

import torch
from torch import Tensor

from ..torch_private import (
    DUAL_LEVEL,
    count_dispatch_modes,
    count_function_modes,
    dual_numbers,
    peek_interpreter_stack,
    tracing_state,
)

__all__ = ["in_onnx_export", "is_plain"]


def is_plain(x: Tensor) -> bool:
    """Whether the form of a CPU can be called by itself: no gradient, transform, mode, trace or subclass is there."""
    return (
        not torch.compiler.is_compiling()  # first: a compiler reads no further
        and type(x) is Tensor
        and x.is_cpu
        and x.layout is torch.strided
        and not (x.is_quantized or x.is_conj() or x.is_neg())
        and not (x.requires_grad and torch.is_grad_enabled())
        and count_dispatch_modes() == 0
        and count_function_modes() == 0
        and peek_interpreter_stack() is None
        and dual_numbers[DUAL_LEVEL] < 0
        and tracing_state() is None
        and os.environ.get("TRITON_INTERPRET") != "1"
    )


def in_onnx_export() -> bool:
    """Whether somebody calls `torch.onnx.export`, by whichever of its ways.

    No runtime of ONNX has our ops, and a library has no public table to put a form in: torch's own of decompositions
    would take the place of an op's fake.
    """
    if torch.compiler.is_compiling():  # while torch.export captures, too: a compiler reads no further
        return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
    return tracing_state() is not None and torch.onnx.is_in_onnx_export()
