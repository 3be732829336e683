"""Many live streams on one model, batched tick by tick; nobody waits for the slowest.

What every stream remembers stands in one row of shared cache tensors. A tick takes the frames that have arrived,
at most one a stream, gathers the rows of those streams, runs `StreamStep` once, and puts the rows back. Streams
that sent nothing are not touched.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .fused_step import FusedStep
from .state import StreamState
from .step import StreamStep

__all__ = ["Batcher", "Client"]


class Batcher:
    """Predictions for the frames of up to `capacity` streams; an async context manager.

    At its end, frames that still wait are cancelled.

    Args:
        model: patched with `direction="causal"`, in evaluation mode; or a step, an exported stream's for instance.
        frame_shape: `(3, H, W)`, of every stream.
        capacity: how many streams may be connected at once.
        max_batch: how many frames a tick may take; the others wait for the next one.
        max_wait: how long, in seconds, a tick waits for the streams that have not sent yet.
        fused: run the copy that `Streaming(model, fused=True)` runs, made here, in some seconds; not of a step.

    Attributes:
        step: the `StreamStep`, or `FusedStep`, that every tick calls.
        batches: how many ticks took how many frames.

    Example:
        >>> import asyncio, timm, tsm_triton
        >>> async def main():
        ...     model = tsm_triton.patch(timm.create_model("test_resnet", num_classes=5), direction="causal")
        ...     async with Batcher(model.eval(), (3, 32, 32)) as batcher:
        ...         with batcher.join() as camera, batcher.join() as other:
        ...             frames = torch.randn(2, 3, 32, 32)
        ...             return await asyncio.gather(camera.predict(frames[0]), other.predict(frames[1]))
        >>> [logits.shape for logits in asyncio.run(main())]
        [torch.Size([5]), torch.Size([5])]
    """

    def __init__(
        self,
        model: nn.Module | StreamStep,
        frame_shape: Sequence[int],
        *,
        capacity: int = 64,
        max_batch: int = 32,
        max_wait: float = 0.002,
        fused: bool = False,
    ) -> None:
        if isinstance(model, StreamStep):
            if fused:
                raise ValueError("expected a model with fused=True, got a step: fuse before the step is made")
            self.step = model
        else:
            self.step = (FusedStep if fused else StreamStep)(model)
        self.frame_shape = tuple(frame_shape)
        self.capacity = capacity
        self.max_batch = max_batch
        self.max_wait = max_wait
        self.batches: Counter[int] = Counter()
        caches = [torch.cat([cache] * capacity) for cache in self.step.init_state((1, *frame_shape))]
        self._state = StreamState(self.step.names, caches, (capacity, *frame_shape))
        self._free = list(range(capacity))
        self._dtype = next((parameter.dtype for parameter in self.step.model.parameters()), torch.float32)
        self._waiting: list[_Request] = []
        self._open = False
        # one thread owns model and caches, so that the event loop goes on taking frames while it computes
        self._worker = ThreadPoolExecutor(max_workers=1)

    async def __aenter__(self) -> "Batcher":
        self._arrived = asyncio.Event()
        self._ticking = asyncio.create_task(self._tick_forever())
        self._open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open = False
        self._ticking.cancel()
        await asyncio.gather(self._ticking, return_exceptions=True)
        for request in self._waiting:
            request.reply.cancel()
        self._worker.shutdown()

    @property
    def num_streams(self) -> int:
        """How many are connected."""
        return self.capacity - len(self._free)

    def join(self) -> "Client":
        """Connect a stream that has seen nothing.

        Raises:
            RuntimeError: `capacity` streams are connected, or the batcher is closed.
        """
        self._check_open()
        if not self._free:
            raise RuntimeError(
                f"expected at most {self.capacity} streams, got one more. Let one leave, or raise capacity."
            )
        return Client(self, self._free.pop())

    def _check_open(self) -> None:
        if not self._open:
            raise RuntimeError(
                "expected an open Batcher, got one that is closed: use it within its `async with` block"
            )

    async def _tick_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if len(self._waiting) < min(self.num_streams, self.max_batch):
                await asyncio.sleep(self.max_wait)
            tick = self._next_tick()
            if not tick:
                continue
            try:
                logits = await loop.run_in_executor(self._worker, self._compute, tick)
            except asyncio.CancelledError:  # the batcher closes
                for request in tick:
                    request.reply.cancel()
                raise
            except Exception as error:
                # the caches are as they were: these streams may send the frame again
                for request in tick:
                    if not request.reply.done():
                        request.reply.set_exception(error)
                continue
            self.batches[len(tick)] += 1
            for request, row in zip(tick, logits, strict=True):
                request.client._fresh = False
                if not request.reply.done():
                    request.reply.set_result(row)

    def _next_tick(self) -> "list[_Request]":
        waiting = [request for request in self._waiting if not request.reply.done()]
        tick, self._waiting = waiting[: self.max_batch], waiting[self.max_batch :]
        if not self._waiting:
            self._arrived.clear()
        return tick

    @torch.inference_mode()
    def _compute(self, tick: "list[_Request]") -> Tensor:
        device = self._state[0].device
        # the row of a stream that joined still holds the past of one that left
        fresh = [request.slot for request in tick if request.client._fresh]
        self._state.reset(fresh)
        rows = torch.tensor([request.slot for request in tick], device=device)
        frames = torch.stack([request.frame for request in tick])
        logits, caches = self.step(frames, self._state.take(rows))
        logits = logits.cpu()
        self._state.put(rows, caches)
        return logits


class _Request(NamedTuple):
    """A frame that waits for its tick."""

    client: "Client"
    slot: int
    frame: Tensor
    reply: "asyncio.Future[Tensor]"


class Client:
    """One stream; a context manager that leaves at its end. `Batcher.join` makes it."""

    def __init__(self, batcher: Batcher, slot: int) -> None:
        self._batcher = batcher
        self._slot: int | None = slot
        self._fresh = True
        # frames are computed in the order in which they came
        self._turn = asyncio.Lock()
        self._reply: asyncio.Future[Tensor] | None = None

    async def predict(self, frame: Tensor) -> Tensor:
        """The logits `[num_classes]` of this stream's next frame.

        Cancelled while the frame waits for its tick, the stream never saw it; cancelled while the model runs, it has.

        Args:
            frame: `[3, H, W]`, in the dtype of the model.

        Raises:
            RuntimeError: the stream has left, or the batcher is closed.
            ValueError: a frame of another size or dtype.
        """
        batcher = self._batcher
        if tuple(frame.shape) != batcher.frame_shape:
            raise ValueError(
                f"frame must have shape {batcher.frame_shape}, got {tuple(frame.shape)}: resize it first"
            )
        if frame.dtype != batcher._dtype:
            raise ValueError(
                f"frame must be {batcher._dtype}, as the model is, got {frame.dtype}: convert it first"
            )
        # a copy: the caller may write its next one into it before the tick
        frame = frame.to(batcher._state[0].device, copy=True)
        async with self._turn:
            batcher._check_open()
            if self._slot is None:
                raise RuntimeError(
                    "expected a connected stream, got one that has left: make another with join()"
                )
            self._reply = asyncio.get_running_loop().create_future()
            batcher._waiting.append(_Request(self, self._slot, frame, self._reply))
            batcher._arrived.set()
            return await self._reply

    def leave(self) -> None:
        """Give the place to another stream; frames that wait are cancelled."""
        if self._slot is None:
            return
        # A tick that computes this stream now ends before the first tick of the next owner of its row.
        self._batcher._free.append(self._slot)
        self._slot = None
        if self._reply is not None:
            self._reply.cancel()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
