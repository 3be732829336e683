"""The graph that a file holds: captured by torch.export, and freed of our ops."""

from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from .. import ops
from ..fusion.fuse import CAPTURING, FusedModel
from ..patching.hooks import is_patched, shift_hooks
from ..patching.keeping import check_whole
from ..streaming.step import StreamStep
from ..streaming.stream import Streaming
from ..torch_private import is_compiled
from ..video.classifier import VideoClassifier
from .interface import Interface
from .padding import whole_number_padding

__all__ = ["captured", "check_exportable", "forms_without_kernel", "of_kernels", "ops_of_ours", "portable"]


def check_exportable(model: Any) -> None:
    """Raise unless this is a model of ours that can be captured now.

    Raises:
        TypeError: neither a module nor a stream.
        RuntimeError: not patched, in training mode, compiled, inside `shift_disabled` or `packed_clips`, or autocast.
        ValueError: a stream that means more than its step.
    """
    if isinstance(model, Streaming):
        if model.consensus is not None or model.every != 1:
            raise ValueError(
                f"expected a stream that computes each frame by itself, got consensus={model.consensus} and "
                f"every={model.every}, which a file of one frame does not hold: pass stream.step, and average there"
            )
        model = model.step
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a patched or fused model, a VideoClassifier or a Streaming, got {type(model).__name__}"
        )
    if isinstance(model, StreamStep):  # a step has a mode of its own, which means nothing
        model = model.model
    if any(map(is_compiled, model.modules())):
        raise RuntimeError(
            "expected a model that is not compiled, got a compiled one. Pass the model that was compiled."
        )
    if any(module.training for module in model.modules()):
        raise RuntimeError(
            f"expected a model in eval mode, got {type(model).__name__} in training mode. Call model.eval() first."
        )
    if any(map(torch.is_autocast_enabled, {parameter.device.type for parameter in model.parameters()})):
        raise RuntimeError(
            "expected no autocast around export, got it enabled. Give the model its dtype instead: "
            "model.to(torch.bfloat16)."
        )
    if not is_patched(model):
        if not isinstance(model, (FusedModel, VideoClassifier)):
            shift_hooks(model)  # says to patch
        return
    check_whole(model)
    hooks = shift_hooks(model)
    if not all(hook.enabled for hook in hooks) or any(hook.boundaries is not None for hook in hooks):
        raise RuntimeError(
            "expected a model whose shift is on, of clips of one length, got one inside tsm_triton.shift_disabled "
            "or packed_clips. Call export outside of it."
        )


def captured(interface: Interface, module: nn.Module | None = None) -> ExportedProgram:
    """The interface's module, or one that stands for it, as `torch.export` holds it.

    Raises:
        RuntimeError: it cannot be captured for the sizes that shall be free.
    """
    shapes = interface.dynamic_shapes
    if module is not None:  # a graph, whose arguments are flat
        shapes = tuple(d for each in shapes for d in (each if isinstance(each, tuple) else (each,)))
    wanted = "; ".join(f"{name} [{', '.join(map(str, axes))}]" for name, axes in interface.axes.items())
    try:
        with CAPTURING, whole_number_padding(), torch.inference_mode(False), torch.no_grad():
            return torch.export.export(
                interface.module if module is None else module,
                tuple(interface.inputs.values()),
                dynamic_shapes=shapes,
                strict=False,
            )
    except Exception as error:
        raise RuntimeError(
            f"expected a model that torch.export captures for {wanted}, got {type(error).__name__} for "
            f"{type(interface.module).__name__}. Pass example_input if its input is of another size, leave "
            "dynamic_size out, or pass the patched model of frames, whose clip length is fixed."
        ) from error


def portable(program: ExportedProgram) -> ExportedProgram:
    """The same in torch's own operators.

    Raises:
        RuntimeError: an op of ours stays, inside of a region of control flow, say.
    """
    program = program.run_decompositions({**ops.ATEN_FORMS})
    left = ops_of_ours(program)
    if left:
        raise RuntimeError(
            f"expected a graph of torch's own operators, got {', '.join(sorted(left))} left in it. Pass native=True "
            "to write a .pt2 that runs where tsm_triton is installed."
        )
    return program


def forms_without_kernel() -> dict[Any, Any]:
    """The ops that no kernel of a package serves, as torch's own operators."""
    return {op: form for op, form in ops.ATEN_FORMS.items() if op not in ops.KERNEL_FORMS}


def of_kernels(program: ExportedProgram) -> ExportedProgram:
    """The same with those of our ops alone that become kernels of a package for a GPU.

    Raises:
        ValueError: there is none, as in a model that is not fused.
    """
    program = program.run_decompositions(forms_without_kernel())
    kernels = {str(op) for op in ops.KERNEL_FORMS}
    left = ops_of_ours(program)
    if not left:
        raise ValueError(
            "expected a fused model with native=True, got one whose shift torch's compiler joins with what stands "
            "around it: pass tsm_triton.fuse(model), or leave native out"
        )
    if left - kernels:
        raise RuntimeError(
            f"expected a graph of kernels and torch's own operators, got {', '.join(sorted(left - kernels))} left in "
            "it: leave native out"
        )
    return program


def ops_of_ours(program: ExportedProgram) -> set[str]:
    """The names of the registered ops that a program calls."""
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, GraphModule)]
    called = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"}
    return {name for name in called if name.startswith(f"{ops.NAMESPACE}.")}
