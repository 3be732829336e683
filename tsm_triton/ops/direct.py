"""Which calls need no dispatcher: those on a plain tensor of a CPU, that nobody else would see."""

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

__all__ = ["is_plain"]


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
