"""Many live streams on one model: each at its own pace, joining and leaving at any time, batched tick by tick.

A client sends a frame and waits for its prediction. The server gathers what has arrived, at most one frame a
stream, and runs `Streaming.step` once on all of it: the caches of those streams are gathered into a batch before
and scattered after. Streams that sent nothing keep their caches, so nobody waits for the slowest.

    python examples/stream_server.py                        # load test, 1 to 16 streams, a table
    python examples/stream_server.py --write examples/README.md
"""

import argparse
import asyncio
import os
import platform
import random
import re
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

import tsm_triton
from tsm_triton.commands.common import create_model
from tsm_triton.stepping import StreamStep, put_streams, take_streams


class Server:
    """Serve up to `capacity` streams of frames `[3, H, W]`; an async context manager.

    Args:
        model: patched with `direction="causal"`, in evaluation mode.
        frame_shape: `(3, H, W)`.
        capacity: how many streams may be connected at once.
        max_wait: seconds to wait for more frames once the first of a tick is there.

    Example:
        >>> async def main():
        ...     model = tsm_triton.patch(create_model("test_resnet", num_classes=5), direction="causal").eval()
        ...     async with Server(model, (3, 32, 32)) as server:
        ...         with server.join() as camera, server.join() as other:
        ...             frames = torch.randn(2, 3, 32, 32)
        ...             return await asyncio.gather(camera.predict(frames[0]), other.predict(frames[1]))
        >>> [logits.shape for logits in asyncio.run(main())]
        [torch.Size([5]), torch.Size([5])]
    """

    def __init__(
        self, model: nn.Module, frame_shape: Sequence[int], capacity: int = 64, max_wait: float = 0.002
    ) -> None:
        self.step = StreamStep(model)
        self.frame_shape = tuple(frame_shape)
        self.capacity = capacity
        self.max_wait = max_wait
        self.state = self.step.init_state((capacity, *frame_shape))
        self.free = list(range(capacity))
        self.waiting: list[tuple[int, Tensor, asyncio.Future[Tensor]]] = []
        self.batches: list[int] = []
        # one thread owns the model, so that the event loop goes on taking frames while it computes
        self.worker = ThreadPoolExecutor(max_workers=1)

    async def __aenter__(self) -> "Server":
        self.arrived = asyncio.Event()
        self.ticking = asyncio.create_task(self._tick_forever())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.ticking.cancel()
        await asyncio.gather(self.ticking, return_exceptions=True)
        for _, _, reply in self.waiting:
            reply.cancel()
        self.worker.shutdown()

    def join(self) -> "Client":
        """Connect a stream that has seen nothing.

        Raises:
            RuntimeError: `capacity` streams are connected.
        """
        if not self.free:
            raise RuntimeError(
                f"expected at most {self.capacity} streams, got one more. Let one leave, or raise capacity."
            )
        return Client(self, self.free.pop())

    async def _tick_forever(self) -> None:
        while True:
            await self.arrived.wait()
            await asyncio.sleep(self.max_wait)
            self.arrived.clear()
            tick, self.waiting = self.waiting, []
            tick = [entry for entry in tick if not entry[2].cancelled()]
            if not tick:
                continue
            slots, frames, replies = zip(*tick, strict=True)
            self.batches.append(len(slots))
            try:
                loop = asyncio.get_running_loop()
                logits = await loop.run_in_executor(self.worker, self._compute, slots, frames)
            except Exception as error:
                # the caches are as they were: those streams may send again
                for reply in replies:
                    if not reply.done():
                        reply.set_exception(error)
                continue
            for reply, row in zip(replies, logits, strict=True):
                if not reply.done():
                    reply.set_result(row)

    @torch.inference_mode()
    def _compute(self, slots: Sequence[int], frames: Sequence[Tensor]) -> Tensor:
        device = self.state[0].device
        rows = torch.tensor(slots, device=device)
        batch = torch.stack(list(frames)).to(device)
        logits, new = self.step(batch, take_streams(self.state, rows, self.capacity))
        put_streams(self.state, rows, new, self.capacity)
        return logits.cpu()

    def _forget(self, slot: int) -> None:
        zeros = take_streams(self.state, torch.tensor([slot]), self.capacity)
        put_streams(self.state, torch.tensor([slot]), [z.zero_() for z in zeros], self.capacity)


class Client:
    """One stream of a server; a context manager that leaves at its end."""

    def __init__(self, server: Server, slot: int) -> None:
        self.server = server
        self.slot: int | None = slot
        self.fresh = True

    async def predict(self, frame: Tensor) -> Tensor:
        """The logits `[num_classes]` of this stream's next frame.

        Raises:
            RuntimeError: the stream has left.
            ValueError: a frame of another size.
        """
        if self.slot is None:
            raise RuntimeError("expected a connected stream, got one that has left. Join again.")
        if tuple(frame.shape) != self.server.frame_shape:
            raise ValueError(f"frame must have shape {self.server.frame_shape}, got {tuple(frame.shape)}")
        reply: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        self.server.waiting.append((self.slot, frame, reply))
        self.server.arrived.set()
        return await reply

    def leave(self) -> None:
        if self.slot is not None:
            self.server.free.append(self.slot)
            self.slot = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()
