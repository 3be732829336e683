"""An op as Inductor's own launches of its kernel: no call into Python in the code that Inductor makes.

The form of CUDA tensors is traced when Inductor comes to the op's node, with fake tensors of the sizes and strides that
the inputs have in Inductor's plan: earlier nobody knows how a map will lie in memory. What that shows, allocations,
views, copies and launches, is lowered in place of the op. A call that its kernel does not serve keeps the op, or, in
code that shall run without Python, is the op's form in torch's own operators.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import GraphModule

from ..torch_private import FakeTensor, FakeTensorMode, OpOverload, schema_of
from .direct import is_interpreting

__all__ = ["launches", "lowering", "without_python"]

_without_python = ContextVar("without_python", default=False)


@contextmanager
def without_python() -> Iterator[None]:
    """Within, what Inductor makes calls no op that has a lowering of ours: it is for files that run without Python."""
    token = _without_python.set(True)
    try:
        yield
    finally:
        _without_python.reset(token)


def lowering(
    op: OpOverload, form: Callable[..., Any], portable: Callable[..., Any], otherwise: Callable[..., Any]
) -> Callable[..., Any]:
    """Inductor's lowering of an op.

    Args:
        op: one of ours.
        form: what serves CUDA tensors.
        portable: the form of files, which calls no op of ours.
        otherwise: the lowering of calls that no kernel serves, and of other devices.
    """
    names = [argument.name for argument in schema_of(op).arguments]

    def lower(*arguments: Any, **named: Any) -> Any:
        from ..torch_private import TensorBox, V, process_subgraph_nodes

        given = {**dict(zip(names, arguments, strict=False)), **named}
        values = [given[name] for name in names]
        with V.fake_mode:
            fakes = [_fake(value) for value in values]
        graph = launches(form, fakes) if _begin_at_vectors(values) else None
        inputs = [value for value, fake in zip(values, fakes, strict=True) if _is_input(fake)]
        if graph is not None:
            results: Any = process_subgraph_nodes(graph, inputs)
            _check_written(op, [results] if isinstance(results, TensorBox) else results)
            return results
        if _without_python.get():
            return process_subgraph_nodes(_traced(portable, fakes), inputs)
        return otherwise(*arguments, **named)

    return lower


def _check_written(op: OpOverload, results: Sequence[Any]) -> None:
    """Raise where Inductor has not seen in a kernel's code that it writes a result: it would leave the kernel out."""
    from ..torch_private import ExternKernel, V

    for i, result in enumerate(results):
        if ExternKernel.realize_input(result).get_name() not in V.graph.mutated_buffers:
            raise RuntimeError(
                f"expected torch.compile to see that the kernel of {op.name()} writes its result {i}, got none that "
                f"does from torch {torch.__version__}: run the model without torch.compile, and report this"
            )


def _fake(value: Any) -> Any:
    """An argument of a lowering as a trace takes it; a map keeps the layout that it has from here on."""
    from ..torch_private import (
        ExternKernel,
        TensorBox,
        as_storage_and_layout,
        convert_to_symint,
        ir_node_to_tensor,
    )

    if not isinstance(value, TensorBox):
        is_size = not isinstance(value, (bool, int, float, str, list, tuple, type(None)))
        return convert_to_symint(value) if is_size else value
    realized = ExternKernel.realize_input(value)
    as_storage_and_layout(realized, freeze=True)
    return ir_node_to_tensor(realized)


def _begin_at_vectors(values: Sequence[Any]) -> bool:
    """Whether all maps begin where a vector may, as Inductor knows; the op's own launch looks at the addresses."""
    from ..torch_private import ExternKernel, TensorBox, V

    for value in values:
        if isinstance(value, TensorBox):
            realized = ExternKernel.realize_input(value)
            begin = realized.get_layout().offset * realized.get_dtype().itemsize
            if realized.get_name() in V.graph.unaligned_buffers:
                return False
            if not V.graph.sizevars.statically_known_multiple_of(begin, 16):
                return False
    return True


def _is_input(value: Any) -> bool:
    return isinstance(value, (Tensor, SymInt))


def launches(form: Callable[..., Any], arguments: Sequence[Any]) -> GraphModule | None:
    """The graph of what a form does for CUDA tensors, None where that is not launches of kernels alone.

    Args:
        form: what serves CUDA tensors.
        arguments: of the op, fake tensors and sizes that may be symbols.
    """
    tensors = [value for value in arguments if isinstance(value, FakeTensor)]
    sizes = [size for x in tensors for size in (*x.shape[1:], *x.stride())]
    on_gpu = all(x.device.type == "cuda" for x in tensors)
    # of the sizes, only the frames may be a symbol: the others are in a kernel's code
    if not on_gpu or any(isinstance(size, SymInt) for size in sizes) or is_interpreting():
        return None
    known = _guards(tensors[0].fake_mode)
    graph = _traced(form, arguments)
    # one that is right for some sizes alone has said so there
    return graph if _only_launches(graph) and _guards(tensors[0].fake_mode) == known else None


def _traced(form: Callable[..., Any], arguments: Sequence[Any]) -> GraphModule:
    from ..torch_private import make_fx, select_decomp_table

    def call(*inputs: Any) -> Any:
        left = iter(inputs)
        return form(*(next(left) if _is_input(value) else value for value in arguments))

    inputs = [value for value in arguments if _is_input(value)]
    with next(value.fake_mode for value in inputs if isinstance(value, FakeTensor)):
        return make_fx(call, decomposition_table=select_decomp_table())(*inputs)


def _guards(mode: FakeTensorMode) -> int:
    return 0 if mode.shape_env is None else len(mode.shape_env.guards)


def _only_launches(graph: GraphModule) -> bool:
    """Whether nothing but kernels writes, and there is one."""
    from ..torch_private import triton_kernel_wrapper_mutation

    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    writes = any(isinstance(target, OpOverload) and schema_of(target).is_mutable for target in called)
    return triton_kernel_wrapper_mutation in called and not writes
