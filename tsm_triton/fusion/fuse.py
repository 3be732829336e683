"""An inference copy of a patched model on the fused ops."""

import copy
import pickle
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.graph import CodeGen

from .. import ops
from ..dataflow.tracing import copied, meta_twin
from ..modules.clip_layer import FixedClips
from ..patching.finding import check_model
from ..patching.hooks import check_no_clip_layers, clip_length_of, shift_hooks
from ..patching.keeping import check_whole
from ..preparation import frame_shape, preparation_of, sampling_of
from ..torch_private import (
    FakeTensor,
    FakeTensorMode,
    buffers_of,
    forget_tracer,
    forward_hooks,
    is_compiled,
    out_spec,
    parameters_of,
    pre_hooks,
)
from .aten import run_in_aten
from .folding import fold_constants
from .report import FusionReport
from .rewriting import rewrite

__all__ = ["CAPTURING", "FusedModel", "fuse"]

# Up to here cuDNN's rows are all alike: torch.export finds a guard on them on a GPU, and refuses a wider range.
# The graphs hold no guard, so they take more.
MOST_ROWS = 65535

# what reads memory by numbers, and not by an axis
_OF_STRIDES = {
    torch.ops.aten.as_strided.default,
    torch.ops.aten.as_strided_copy.default,
    torch.ops.aten.as_strided_scatter.default,
}

# torch.export holds what it does in globals
CAPTURING = threading.Lock()


class FusedModel(FixedClips, nn.Module):
    """What `fuse` returns: a model of frames, for inference, in channels_last.

    It holds no hooks, its clip length is fixed, and autograd does not reach its parameters. The graph
    may name device and dtype: give both to the model before it is fused. Autocast is refused.

    Attributes:
        num_segments: T; the frames of a batch are a multiple of it, the number of clips is free.
        input_size: [C, H, W] of a frame that it was made for. Other H and W are taken too, where the model does: the
            first frames of a new size cost a capture, once, before `torch.compile` sees them.
        report: what was fused, what was left and why.
    """

    def __init__(
        self,
        network: GraphModule,
        num_segments: int,
        input_size: tuple[int, ...],
        report: FusionReport,
        outline: "_Outline",
    ) -> None:
        super().__init__()
        self.network = network
        self.outline = outline
        # [C, H, W] -> the network's forward for it, which reads the network's own parameters
        self.forwards: dict[tuple[int, ...], Callable[..., Any]] = {}
        self.num_segments = num_segments
        self.input_size = input_size
        self.report = report
        # of the model it was made of, which the graph does not tell: how it is shifted, how frames are prepared
        self.direction = "bidirectional"
        self.pretrained_cfg: dict[str, Any] = {}
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(
                f"x must be a tensor of frames [N*T, {', '.join(map(str, self.input_size))}], got "
                f"{type(x).__name__}. Pass torch.stack(frames)."
            )
        if x.dim() != 4 or x.shape[1] != self.input_size[0]:
            raise ValueError(
                f"x must have shape [N*T, {self.input_size[0]}, H, W], got {tuple(x.shape)}. Pass clips with their "
                "frames on the first axis: video.flatten(0, 1)."
            )
        if x.shape[0] % self.num_segments:
            raise ValueError(
                f"x must hold whole clips: expected a first axis divisible by num_segments={self.num_segments}, "
                f"got {x.shape[0]} frames. Fuse again after tsm_triton.set_num_segments for another clip length."
            )
        if torch.is_autocast_enabled(x.device.type):
            raise RuntimeError(
                "expected no autocast around a fused model, got it enabled. Give the model its dtype instead: "
                "tsm_triton.fuse(model.to(torch.bfloat16))."
            )
        x = x.contiguous(memory_format=torch.channels_last)
        size = tuple(x.shape[1:])
        if ops.in_onnx_export() and size == self.input_size:
            return run_in_aten(self.network, x)
        return self.network(x) if size == self.input_size else self._forward_for(size)(self.network, x)

    def _forward_for(self, size: tuple[int, ...]) -> Callable[..., Any]:
        """The network's forward for frames of another size."""
        found = self.forwards.get(size)
        if found is not None:
            return found
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"expected a fused model that has seen frames of {list(size)}, got one of {list(self.input_size)}. "
                "Call it once with such frames before torch.compile or torch.export."
            )
        made = self.outline.captured(self.network, self.num_segments, size)
        self.forwards[size] = made
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "forwards": {}}

    def extra_repr(self) -> str:
        return f"num_segments={self.num_segments}, input_size={self.input_size}"


