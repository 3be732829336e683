"""One frame through a causally patched model, as a function of the frame and of explicit cache tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..arguments import check_frames
from ..functional import fold_counts
from ..patching.hooks import check_no_clip_layers, shift_hooks, shifts_in
from ..patching.keeping import Links, check_whole
from ..patching.shift_hook import ShiftHook
from ..torch_private import COMPILED, BatchNorm, modules_of
from .state import check_caches

__all__ = ["StreamStep"]


class StreamStep(nn.Module):
    """One frame of B independent streams: `logits, state = step(frame, state)`.

    The state is a flat list of tensors, one a shifted site: the first `fold` channels of what entered the
    site at the frame before, zero at a stream's start. Any sequence of them is taken, a `StreamState` too.
    Nothing is kept between calls: the state that comes back is the caller's, fresh tensors, and the one passed
    in is not written. The module can be compiled with `fullgraph=True` and exported, and is differentiable.

    While a call runs, the hooks of the model hold its caches, for its thread alone: others may call the model,
    and this step, side by side.

    Args:
        model: a model patched with `direction="causal"`.
        features: return `(logits, features)` in place of the logits, of a timm model: the features are what
            its `forward_features` gives, the last maps or tokens before the pooling.

    Attributes:
        names: of the sites, in the order of the state.

    Shapes:
        frame `[B, 3, H, W]`; logits, or whatever the model returns, with B rows. A cache has the shape of the
        site's input with `fold` channels: k rows a stream where the model splits a frame in k windows.

    Raises:
        RuntimeError: the model is not patched, is patched bidirectionally, or is in training mode, as a whole or
            a batch-norm of it; a shifted module that runs more than once a frame, or is not shifted any more.
        TypeError: `features` of a model without `forward_features` and `forward_head`.
        ValueError: a state of another model, batch, frame size, dtype or device; a model that returns other rows
            than those of the streams, as a VideoClassifier does.

    Example:
        >>> import timm, tsm_triton
        >>> model = tsm_triton.patch(timm.create_model("resnet18", num_classes=5), direction="causal")
        >>> step = StreamStep(model.eval())
        >>> state = step.init_state((2, 3, 64, 64))
        >>> for frame in torch.randn(3, 2, 3, 64, 64):
        ...     logits, state = step(frame, state)
        >>> logits.shape, len(state), state[0].shape
        (torch.Size([2, 5]), 8, torch.Size([2, 8, 16, 16]))

    Source: arXiv 1811.08383, section 4.3, the online model.
    """

    # whether `run` is faster with `into`: a graph makes new caches of its own, and would copy them there
    writes_into = True

    def __init__(self, model: nn.Module, *, features: bool = False) -> None:
        super().__init__()
        shift_hooks(model)
        check_whole(model)
        check_no_clip_layers(model, "Streaming")
        if features and not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
            raise TypeError(
                f"features=True: expected a timm model, with forward_features and forward_head, got "
                f"{type(model).__name__}. Stream a module whose forward returns both."
            )
        self.model = model
        self.training = model.training  # torch.onnx.export puts its module back in the mode that this says
        self.features = features
        self._find_norms()
        self.names: list[str] = []
        self.hooks: list[ShiftHook] = []
        for name, hook in shifts_in(model):
            # as in the model that torch.compile wraps, so that states can be exchanged
            self.names.append(name.replace(f"{COMPILED}.", ""))
            self.hooks.append(hook)
        for name, hook in zip(self.names, self.hooks, strict=True):
            if hook.direction != "causal":
                raise RuntimeError(
                    f"expected a model patched with direction='causal', got {hook.direction!r} at {name!r}. "
                    "It reads the next frame, which a stream has not seen yet, and its weights rely on it: "
                    "unpatch the model, patch it with direction='causal', and train it so."
                )

    def _find_norms(self) -> None:
        """Note the batch-norms, and where all modules are: one that is replaced may bring others along."""
        found = [
            (children, name, child)
            for module in self.model.modules()
            for children in (modules_of(module),)
            for name, child in children.items()
        ]
        self.links = Links(*zip(*found, strict=True)) if found else Links((), (), ())
        self.norms = [module for module in self.model.modules() if isinstance(module, BatchNorm)]

    @property
    def device(self) -> torch.device:
        """Where frames are taken."""
        return next(self.model.parameters()).device

    def forward(self, frame: Tensor, state: Sequence[Tensor]) -> tuple[Any, list[Tensor]]:
        self.check(frame, state)
        return self.run(frame, state)

    @torch.no_grad()
    def init_state(self, frame_or_shape: Tensor | Sequence[int]) -> list[Tensor]:
        """The state of streams that have seen nothing: zeros, in the dtypes and layouts the sites will have.

        Runs the model once, to see what enters each site.

        Args:
            frame_or_shape: a frame like those to come, or its shape `(B, 3, H, W)`, where frames come in the
                dtype and on the device of the model's parameters.
        """
        frame = frame_or_shape
        if not isinstance(frame, Tensor):
            parameter = next(self.model.parameters())
            frame = torch.zeros(tuple(frame), dtype=parameter.dtype, device=parameter.device)
        self.check(frame, None)
        probes = [_Probe(hook) for hook in self.hooks]
        self._check_rows(self._call(frame, probes), len(frame))
        # a site that this model never runs holds nothing
        state = [frame.new_zeros(0) if probe.cache is None else probe.cache for probe in probes]
        if not any(cache.numel() for cache in state):
            raise RuntimeError(
                "expected the model to run a shifted module, got none: it was unpatched, or the "
                "shift is disabled. Call step outside of tsm_triton.shift_disabled, or patch the model anew."
            )
        return state

    def run(
        self, frame: Tensor, caches: Sequence[Tensor], into: Sequence[Tensor] | None = None
    ) -> tuple[Any, list[Tensor]]:
        """`forward` without its checks, where the caller may own the new caches.

        Args:
            caches: read, and never written.
            into: tensors like the caches, other than they, for the new ones; half written after an error.

        Returns:
            The output, and the new caches: those of `into`, or fresh ones without it. A site that does not
            run (`shift_disabled`) gives its old cache back.
        """
        targets = [None] * len(caches) if into is None else into
        exchanges = [
            _Exchange(name, hook, cache, target)
            for name, hook, cache, target in zip(self.names, self.hooks, caches, targets, strict=True)
        ]
        output = self._call(frame, exchanges)
        for site, hook in zip(exchanges, self.hooks, strict=True):
            if site.kept is None and site.cache.numel() and hook.enabled:
                raise RuntimeError(
                    f"expected the model to run {site.name!r} with its shift, got a frame without it: the "
                    "model was unpatched, or patched anew. Make a new stream of it."
                )
        return output, [site.cache if site.kept is None else site.kept for site in exchanges]

    def _call(self, frame: Tensor, steps: "Sequence[_Probe] | Sequence[_Exchange]") -> Any:
        try:
            for hook, step in zip(self.hooks, steps, strict=True):
                hook.step = step
            model: Any = self.model
            if not self.features:
                return model(frame)
            features = model.forward_features(frame)
            return model.forward_head(features), features
        finally:
            for hook in self.hooks:
                hook.step = None

    def _check_rows(self, output: Any, streams: int) -> None:
        """Raise where a model mixes the streams, as one does that takes them for the frames of clips."""
        first = output[0] if self.features else output
        maps = list(first.values()) if isinstance(first, dict) else first
        # of a tuple nobody knows what is a row
        for each in maps if isinstance(maps, list) else [maps]:
            if isinstance(each, Tensor) and (each.dim() == 0 or each.shape[0] != streams):
                raise ValueError(
                    f"expected a model that returns a row for each of {streams} streams, got shape "
                    f"{tuple(each.shape)} from {type(self.model).__name__}: stream the network of frames inside it, a "
                    "VideoClassifier's or VideoFeatures' .model"
                )

    def check(self, frame: Tensor, state: Sequence[Tensor] | None) -> None:
        """Raise unless this frame, and state, can be run now."""
        if not isinstance(frame, Tensor):
            raise TypeError(
                f"frame must be a torch.Tensor [B, 3, H, W], got {type(frame).__name__}. Call torch.from_numpy on "
                "an array, and put the channels first."
            )
        if frame.dim() != 4 or frame.shape[0] == 0:
            raise ValueError(
                "frame must have shape [B, 3, H, W], one frame of each of B streams, "
                f"got {tuple(frame.shape)}. Call frame.unsqueeze(0) for a single stream."
            )
        check_frames(frame, self.model, "frame")
        if self.model.training:
            raise RuntimeError(
                "expected a model in evaluation mode, got one in training mode, whose batch statistics mix "
                "the streams. Call model.eval(); train on clips, with the patched model itself."
            )
        if not torch.compiler.is_compiling() and not self.links.hold():
            self._find_norms()
        for norm in self.norms:
            if norm.training or (norm.running_mean is None and frame.shape[0] > 1):
                raise RuntimeError(
                    f"expected batch-norms that use their running statistics, got a {type(norm).__name__} "
                    + ("in training mode" if norm.training else "that has none")
                    + ", which mixes the streams. Call model.eval(), or stream one at a time."
                )
        if state is not None:
            check_caches(self.names, state, frame.shape[0])

    def extra_repr(self) -> str:
        return f"{len(self.hooks)} sites"


class _Probe:
    """Stands in for the shift at one site, to see what enters it."""

    def __init__(self, hook: ShiftHook) -> None:
        self.hook = hook
        self.cache: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if x.is_quantized:
            raise TypeError(
                "expected a model whose shifted maps are floating-point, got quantised ones, which torch.ao's "
                "tensors have no cache for. Use the float model, or tsm_triton.export it with int8=clips."
            )
        dim = self.hook.channel_dim
        fold, *_ = fold_counts(x.shape[dim], self.hook.shift_div, "causal")
        with torch.inference_mode(False):  # a cache is written in any mode later on
            self.cache = torch.zeros_like(x.narrow(dim, 0, fold))
        return x


class _Exchange:
    """Stands in for the shift at one site, for one frame."""

    def __init__(self, name: str, hook: ShiftHook, cache: Tensor, into: Tensor | None) -> None:
        self.name = name
        self.hook = hook
        self.is_recorded = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        self.channel_dim = hook.channel_dim
        self.shift_div = hook.shift_div
        self.cache = cache
        self.into = into
        self.kept: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.kept is not None:
            raise RuntimeError(
                f"expected each shifted module to run once a frame, got {self.name!r} twice: one cache "
                "cannot serve both. Leave the site out with patch(..., filter_fn=...)."
            )
        rows: Any = x.shape[0]  # of a trace no number
        if self.is_recorded and type(rows) is int and rows not in self.hook.stepped_rows:
            self.hook.stepped_rows |= {rows}
        held, channels = self.cache.shape[self.channel_dim], x.shape[self.channel_dim]
        fold, *_ = fold_counts(channels, self.shift_div, "causal")
        if held != fold:
            raise ValueError(
                f"state: expected a cache of {fold} channels at {self.name!r}, {channels} // shift_div="
                f"{self.shift_div}, got {held}: it is of a model with another shift_div. Call reset(), or init_state()."
            )
        # an op that writes has no form that a compiler joins with what stands around it
        if self.into is not None and not torch.compiler.is_compiling():
            y = ops.shift_step_into(x, self.cache, self.into, self.channel_dim)
            self.kept = self.into
            return y
        step = ops.ATEN_FORMS[ops.shift_step] if ops.in_onnx_export() else ops.shift_step
        y, kept = step(x, self.cache, self.channel_dim)
        self.kept = kept if self.into is None else self.into.copy_(kept)
        return y
