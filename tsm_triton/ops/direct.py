"""Which calls go another way than through the dispatcher: of plain tensors on a CPU, and of ONNX's exporter."""

import functools
import os
import sys
from typing import Any

import torch
from torch import Tensor, is_grad_enabled, strided
from torch.compiler import is_dynamo_compiling

from .._ops import add_op_namespace_prefix
from ..torch_private import (
    DUAL_LEVEL,
    VARIABLES,
    count_dispatch_modes,
    count_function_modes,
    dual_numbers,
    is_tracing,
    peek_interpreter_stack,
)

__all__ = ["DECLARED", "in_onnx_export", "is_interpreting", "is_plain", "no_onnx", "writes_onnx"]

DECLARED: list[str] = []  # the names of our ops
_environment = os.environ
_INTERPRET = "TRITON_INTERPRET" if os.name == "nt" else b"TRITON_INTERPRET"  # as they hold it
_variables: Any = getattr(_environment, VARIABLES, (_INTERPRET,))


def is_plain(x: Tensor) -> bool:
    """Whether the form of a CPU can be called by itself: no gradient, transform, mode, trace or subclass is there.

    Between a network's layers, with no code in a cache, this is a tenth of a site's time: each look counts.
    """
    return (
        not is_dynamo_compiling()  # first: a compiler reads no further; others have tensors or modes of their own
        and type(x) is Tensor
        and x.is_cpu
        and x.layout is strided
        and not x.is_quantized
        and not (x.requires_grad and is_grad_enabled())
        and count_dispatch_modes() == 0
        and count_function_modes() == 0
        and peek_interpreter_stack() is None
        and dual_numbers[DUAL_LEVEL] < 0
        and not is_tracing()
        and (_INTERPRET not in _variables or not is_interpreting())
    )


def is_interpreting() -> bool:
    """Whether kernels run on tensors of a CPU, as `TRITON_INTERPRET=1` says, which may change at any time."""
    # `get` raises inside where there is no variable, which between a network's layers takes as long as all else here
    if os.environ is _environment and _INTERPRET not in _variables:
        return False
    return os.environ.get("TRITON_INTERPRET") == "1"


def in_onnx_export() -> bool:
    """Whether somebody calls `torch.onnx.export`, by whichever of its ways.

    No runtime of ONNX has our ops, and a library has no public table to put a form in: torch's own of decompositions
    would take the place of an op's fake.
    """
    if torch.compiler.is_compiling():  # while torch.export captures, too: a compiler reads no further
        return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
    if not is_tracing():
        return False
    _tell_the_tracers_exporter()
    return torch.onnx.is_in_onnx_export()


def writes_onnx() -> bool:
    """Whether `torch.onnx.export` is under way, whatever it does; asking torch alone would import it."""
    return "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


def no_onnx(name: str) -> RuntimeError:
    """What an exporter to ONNX is told of an op."""
    return RuntimeError(
        f"expected torch's own operators for ONNX, got tsm_triton.{name}: no runtime has it. Write the file with "
        "tsm_triton.export(model, to='onnx', path=...), or give torch.onnx.export what "
        "program.run_decompositions(tsm_triton.ops.ATEN_FORMS) returns."
    )


@functools.cache
def _tell_the_tracers_exporter() -> None:
    """Let what `torch.jit.trace` made, whose graph holds the ops and runs none of our Python, say the same."""

    def refusing(name: str) -> Any:
        def refuse(*_: Any) -> None:
            raise no_onnx(name)

        return refuse

    register: Any = torch.onnx.register_custom_op_symbolic  # pyright: ignore[reportPrivateImportUsage]
    for name in DECLARED:
        register(add_op_namespace_prefix(name), refusing(name), 9)