def fuse(model: nn.Module, *, example_input: Tensor | None = None) -> FusedModel:
    """An inference copy of a patched model, rewritten on the fused ops; the model itself stays as it is.

    Batch-norms are folded into the convolutions before them. Shifts are read by the 1x1 convolutions behind
    them at no traffic of their own, or else written by the residual sums before them; residual sums and
    activations join the 1x1 convolution whose output they take. What the graph does not show in one of these
    forms is run as it was. `fused.report` lists both. A stream is fused by `Streaming(model, fused=True)`.

    Args:
        model: a patched model in eval mode, of frames `[N*T, C, H, W]`.
        example_input: a tensor whose [C, H, W] the copy is made for, by default the model's own input size.

    Raises:
        TypeError: not a module, or a scripted one.
        TypeError, ValueError: an example_input that is no tensor of frames.
        RuntimeError: a model that is not patched, in training mode, compiled, with its shift disabled,
            inside autocast, or that `torch.export` cannot capture for any number of clips.

    Example:
        >>> import timm, torch, tsm_triton
        >>> model = tsm_triton.patch(timm.create_model("test_resnet", num_classes=5).eval(), num_segments=4)
        >>> fused = fuse(model, example_input=torch.empty(4, 3, 64, 64))
        >>> fused(torch.randn(2 * 4, 3, 64, 64)).shape
        torch.Size([8, 5])
    """
    check_fusible(model)
    if example_input is not None and not isinstance(example_input, Tensor):
        raise TypeError(
            f"example_input must be a tensor of frames [N*T, C, H, W], got {type(example_input).__name__}. Pass "
            "torch.empty(1, 3, H, W): only its size is read."
        )
    if example_input is not None and example_input.dim() != 4:
        raise ValueError(
            f"example_input must have shape [N*T, C, H, W], got {tuple(example_input.shape)}. Pass clips with "
            "their frames on the first axis: video.flatten(0, 1)."
        )
    num_segments = clip_length_of(model)
    input_size = frame_shape(model, example_input)
    outline = _Outline(_without_weights(model))
    network, report = rewritten(_captured(copied(model), num_segments, input_size))
    fused = FusedModel(network, num_segments, input_size, report, outline)
    fused.direction = shift_hooks(model)[0].direction
    fused.pretrained_cfg = _said_of_frames(model, input_size)
    return fused


def _said_of_frames(model: nn.Module, input_size: tuple[int, ...]) -> dict[str, Any]:
    """What a model says of its frames and of what it makes of them, for a copy of it for frames of this size."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    own = config if isinstance(config, Mapping) else vars(config)
    said = {key: own.get(key) for key in ("interpolation", "crop_pct")}
    labels = own.get("label_names")
    if labels is not None and len(labels) == getattr(model, "num_classes", len(labels)):
        said["label_names"] = labels  # others are of the pretrained weights, where the head was changed
    with suppress(ValueError):  # models inside that disagree: `transform_for` of the copy will ask
        prepared = preparation_of(model, size=min(input_size[1:]))
        frames = {"short_side": prepared.short_side, "mean": prepared.mean, "std": prepared.std}
        said |= {"input_size": input_size, **frames, "sampling": sampling_of(model)}
    return {key: value for key, value in said.items() if value is not None}


def _without_weights(model: nn.Module) -> nn.Module | None:
    """The model on the meta device, None where hooks of the user's own would be missing there."""
    twin = meta_twin(model)
    hooks = [sum(len(pre_hooks(m)) + len(forward_hooks(m)) for m in each.modules()) for each in (model, twin)]
    return twin if hooks[0] == hooks[1] else None


