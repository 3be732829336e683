"""Every name of Triton that is used here and that its documentation does not promise, and what for.

All were seen the same in Triton 3.6 and 3.9. The tests named here are those of `tests/test_torch_private.py`.
"""

from typing import Any

# What `triton.jit` makes where it does not make a kernel for the interpreter (test_a_kernel_of_the_interpreter_shows).
from triton.runtime.jit import JITFunction

# Boxes that the copy engine reads and writes (test_a_tensor_is_described_as_boxes).
from triton.tools.tensor_descriptor import TensorDescriptor

__all__ = ["TensorDescriptor", "interpreter_builder", "is_interpreted", "launcher"]


def is_interpreted(kernel: Any) -> bool:
    """Whether `triton.jit` made a kernel for the interpreter."""
    return not isinstance(kernel, JITFunction)


def launcher(compiled: Any, grid: tuple[int, int, int]) -> Any:
    """What launches a kernel again, past the look-up of its variant (test_a_compiled_kernel_can_be_launched_alone).

    `compiled` is what a launch returned: None in the interpreter.
    """
    return compiled[grid]


def interpreter_builder() -> Any:
    """What the interpreter loads and stores with (test_the_interpreter_can_be_watched)."""
    from triton.runtime.interpreter import InterpreterBuilder

    return InterpreterBuilder
