"""How a kernel is launched: at once, or, called with fake tensors, into the graph of a compiler that will launch it.

A launcher that goes through here is both what eager runs and what Inductor is told: the same grid, the same arguments.
Traced, it sees sizes that may be symbols, and no addresses.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..torch_private import hint_of, without_guards
from .device import device_guard
from .layout import is_traced
from .triton_private import TensorDescriptor, is_interpreted

__all__ = ["boxes", "hint", "launch", "launch_into_graph", "smaller"]

Grid = tuple[Any, ...] | Callable[[dict[str, Any]], tuple[Any, ...]]


class Boxes(NamedTuple):
    """A tensor as the copy engine's boxes, for a graph: Triton's own record asks whether sizes are positive."""

    base: Tensor
    block: list[int]


def boxes(x: Tensor, shape: Sequence[Any], block: list[int]) -> Any:
    """`x`, dense in memory, as boxes of `block` of `shape`."""
    if not is_traced(x):
        return TensorDescriptor.from_tensor(x.view(shape), block)
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    # a view would ask whether the sizes agree, and a tensor asks whether it is contiguous, which matters to nobody here
    with without_guards(x):
        return Boxes(x.as_strided(shape, strides), block)


def hint(size: Any) -> int:
    """A size for a choice that is right for any: a symbol's is that of the example."""
    return size if isinstance(size, int) else hint_of(size)


def smaller(size: Any, other: Any) -> Any:
    """`min`, that asks no symbol which it is."""
    return (
        min(size, other) if isinstance(size, int) and isinstance(other, int) else torch.sym_min(size, other)
    )


def launch(kernel: Any, grid: Grid, x: Tensor, arguments: dict[str, Any], **options: int) -> None:
    """Launch on the device of `x`.

    Args:
        kernel: what `triton.jit` made.
        grid: as Triton takes it.
        x: one of the tensors.
        arguments: all parameters by name.
        options: `num_warps`, `num_stages`.
    """
    if is_traced(x):
        launch_into_graph(kernel, grid, arguments, [triton.Config({}, **options)])
        return
    with device_guard(x):
        kernel[grid](**arguments, **options)


def launch_into_graph(
    kernel: Any, grid: Grid, arguments: dict[str, Any], configs: Sequence[triton.Config]
) -> None:
    """Note a launch in the graph that is being traced; of several configs its compiler takes the fastest.

    What `torch.library.wrap_triton` notes, which in torch 2.11 knows no boxes of the copy engine.

    Args:
        kernel, grid, arguments: as `launch` takes them, without the parameters that the configs give.
        configs: few, each costs the first call.
    """
    from ..torch_private import kernel_side_table, triton_kernel_wrapper_mutation

    if is_interpreted(kernel):
        raise RuntimeError(
            "expected a compiled kernel in a graph, got one that was made for Triton's interpreter. Import tsm_triton "
            "without TRITON_INTERPRET=1 in the environment."
        )
    key = tuple((tuple(each.kwargs.items()), each.num_warps, each.num_stages) for each in configs)
    boxes = {name: value for name, value in arguments.items() if isinstance(value, Boxes)}
    values = {**arguments, **{name: box.base for name, box in boxes.items()}}
    absent = {name: None for name, value in values.items() if value is None}
    grids = [grid(values | each.kwargs) if callable(grid) else grid for each in configs]
    triton_kernel_wrapper_mutation(
        kernel_idx=kernel_side_table.add_kernel(_tuned(kernel, key)),
        constant_args_idx=kernel_side_table.add_constant_args(absent),
        grid=[(*each, 1, 1)[:3] for each in grids],
        tma_descriptor_metadata={name: ("stable", (box.block,)) for name, box in boxes.items()},
        kwargs={name: value for name, value in values.items() if value is not None},
    )


@cache  # torch keeps each that it ever saw, so each is made once
def _tuned(kernel: Any, configs: tuple[Any, ...]) -> Any:
    made = [triton.Config(dict(kwargs), num_warps, num_stages) for kwargs, num_warps, num_stages in configs]
    return triton.autotune(made, key=[])(kernel)