class _Outline:
    """A patched model without its weights, which a copy is captured from again for frames of another size."""

    def __init__(self, model: nn.Module | None) -> None:
        self.model = model

    def captured(self, network: GraphModule, num_segments: int, size: tuple[int, ...]) -> Callable[..., Any]:
        """The forward of `network`, which holds the weights, for frames `[C, H, W]` of this size."""
        if self.model is None:
            raise RuntimeError(
                "expected frames of the size that this fused model was made for, got "
                f"{list(size)}: its model, which has hooks of your own or could not be pickled, was not kept. "
                "Call tsm_triton.fuse(model, example_input=...) with frames of this size."
            )
        model = copy.deepcopy(self.model)
        weights: dict[str, Tensor] = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        template = next(value for value in weights.values() if value.is_floating_point())
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with torch.inference_mode(False), torch.no_grad(), mode:
            _to_fake(model, template)
            other, _ = rewritten(_captured(model, num_segments, size))
        read = {node.target for node in other.graph.find_nodes(op="get_attr")}
        values = {**dict(other.named_parameters()), **dict(other.named_buffers())}
        for name in read:
            value, known = values.get(name), weights.get(name)
            if value is None or known is None or not _is_same(value, known):
                raise RuntimeError(
                    f"expected a model of the same weights for frames of {list(size)}, got another {name!r}. Call "
                    "tsm_triton.fuse(model, example_input=...) with frames of this size."
                )
        return type(other).forward

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Outline":
        return self  # nothing ever writes it

    def __getstate__(self) -> dict[str, Any]:
        try:
            pickle.dumps(self.model)
        except Exception:  # a user's lambda, say
            return {"model": None}
        return {"model": self.model}


def _is_same(value: Tensor, known: Tensor) -> bool:
    """Whether what a capture without weights reads is what has this name in the copy that holds them."""
    if (value.shape, value.dtype) != (known.shape, known.dtype):
        return False
    # not fake: a tensor that the forward makes, maybe out of the size
    return isinstance(value, FakeTensor) or torch.equal(value.to(known.device), known)


def _to_fake(model: nn.Module, template: Tensor) -> None:
    """Give a model on the meta device fake weights, of the template's device and floats of its dtype."""

    def fake(value: Tensor) -> Tensor:
        dtype = template.dtype if value.is_floating_point() else value.dtype
        return torch.empty_strided(value.shape, value.stride(), dtype=dtype, device=template.device)

    for module in model.modules():
        for name, parameter in parameters_of(module).items():
            if parameter is not None:
                parameters_of(module)[name] = nn.Parameter(fake(parameter), requires_grad=False)
        for name, buffer in buffers_of(module).items():
            if buffer is not None:
                buffers_of(module)[name] = fake(buffer)


def rewritten(network: GraphModule) -> tuple[GraphModule, FusionReport]:
    """What `capture` returned, on the fused ops and with its batch-norms folded, and what was done to it."""
    report = rewrite(network.graph)
    fold_constants(network, report)
    # unpickling traces the code again, with this class: export's own cannot be made without a model
    forget_tracer(network.graph)
    # a new module takes over those parameters only that the graph still reads
    return GraphModule(network, network.graph, "Fused"), report


def check_fusible(model: nn.Module) -> None:
    """Raise unless this is a patched model that can be copied and captured now."""
    if isinstance(model, FusedModel):
        raise TypeError(
            "expected a patched model, got a fused copy. Pass the patched model that it was made of, here or "
            "to tsm_triton.Streaming(model, fused=True)."
        )
    check_model(model)
    if any(map(is_compiled, model.modules())):
        raise RuntimeError(
            "expected a model that is not compiled, got a compiled one. Fuse first, then torch.compile the "
            "result."
        )
    hooks = shift_hooks(model)
    check_whole(model)
    check_no_clip_layers(model, "fuse")
    if any(module.training for module in model.modules()):
        raise RuntimeError(
            f"expected a model in eval mode, got {type(model).__name__} in training mode. Call model.eval() "
            "first: fusing folds the running statistics of batch-norm."
        )
    if any(map(torch.is_autocast_enabled, {parameter.device.type for parameter in model.parameters()})):
        raise RuntimeError(
            "expected no autocast around fuse, got it enabled: the copy would hold its casts. Give the model its "
            "dtype instead: tsm_triton.fuse(model.to(torch.bfloat16)) outside of it."
        )
    if not all(hook.enabled for hook in hooks):
        raise RuntimeError(
            "expected a model whose shift is on, got one inside tsm_triton.shift_disabled. Fuse outside of "
            "it."
        )
    if any(hook.boundaries is not None for hook in hooks):
        raise RuntimeError(
            "expected clips of one length, got a model inside tsm_triton.packed_clips. Fuse outside of it."
        )


