"""One frame through an inference copy of a causally patched model, on the fused ops."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from .. import ops
from ..dataflow.tracing import copied
from ..fusion.aten import run_in_aten
from ..fusion.fuse import MOST_ROWS, capture, check_fusible, rewritten
from ..fusion.report import FusionReport
from .state import overwrite
from .step import StreamStep

__all__ = ["FusedStep"]


class FusedStep(StreamStep):
    """A `StreamStep` that runs a copy of the model, rewritten as `fuse` rewrites it, for inference.

    A shift followed by a 1x1 convolution becomes part of its kernel, and so do batch-norm, activation and
    residual sum behind it; batch-norms are folded. The copy is made for a size of frames by `init_state`, or
    else by the first frame, with the weights of that moment, and is made again for another size, dtype or
    device. It takes any number of streams. Autograd does not reach its parameters, and autocast is refused.
    Threads may share a step once it has its copy, each with frames of that size.

    Args:
        model: a model patched with `direction="causal"`, in evaluation mode and not compiled; it is not changed.
        features: as in `StreamStep`.

    Attributes:
        names: of the sites, in the order of the state.
        network: the copy, None before the first frame.
        report: what was fused, what was left and why; None before the first frame.

    Shapes:
        As in `StreamStep`; caches of maps are in channels_last, and those of a `StreamStep` are taken too.

    Raises:
        As `StreamStep`, and RuntimeError: a compiled model, autocast, a disabled shift; a model that
        `torch.export` cannot capture; the first frame inside `torch.compile` or `torch.export`.

    Example:
        >>> import timm, tsm_triton
        >>> model = tsm_triton.patch(timm.create_model("test_resnet", num_classes=5), direction="causal")
        >>> step = FusedStep(model.eval())
        >>> state = step.init_state((2, 3, 64, 64))
        >>> logits, state = step(torch.randn(2, 3, 64, 64), state)
        >>> logits.shape, sum(entry.kind == "shift + conv1x1" for entry in step.report.fused)
        (torch.Size([2, 5]), 1)
    """

    writes_into = False

    def __init__(self, model: nn.Module, *, features: bool = False) -> None:
        check_fusible(model)
        super().__init__(model, features=features)
        self.network: GraphModule | None = None
        self.report: FusionReport | None = None
        # frame size, dtype and device that the copy was made for
        self.made_for: tuple[Any, ...] | None = None

    @torch.no_grad()
    def init_state(self, frame_or_shape: Tensor | Sequence[int]) -> list[Tensor]:
        """As `StreamStep.init_state`; makes the copy for frames of this size, if there is none."""
        state = super().init_state(frame_or_shape)
        with torch.inference_mode(False):  # a cache is written in any mode later on
            for i, hook in enumerate(self.hooks):
                if state[i].dim() == 4 and hook.channel_dim == 1:
                    state[i] = state[i].contiguous(memory_format=torch.channels_last)
        if isinstance(frame_or_shape, Tensor):
            self._prepare(frame_or_shape, state)
        else:
            parameter = next(self.model.parameters())
            shape = tuple(frame_or_shape)
            self._prepare(torch.empty(shape, dtype=parameter.dtype, device=parameter.device), state)
        return state

    def run(
        self, frame: Tensor, caches: Sequence[Tensor], into: Sequence[Tensor] | None = None
    ) -> tuple[Any, list[Tensor]]:
        network = self._prepare(frame, caches)
        inputs = (frame.contiguous(memory_format=torch.channels_last), list(caches))
        output, new = run_in_aten(network, *inputs) if ops.in_onnx_export() else network(*inputs)
        if into is None:
            return output, new
        overwrite(into, new)
        return output, list(into)

    def check(self, frame: Tensor, state: Sequence[Tensor] | None) -> None:
        super().check(frame, state)
        if torch.is_autocast_enabled(frame.device.type):
            raise RuntimeError(
                "expected no autocast around a fused stream, got it enabled. Give the model its dtype instead, "
                "model.to(torch.bfloat16), and make the stream of that."
            )
        if not all(hook.enabled for hook in self.hooks):
            raise RuntimeError(
                "expected a model whose shift is on, got one inside tsm_triton.shift_disabled, which does not "
                "reach a fused copy. Stream without fused=True there."
            )

    def _prepare(self, frame: Tensor, state: Sequence[Tensor]) -> GraphModule:
        """The copy for this frame's size, made if there is none."""
        kind = (tuple(frame.shape[1:]), frame.dtype, frame.device)
        if self.network is not None and kind == self.made_for:
            return self.network
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"expected a fused step that has seen a frame of {list(kind[0])} {frame.dtype} on {frame.device}, "
                f"got {self.made_for or 'none'}. Call init_state(frame) before torch.compile or torch.export."
            )
        check_fusible(self.model)
        with torch.no_grad():
            super().run(
                frame, state
            )  # says what does not fit, where a capture would hide it in a report of its own
        network, report = rewritten(_captured(self.model, self.features, frame, state))
        for entries in (report.fused, report.left):  # traced inside this module: the names of the model's own
            entries[:] = [replace(entry, site=entry.site.removeprefix("model.")) for entry in entries]
        self.made_for = None  # Ctrl-C on the next line may not leave a copy under another's size
        self.network, self.report = network, report
        self.made_for = kind
        return network


def _captured(model: nn.Module, features: bool, frame: Tensor, state: Sequence[Tensor]) -> GraphModule:
    """The functional graph of one frame of any number of streams, in channels_last."""
    streams = torch.export.Dim("streams", min=1, max=MOST_ROWS)
    rows = [len(cache) // len(frame) if cache.numel() else 0 for cache in state]
    with torch.inference_mode(False), torch.no_grad():
        example = torch.zeros(2, *frame.shape[1:], dtype=frame.dtype, device=frame.device)
        example = example.contiguous(memory_format=torch.channels_last)
        caches = [
            torch.zeros(2 * k, *cache.shape[1:], dtype=cache.dtype, device=cache.device) if k else cache
            for k, cache in zip(rows, state, strict=True)
        ]
        shapes = [{0: streams if k == 1 else k * streams} if k else None for k in rows]
        return capture(
            StreamStep(copied(model), features=features),
            (example, caches),
            ({0: streams}, shapes),
            type(model).__name__,
            f"one frame of {list(frame.shape[1:])} of any number of streams",
        )
