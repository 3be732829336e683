"""A model's dataflow: one run of a copy on the meta device, as a graph of ATen values.

Every tensor that depends on the input is a `Value`: it knows the op that made it, the values that op read,
the weights it used and the module call it happened in. Values are numbered in the order they were made, so
parents come before children. A mutated tensor, and each tensor that shares its memory, gets a new value.
No arithmetic is done and no weight is read; the model itself is never run nor written.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..modules.clip_layer import ClipLayer
from ..torch_private import (
    CHECKPOINTED,
    TorchDispatchMode,
    buffers_of,
    forward_hooks,
    modules_of,
    parameters_of,
    pre_hooks,
    schema_of,
    storage_key,
)
from .meta import run_on_meta, tensors_in

__all__ = ["BATCH", "Call", "Trace", "Value", "copied", "input_shape", "meta_twin", "trace"]

# A prime that is no map size, window count or head count of any model: an axis it divides holds frames.
BATCH = 11
TRUSTED_HOOKS = ("torch.", "timm.", "torchvision.", __name__.removesuffix("dataflow.tracing"))


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        name: the module's name in `model.named_modules()`.
        module: the traced copy's module.
        parent: the call it happened in, None for the model's own.
        first: the value of its first argument, where that is a tensor that depends on the input.
        output: the same of what it returned.
        start, end: the values made inside are `values[start:end]`.
    """

    name: str
    module: nn.Module
    parent: "Call | None"
    first: "Value | None" = None
    output: "Value | None" = None
    start: int = 0
    end: int = 0

    def enclosing(self) -> "Iterator[Call]":
        """This call and those around it, from the inside out."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent

    def contains(self, value: "Value") -> bool:
        return self.start <= value.index < self.end


@dataclass(eq=False)
class Value:
    """A tensor that depends on the input, and the op that made it.

    Attributes:
        index: its number.
        op: the op's name without namespace and overload, such as `"convolution"`; `"alias"` where other
            memory was written through this tensor.
        parents: the values the op read.
        weights: shapes of the weights, and of what is made of weights alone, that the op read.
        arguments: the op's arguments that are no tensors, in order.
        shape: the tensor's shape.
        call: the innermost module call around the op.
        children: the values made of it.
    """

    index: int
    op: str
    parents: "tuple[Value, ...]"
    weights: tuple[tuple[int, ...], ...]
    arguments: tuple[Any, ...]
    shape: tuple[int, ...]
    call: Call
    children: "list[Value]" = field(default_factory=list)


@dataclass
class Trace:
    """The values of one run in order, the input first, and its module calls in the order they began."""

    values: list[Value]
    calls: list[Call]
    output: object


def input_shape(model: nn.Module, example_input: Tensor | None = None) -> tuple[int, ...]:
    """A shape the model takes, one row a frame: the example's, timm's `input_size`, or 3 x 224 x 224."""
    if example_input is not None:
        return (BATCH, *example_input.shape[1:])
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    get = config.get if isinstance(config, dict) else lambda key: getattr(config, key, None)
    channels, *size = get("input_size") or (3, 224, 224)
    # the model's own word on both counts more than its pretrained weights'
    built_for = None
    for holder in (model, getattr(model, "model", None)):  # timm's FeatureGetterNet holds one
        built_for = built_for or getattr(getattr(holder, "patch_embed", None), "img_size", None)
        built_for = built_for or getattr(holder, "image_size", None)
    if isinstance(built_for, int):
        built_for = (built_for, built_for)
    size = built_for or size
    first = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), channels)
    if first >= 8:  # the input has these, or they are made of it
        first = _channels_of_input(model, (BATCH, channels, *size))
    return (BATCH, first, *size)


def _channels_of_input(model: nn.Module, shape: tuple[int, ...]) -> int:
    """What a convolution wants that is called with the input itself and refuses its channels."""
    recorder = None
    try:
        recorder = _Recorder(meta_twin(model).float())
        _run(recorder, shape)
    except Exception:  # whatever else is wrong, `trace` will tell
        if recorder is None:
            return shape[1]
        call = recorder.current
        if isinstance(call.module, nn.Conv2d) and call.first is not None and call.first.op == "input":
            return call.module.in_channels
    return shape[1]


# torch.ao's layers of integers
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def trace(
    model: nn.Module, shape: tuple[int, ...], num_segments: int | None = None, shifted: bool = True
) -> Trace:
    """Run a copy of `model` on a meta tensor of `shape`, in eval mode; nothing of the model is touched.

    Args:
        model: any module that takes one tensor.
        shape: the input's shape.
        num_segments: what the shifts of a patched model take for the clip length, by default their own.
        shifted: whether the shifts of a patched model run.

    Raises:
        ValueError: the model cannot be run on the meta device; the cause is chained.
    """
    try:
        twin = meta_twin(model).float()  # one dtype: that of the input
        frames = num_segments or shape[0]  # to clip layers the batch is one clip
        for module in twin.modules():
            for hook in pre_hooks(module).values():
                if hasattr(hook, "num_segments"):
                    hook.num_segments = frames if num_segments else hook.num_segments  # type: ignore[attr-defined]
                    hook.enabled = hook.enabled and shifted  # type: ignore[attr-defined]
            if isinstance(module, ClipLayer):
                module.num_segments = frames
                frames = -(-frames // module.pools)
        recorder = _Recorder(twin)
        output = _run(recorder, shape)
    except Exception as error:
        if any(type(module).__module__.startswith(_QUANTISED) for module in model.modules()):
            raise ValueError(
                f"expected a model that runs on a meta tensor, got {type(model).__name__}, whose layers are "
                "quantised and do not. Call tsm_triton.patch before it is quantised, or with verify=False."
            ) from error
        raise ValueError(
            f"expected a model that runs on a meta tensor of shape {shape}, got {type(model).__name__}, "
            f"which raised {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}. Pass an "
            "example_input of the right shape; of a model that takes something else than one tensor (a detector) "
            "patch the backbone; what cannot be traced is shifted by hand, with tsm_triton.temporal_shift in its "
            "forward."
        ) from error
    return Trace(recorder.values, recorder.calls, output)


def _run(recorder: "_Recorder", shape: tuple[int, ...]) -> object:
    x = torch.empty(shape, dtype=torch.float32, device="meta")
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings(), recorder:
        warnings.simplefilter("ignore")
        recorder.see_input(x)
        return recorder.model(x)


def meta_twin(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose weights and buffers have shapes but no memory, nor what moves or recomputes them."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        offloading = vars(module).get("_hf_hook")
        if offloading is not None:  # accelerate's: it holds the weights, and fetches them in forward
            memo[id(offloading)] = offloading
        for parameter in parameters_of(module).values():
            if parameter is not None and id(parameter) not in memo:
                memo[id(parameter)] = nn.Parameter(_to_meta(parameter), requires_grad=False)
        for buffer in buffers_of(module).values():
            if buffer is not None:
                memo[id(buffer)] = _to_meta(buffer)
    twin = copied(model, memo)
    twin.eval()  # the result may be None: mmaction2's backbones return nothing from train
    for module in twin.modules():
        if "_hf_hook" in vars(module):
            module.forward = module._old_forward  # type: ignore[assignment]
        if CHECKPOINTED in modules_of(module):  # torch's activation checkpointing
            module.checkpoint_fn = _call  # type: ignore[assignment]
        if getattr(module, "grad_checkpointing", False):
            module.grad_checkpointing = False  # type: ignore[assignment]
        # A user's hook may write to the user's own lists.
        for hooks in (pre_hooks(module), forward_hooks(module)):
            for key, hook in list(hooks.items()):
                origin = getattr(hook, "__module__", None) or getattr(
                    getattr(hook, "func", None), "__module__", ""
                )
                if not f"{origin}.".startswith(TRUSTED_HOOKS):
                    del hooks[key]
    return twin


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, without the history of what the last forward with gradients left in attributes.

    `torch.nn.utils.weight_norm` does, and `copy.deepcopy` refuses it.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach()
    return copy.deepcopy(model, memo)


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _to_meta(tensor: Tensor) -> Tensor:
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):  # quantised or sharded: torchao's, DTensor
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor.detach(), device="meta")


class _Recorder(TorchDispatchMode):
    """Sees every op and every module call of one run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.values: list[Value] = []
        self.calls: list[Call] = []
        self.current = Call("", model, None)
        self._value: dict[int, Value] = {}
        self._weight_ids = {id(parameter) for parameter in model.parameters()}
        self._in_memory: dict[int, list[Tensor]] = {}  # storage -> the tensors that look into it
        for name, module in model.named_modules():
            # First of all hooks, so that what a shift hook does counts as done inside the call.
            module.register_forward_pre_hook(self._enter(name), prepend=True, with_kwargs=True)
            module.register_forward_hook(self._leave)

    def see_input(self, x: Tensor) -> None:
        self._remember(x)
        self._add(x, "input", (), (), ())

    def value_of(self, argument: object) -> Value | None:
        return self._value.get(id(argument)) if isinstance(argument, Tensor) else None

    def _enter(self, name: str) -> Any:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = args[0] if args else next(iter(kwargs.values()), None)
            call = Call(name, module, self.current if self.calls else None, self.value_of(first))
            call.start, call.end = len(self.values), 1 << 60
            self.calls.append(call)
            self.current = call

        return enter

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = self.current
        call.end = len(self.values)
        call.output = self.value_of(output)
        if call.parent is not None:
            self.current = call.parent

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = list(tensors_in((args, tuple(kwargs.values()))))
        if len({tensor.device.type for tensor in tensors}) > 1:
            # Constants that forward or __init__ made on the CPU meet meta tensors here.
            args, kwargs = _on_meta(args), {key: _on_meta(value) for key, value in kwargs.items()}
        out = run_on_meta(func, args, kwargs)
        self._record(func, tensors, (args, tuple(kwargs.values())), out)
        return out

    def _record(self, func: Any, tensors: list[Tensor], arguments: Any, out: Any) -> None:
        parents = tuple(dict.fromkeys(value for t in tensors if (value := self.value_of(t)) is not None))
        weights = tuple(tuple(t.shape) for t in tensors if id(t) in self._weight_ids)
        outputs = list(tensors_in(out))
        for tensor in outputs:
            self._remember(tensor)
        if not parents:
            if weights:
                self._weight_ids.update(map(id, outputs))
            return
        name = schema_of(func).name.partition("::")[2]
        plain = tuple(_plain(arguments))
        for tensor in outputs:
            self._add(tensor, name.removesuffix("_"), parents, weights, plain)
        if schema_of(func).is_mutable:
            self._mutate(func, arguments[0], outputs, name, parents, weights, plain)

    def _mutate(
        self, func: Any, args: Any, outputs: list[Tensor], name: str, parents: Any, weights: Any, plain: Any
    ) -> None:
        for argument, tensor in zip(schema_of(func).arguments, args, strict=False):
            if (
                argument.alias_info is None
                or not argument.alias_info.is_write
                or not isinstance(tensor, Tensor)
            ):
                continue
            if not any(tensor is output for output in outputs):
                self._remember(tensor)
                self._add(tensor, name.removesuffix("_"), parents, weights, plain)
            written = self._value[id(tensor)]
            for other in self._in_memory.get(storage_key(tensor), ()):
                if other is tensor:
                    continue
                if other.shape == tensor.shape and other.stride() == tensor.stride():
                    self._value[id(other)] = written
                else:
                    before = self.value_of(other)
                    self._add(other, "alias", (written,) if before is None else (before, written), (), ())

    def _remember(self, tensor: Tensor) -> None:
        known = self._in_memory.setdefault(storage_key(tensor), [])
        if not any(tensor is other for other in known):
            known.append(tensor)  # also keeps it alive, so that its id stays its own

    def _add(self, tensor: Tensor, op: str, parents: Any, weights: Any, arguments: Any) -> None:
        value = Value(len(self.values), op, parents, weights, arguments, tuple(tensor.shape), self.current)
        for parent in parents:
            parent.children.append(value)
        self.values.append(value)
        self._value[id(tensor)] = value


def _plain(tree: Any) -> Iterator[Any]:
    """The arguments that are no tensors; a list of numbers counts as one."""
    for item in tree:
        if isinstance(item, tuple) or (isinstance(item, list) and any(isinstance(i, Tensor) for i in item)):
            yield from _plain(item)
        elif not isinstance(item, Tensor):
            yield item


def _on_meta(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree if tree.is_meta else _to_meta(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)(map(_on_meta, tree))
    return tree