def _captured(model: nn.Module, num_segments: int, input_size: tuple[int, ...]) -> GraphModule:
    """The model's functional graph for any number of clips, in channels_last."""
    template = next(p for p in model.parameters() if p.is_floating_point())
    frames = torch.zeros(2 * num_segments, *input_size, dtype=template.dtype, device=template.device)
    frames = frames.contiguous(memory_format=torch.channels_last)
    clips = torch.export.Dim("clips", min=1, max=max(1, MOST_ROWS // num_segments))
    batch = clips if num_segments == 1 else num_segments * clips
    wanted = f"any number of clips of {num_segments} frames of {list(input_size)}"
    network = capture(model, (frames,), ({0: batch},), type(model).__name__, wanted)
    return _with_plain_signature(network)


def capture(
    module: nn.Module, inputs: tuple[Any, ...], dynamic_shapes: tuple[Any, ...], name: str, wanted: str
) -> GraphModule:
    """The functional graph of a module that may be consumed, its weights in channels_last.

    Args:
        module: a copy: its parameters are taken over.
        inputs, dynamic_shapes: as `torch.export.export` takes them.
        name: of the model, for the error.
        wanted: which inputs the graph must take, for the error.

    Raises:
        RuntimeError: `torch.export` cannot capture it so, or it counts in strides.
    """
    _to_channels_last(module.requires_grad_(False))
    try:
        with CAPTURING:
            program = torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes, strict=False)
            network: GraphModule = program.module(check_guards=False)  # type: ignore[assignment]
    except Exception as error:
        raise RuntimeError(
            f"expected a model that torch.export captures for {wanted}, got {type(error).__name__} for {name}. "
            "Pass example_input if its input is of another size; else keep the patched model, which "
            "torch.compile takes as it is."
        ) from error
    if any(node.target in _OF_STRIDES for node in network.graph.nodes):
        raise RuntimeError(
            f"expected a model whose result does not depend on how its maps lie in memory, got {name}, which calls "
            "as_strided and would read other values in channels_last. Keep the patched model, which torch.compile "
            "takes as it is, or use Tensor.unfold."
        )
    return network


def _to_channels_last(module: nn.Module) -> None:
    """`module.to(memory_format=torch.channels_last)`, for fake tensors too.

    Cloned: to `contiguous` a 1x1 weight is in every format already, and its strides tell a convolution which.
    """
    converted: dict[nn.Parameter, nn.Parameter] = {}
    for inner in module.modules():
        for name, parameter in parameters_of(inner).items():
            if parameter is None or parameter.dim() != 4:
                continue
            if parameter not in converted:
                values = parameter.detach().clone(memory_format=torch.channels_last)
                converted[parameter] = nn.Parameter(values, requires_grad=False)
            parameters_of(inner)[name] = converted[parameter]
        for name, buffer in buffers_of(inner).items():
            if buffer is not None and buffer.dim() == 4:
                buffers_of(inner)[name] = buffer.clone(memory_format=torch.channels_last)


def _with_plain_signature(network: GraphModule) -> GraphModule:
    """Without the pytree wrapping of export, where one tensor comes out."""
    nesting = out_spec(network)
    if nesting is not None and nesting.is_leaf():
        network.graph.set_codegen(CodeGen())
        (output,) = network.graph.find_nodes(op="output")
        output.args = tuple(output.args[0])
    return network
