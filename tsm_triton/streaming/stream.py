"""Live video: the model that was trained on clips, fed one frame at a time."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import as_count
from .averaging import mean_of_last
from .fused_step import FusedStep
from .state import StreamState, state_keys
from .step import StreamStep

__all__ = ["Streaming"]


class Streaming:
    """Frames of B independent streams in, a prediction for each frame out.

    Each shifted site keeps the channels that the next frame will read, so a frame costs what it costs the
    unshifted network, and the outputs are those of the patched model on the whole clip. Caches begin at zero.
    They are allocated at the first frame, in the dtype that enters each site, and keep their addresses: a
    call allocates its outputs only and can be captured in a CUDA graph. Not so with `every` above 1, which
    copies the caches where only some streams are due and cannot be captured, and with `consensus`, which
    copies its logits. A frame that fails leaves all that is remembered as it was before.

    Threads may share a model, each with `Streaming` objects of its own, and run clips through it meanwhile.

    Args:
        model: a model patched with `direction="causal"`, in evaluation mode; compiled or not. Or a step by itself, as
            `exporting.load_exported` makes one of a stream's file.
        consensus: how many frames a prediction is made of: the mean of the logits of each stream's last
            `consensus` frames, as `VideoClassifier` takes it of all frames of a clip. None: of the last alone.
        every: compute each `every`-th frame of a stream, counted from its reset; the frames between return
            its last prediction.
        features: return `(logits, features)` in place of the logits, of a timm model: the features are what
            its `forward_features` gives. Of these the last frame's are returned, whatever `consensus`.
        fused: run an inference copy of the model, rewritten as `fuse` rewrites it, each shift part of the 1x1
            convolution behind it where there is one. The copy is made at the first frame, in some seconds, with
            the weights of that moment; `print(stream.step.report)` then says what was fused, what not and why.
            A call allocates what each site keeps as well, and copies it to the caches.

    Attributes:
        step: the same without hidden state, `logits, state = stream.step(frame, state)`: an `nn.Module` to
            compile, to export and to build servers on. It knows neither `consensus` nor `every`. With `fused`
            it is the fused one.
        state: what the streams remember, a `StreamState`, which holds nothing before the first frame.

    Shapes:
        `[B, 3, H, W]` -> `[B, num_classes]`, or whatever else the model returns for B frames: the list of
        maps of a `features_only` backbone.

    Raises:
        RuntimeError: the model is not patched, is patched bidirectionally, or, at a frame, is in training mode; with
            `fused` a model that is compiled or that `torch.export` cannot capture, and autocast.
        TypeError, ValueError: bad arguments; `features` of a model that is not timm's; a frame of another
            size or batch than the one before.

    Example:
        >>> import timm, tsm_triton
        >>> model = tsm_triton.patch(timm.create_model("resnet18", num_classes=5), direction="causal")
        >>> stream = Streaming(model.eval())
        >>> for frame in torch.randn(3, 2, 3, 64, 64):  # three frames of two streams
        ...     logits = stream(frame)
        >>> logits.shape, stream.cache_bytes
        (torch.Size([2, 5]), 37888)
        >>> stream.reset([1])  # the second stream begins anew, the first goes on

    Source: arXiv 1811.08383, section 4.3, the online model.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        consensus: int | None = None,
        every: int = 1,
        features: bool = False,
        fused: bool = False,
    ) -> None:
        self.consensus = None if consensus is None else as_count(consensus, "consensus")
        self.every = as_count(every, "every")
        self.step = _step_of(model, features, fused)
        self._forget()

    @property
    def model(self) -> nn.Module:
        """The model that runs."""
        return self.step.model

    @property
    def num_streams(self) -> int:
        """B of the frames seen so far, 0 before the first."""
        return self.state.num_streams

    @property
    def cache_bytes(self) -> int:
        """What one stream remembers, in bytes; 0 before the first frame.

        As much again is held to write a frame's values to until the whole frame has succeeded; a fused
        stream allocates that anew each frame.
        """
        return sum(cache.nbytes for cache in self.state) // max(1, self.num_streams)

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> Any:
        """The predictions for the next frame of every stream.

        With `every` above 1 and between computed frames, this is the very tensor returned before.
        """
        self._prepare(frame)
        state = self.state
        due = [i for i, age in enumerate(state.ages) if age % self.every == 0]
        output = None
        if due:
            streams = None if len(due) == state.num_streams else torch.tensor(due, device=frame.device)
            output, caches = self._run(frame, streams)
            self._check_output(output)
            output, window = self._averaged(output, streams)
            last = () if self.every == 1 else self._merged(output, streams)
            # nothing is computed from here on: a frame that fails has changed nothing
            state.overwrite(caches, window, last)
        self._fresh = False
        if self.every == 1:
            return output
        state.ages = [age + 1 for age in state.ages]
        return state.last if self.step.features else state.last[0]

    def init_state(self, frame_or_shape: Tensor | Sequence[int]) -> list[Tensor]:
        """The state to begin `step` with, see `StreamStep.init_state`."""
        return self.step.init_state(frame_or_shape)

    def reset(self, indices: Iterable[int] | Tensor | None = None) -> None:
        """Forget the past of all streams, or of those given; after a full reset frames may have another size.

        Args:
            indices: of streams, 0 to B - 1.

        Raises:
            TypeError, ValueError: indices that name no stream; the streams stay as they were.
        """
        self.state.reset(indices)
        self._fresh |= indices is None

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all that the streams remember, flat and plain, as `torch.save` and safetensors take it.

        Empty until a frame has been computed.
        """
        state = self.state
        unused = (self.consensus is not None and not state.window) or (self.every > 1 and not state.last)
        return {} if not state or unused else state.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where a `state_dict` was taken, on the model's device.

        For frames of the same shape the caches are overwritten in place, else they are allocated.

        Raises:
            TypeError, ValueError: keys that are missing or unexpected, tensors that do not fit each other, or
                of a stream with another `consensus`; the streams stay as they were.
        """
        if not state:
            return self._forget()
        expected = state_keys(self.step.names, self.consensus, self.every, self.step.features)
        missing, unexpected = sorted(expected - state.keys()), sorted(state.keys() - expected)
        if missing or unexpected:
            raise ValueError(
                f"expected the state of a stream over {type(self.model).__name__} with "
                f"consensus={self.consensus}, every={self.every} and features={self.step.features}, got one where "
                f"{', '.join(missing) or 'nothing'} is missing and {', '.join(unexpected) or 'nothing'} is "
                "unexpected. Make the stream as the saved one was made."
            )
        loaded = self.state.loaded(state, self.consensus, self.step.device)
        if loaded is not self.state:
            self.state, self._kind = loaded, None
            self._stage()
        self._fresh = False

    def to(self, device: torch.device | str) -> "Streaming":
        """Move what the streams remember; the model is moved by its own `to`.

        Returns:
            The same object.
        """
        self.state, self._kind = self.state.to(device), None
        self._stage()
        return self

    def __repr__(self) -> str:
        return (
            f"Streaming({type(self.model).__name__}, {len(self.step.names)} sites, "
            f"consensus={self.consensus}, every={self.every}, fused={isinstance(self.step, FusedStep)}, "
            f"num_streams={self.num_streams})"
        )

    def _forget(self) -> None:
        self.state = StreamState(self.step.names)
        # what the caches were allocated for, None if that is unknown
        self._kind: tuple[Any, ...] | None = None
        # whether the next frame may be of another size
        self._fresh = True

    def _prepare(self, frame: Tensor) -> None:
        """Allocate the caches at the first frame, and see that the next ones are like it."""
        self.step.check(frame, None)
        if not self._fresh:
            return self.state.check_frame(frame)
        device = frame.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        kind = (tuple(frame.shape), frame.dtype, frame.device, autocast)
        if kind != self._kind:
            caches = self.step.init_state(frame)
            self._forget()
            self.state, self._kind = StreamState(self.step.names, caches, frame.shape), kind
            self._stage()

    def _stage(self) -> None:
        """Allocate what a frame is written to now, and not inside of a CUDA graph that captures the next frame."""
        if self.step.writes_into:
            self.state.staging()

    def _run(self, frame: Tensor, streams: Tensor | None) -> tuple[Any, Sequence[Tensor]]:
        """What the model makes of the given streams (None: of all), and the caches of all behind it."""
        state = self.state
        if streams is None:
            return self.step.run(frame, state.caches, state.staging() if self.step.writes_into else None)
        output, caches = self.step.run(frame[streams], state.take(streams))
        behind = StreamState(state.names, [cache.clone() for cache in state], state.frame_shape)
        behind.put(streams, caches)
        return output, behind

    def _averaged(self, output: Any, streams: Tensor | None) -> tuple[Any, list[Tensor]]:
        """The output with the mean of the last logits, these included, and the window behind it."""
        if self.consensus is None:
            return output, []
        logits = output[0] if self.step.features else output
        mean, window = mean_of_last(logits, self.consensus, self.state.window, streams, self.num_streams)
        return (mean, output[1]) if self.step.features else mean, window

    def _merged(self, output: Any, streams: Tensor | None) -> tuple[Tensor, ...]:
        """The last predictions of all streams, with new ones of those given."""
        new = output if self.step.features else (output,)
        if streams is None:
            return new
        return tuple(old.index_copy(0, streams, row) for old, row in zip(self.state.last, new, strict=True))

    def _check_output(self, output: Any) -> None:
        logits = output[0] if self.step.features else output
        if (self.consensus is not None or self.every > 1) and not isinstance(logits, Tensor):
            raise TypeError(
                f"expected a model that returns logits, got {type(logits).__name__} from "
                f"{type(self.model).__name__}. Pass a model with one output, or leave "
                "consensus and every out."
            )


def _step_of(model: nn.Module, features: bool, fused: bool) -> StreamStep:
    if not isinstance(model, StreamStep):
        return (FusedStep if fused else StreamStep)(model, features=features)
    if (features, fused) not in ((False, False), (model.features, isinstance(model, FusedStep))):
        raise ValueError(
            f"expected neither features nor fused with a step, which was made with them or without, got "
            f"features={features} and fused={fused}: leave them out"
        )
    return model
