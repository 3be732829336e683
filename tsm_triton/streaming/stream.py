"""Live video: the model that was trained on clips, fed one frame at a time."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import as_count, as_ints
from .fused_step import FusedStep
from .state import check_state
from .step import StreamStep, put_streams, take_streams

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
        model: a model patched with `direction="causal"`, in evaluation mode; compiled or not.
        consensus: return the mean of each stream's last `consensus` logits instead of the last ones.
        every: compute each `every`-th frame of a stream, counted from its reset; the frames between return
            its last prediction.
        features: return `(logits, features)` in place of the logits, of a timm model: the features are what
            its `forward_features` gives. `consensus` averages the logits only.
        fused: run an inference copy of the model, rewritten as `fuse` rewrites it, each shift part of the 1x1
            convolution behind it where there is one. The copy is made at the first frame, in some seconds, with
            the weights of that moment; `print(stream.step.report)` then says what was fused, what not and why.
            A call allocates what each site keeps as well, and copies it to the caches.

    Attributes:
        step: the same without hidden state, `logits, state = stream.step(frame, state)`: an `nn.Module` to
            compile, to export and to build servers on. It knows neither `consensus` nor `every`. With `fused`
            it is the fused one.

    Shapes:
        `[B, 3, H, W]` -> `[B, num_classes]`, or whatever else the model returns for B frames: the list of
        maps of a `features_only` backbone.

    Raises:
        RuntimeError: the model is not patched, is patched bidirectionally, or is in training mode; with `fused`
            a model that is compiled or that `torch.export` cannot capture, and autocast.
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
        self.step = (FusedStep if fused else StreamStep)(model, features=features)
        self._forget()

    @property
    def model(self) -> nn.Module:
        """The model that runs."""
        return self.step.model

    @property
    def num_streams(self) -> int:
        """B of the frames seen so far, 0 before the first."""
        return len(self._ages)

    @property
    def cache_bytes(self) -> int:
        """What one stream remembers, in bytes; 0 before the first frame.

        As much again is held to write a frame's values to until the whole frame has succeeded; a fused
        stream allocates that anew each frame.
        """
        return sum(cache.nbytes for cache in self._caches) // max(1, self.num_streams)

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> Any:
        """The predictions for the next frame of every stream.

        With `every` above 1 and between computed frames, this is the very tensor returned before.
        """
        self._prepare(frame)
        due = [i for i, age in enumerate(self._ages) if age % self.every == 0]
        output = None
        if due:
            rows = None if len(due) == self.num_streams else torch.tensor(due, device=frame.device)
            output, kept = self._kept(frame, rows)
            self._check_output(output)
            output, window = self._averaged(output, rows)
            last = self._last if self.every == 1 else self._merged(output, rows)
            # nothing is computed from here on: a frame that fails has changed nothing
            _overwrite(self._caches, kept)
            self._window = self._window or window
            _overwrite(self._window, window)
            self._last = last
        self._fresh = False
        if self.every == 1:
            return output
        self._ages = [age + 1 for age in self._ages]
        return self._last if self.step.features else self._last[0]

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
        chosen = list(range(self.num_streams)) if indices is None else self._numbers(indices)
        if indices is None:
            rows = [*self._caches, *self._window]
        else:
            # k rows a stream, where a site sees k windows of each frame
            rows = [
                cache.unflatten(0, (self.num_streams, -1))[i]
                for cache in (*self._caches, *self._window)
                if cache.numel()
                for i in chosen
            ]
        if rows:
            torch._foreach_zero_(rows)  # pyright: ignore[reportPrivateImportUsage]
        for i in chosen:
            self._ages[i] = 0
        self._fresh |= indices is None

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all that the streams remember, flat and plain, as `torch.save` and safetensors take it.

        Empty until a frame has been computed.
        """
        unused = (self.consensus is not None and not self._window) or (self.every > 1 and not self._last)
        if not self._caches or unused:
            return {}
        state = {
            f"cache.{name}": cache.clone() for name, cache in zip(self.step.names, self._caches, strict=True)
        }
        state |= {"frame_shape": torch.tensor(self._shape), "ages": torch.tensor(self._ages)}
        state |= {
            f"consensus.{name}": x.clone() for name, x in zip(("logits", "seen"), self._window, strict=False)
        }
        state |= {
            f"last.{name}": x.clone() for name, x in zip(("logits", "features"), self._last, strict=False)
        }
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where a `state_dict` was taken, on the model's device.

        For frames of the same shape the caches are overwritten in place, else they are allocated.

        Raises:
            TypeError, ValueError: keys that are missing or unexpected, tensors that do not fit each other, or
                of a stream with another `consensus`; the streams stay as they were.
        """
        if not state:
            return self._forget()
        caches = [f"cache.{name}" for name in self.step.names]
        window = ["consensus.logits", "consensus.seen"] if self.consensus is not None else []
        last = ["last.logits", "last.features"][: 1 + self.step.features] if self.every > 1 else []
        expected = {"frame_shape", "ages", *caches, *window, *last}
        missing, unexpected = sorted(expected - state.keys()), sorted(state.keys() - expected)
        if missing or unexpected:
            raise ValueError(
                f"expected the state of a stream over {type(self.model).__name__} with "
                f"consensus={self.consensus}, every={self.every} and features={self.step.features}, got one where "
                f"{', '.join(missing) or 'nothing'} is missing and {', '.join(unexpected) or 'nothing'} is "
                "unexpected. Make the stream as the saved one was made."
            )
        held = dict(zip((*caches, *window), (*self._caches, *self._window), strict=False))
        shape, ages = check_state(state, self.consensus, self._shape, held)
        device = next(self.model.parameters()).device
        loaded = [state[key] for key in (*caches, *window)]
        kinds = [(x.shape, x.dtype, x.device) for x in held.values()]
        newest = _copies((state[key] for key in last), device)
        if shape == self._shape and kinds == [(x.shape, x.dtype, device) for x in loaded]:
            _overwrite(list(held.values()), [x.to(device) for x in loaded])
        else:
            loaded = _copies(loaded, device)
            self._allocate(loaded[: len(caches)])
            self._window = loaded[len(caches) :]
            self._kind = None
        self._shape, self._ages, self._last, self._fresh = shape, ages, tuple(newest), False

    def to(self, device: torch.device | str) -> "Streaming":
        """Move what the streams remember; the model is moved by its own `to`.

        Returns:
            The same object.
        """
        window, last = _copies(self._window, device), _copies(self._last, device)
        self._allocate(_copies(self._caches, device))
        self._window, self._last, self._kind = window, tuple(last), None
        return self

    def __repr__(self) -> str:
        return (
            f"Streaming({type(self.model).__name__}, {len(self.step.names)} sites, "
            f"consensus={self.consensus}, every={self.every}, fused={isinstance(self.step, FusedStep)}, "
            f"num_streams={self.num_streams})"
        )

    def _forget(self) -> None:
        self._caches: list[Tensor] = []
        # where a frame's values go until all of it has succeeded, unless the step makes them itself
        self._staged: list[Tensor] | None = None
        # of `consensus`: the last logits [B, consensus, num_classes], and how many were seen [B]
        self._window: list[Tensor] = []
        # of `every`: the last logits, and the last features if asked for
        self._last: tuple[Tensor, ...] = ()
        # frames since each stream's reset
        self._ages: list[int] = []
        self._shape: tuple[int, ...] = ()
        # what the caches were allocated for, None if that is unknown
        self._kind: tuple[Any, ...] | None = None
        self._fresh = True

    def _allocate(self, caches: list[Tensor]) -> None:
        if not isinstance(self.step, FusedStep):  # whose graph makes its own
            with torch.inference_mode(False):
                self._staged = [torch.empty_like(cache) for cache in caches]
        self._caches = caches

    def _prepare(self, frame: Tensor) -> None:
        """Allocate the caches at the first frame, and see that the next ones are like it."""
        self.step.check(frame, None)
        if not self._fresh:
            if tuple(frame.shape) != self._shape:
                raise ValueError(
                    f"frame must have the shape of the frames before it, {self._shape}, got "
                    f"{tuple(frame.shape)}: the caches hold features of that size. Call reset() to begin "
                    "with another batch or size."
                )
            return
        device = frame.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        kind = (tuple(frame.shape), frame.dtype, frame.device, autocast)
        if kind != self._kind:
            caches = self.step.init_state(frame)
            self._forget()
            self._allocate(caches)
            self._kind, self._shape, self._ages = kind, kind[0], [0] * frame.shape[0]

    def _kept(self, frame: Tensor, rows: Tensor | None) -> tuple[Any, list[Tensor]]:
        """What the model makes of the given streams (None: of all), and the caches behind it."""
        if rows is None:
            return self.step.run(frame, self._caches, self._staged)
        state = take_streams(self._caches, rows, self.num_streams)
        output, new = self.step.run(frame[rows], state, None)
        kept = [cache.clone() for cache in self._caches]
        put_streams(kept, rows, new, self.num_streams)
        return output, kept

    def _merged(self, output: Any, rows: Tensor | None) -> tuple[Tensor, ...]:
        """The last predictions of all streams, with new ones of those given."""
        new = output if self.step.features else (output,)
        if rows is None:
            return new
        return tuple(old.index_copy(0, rows, row) for old, row in zip(self._last, new, strict=True))

    def _check_output(self, output: Any) -> None:
        logits = output[0] if self.step.features else output
        if (self.consensus is not None or self.every > 1) and not isinstance(logits, Tensor):
            raise TypeError(
                f"expected a model that returns logits, got {type(logits).__name__} from "
                f"{type(self.model).__name__}. Pass a model with one output, or leave "
                "consensus and every out."
            )

    def _averaged(self, output: Any, rows: Tensor | None) -> tuple[Any, list[Tensor]]:
        """With the mean of the last logits of the given streams (None: of all), these included; the window."""
        if self.consensus is None:
            return output, []
        logits = output[0] if self.step.features else output
        with torch.inference_mode(False):
            if self._window:
                window, seen = [x.clone() for x in self._window]
            else:
                window = logits.new_zeros((self.num_streams, self.consensus, *logits.shape[1:]))
                seen = torch.zeros(self.num_streams, dtype=torch.long, device=logits.device)
        if rows is None:
            rows = torch.arange(self.num_streams, device=logits.device)
        window[rows, seen[rows] % self.consensus] = logits
        seen[rows] += 1
        count = seen[rows].clamp(max=self.consensus)
        mean = (window[rows].sum(1) / count.view(-1, *[1] * (logits.dim() - 1))).to(logits.dtype)
        return (mean, output[1]) if self.step.features else mean, [window, seen]

    def _numbers(self, indices: Iterable[int] | Tensor) -> list[int]:
        """Streams by number, each of them there."""
        chosen = as_ints(indices, "indices")
        for i in chosen:
            if not 0 <= i < self.num_streams:
                raise ValueError(
                    f"expected streams from 0 to {self.num_streams - 1}, got {i}. Pass "
                    "numbers of a frame's rows."
                    if self.num_streams
                    else f"expected a stream that has seen a frame, got reset of {i} before the first. Streams "
                    "are new then: call reset after it."
                )
        return chosen


def _overwrite(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy in place what is another tensor, in one launch where all lie alike."""
    changed = [i for i, (old, new) in enumerate(zip(tensors, values, strict=True)) if old is not new]
    if changed:
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            [tensors[i] for i in changed], [values[i] for i in changed]
        )


def _copies(tensors: Iterable[Tensor], device: torch.device | str) -> list[Tensor]:
    """Copies that can be written in any mode."""
    with torch.inference_mode(False):
        return [x.to(device, copy=True) for x in tensors]
