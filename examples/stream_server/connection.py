"""The two ends of a connection, which is a stream: pictures one way, lines of JSON the other.

A picture is a JPEG, PNG or the like behind its length as four bytes, big-endian. Each is answered with
`{"frame": 0, "label": "left", "probability": 0.93}`, in order, or `{"frame": 0, "error": "..."}` if it is no
picture. A client leaves by closing the connection.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from torch import Tensor

from tsm_triton.streaming.batching import Batcher
from tsm_triton.video.pictures import decode_picture

__all__ = ["Camera", "listening"]

MAX_BYTES = 16 * 2**20  # of an encoded picture


@asynccontextmanager
async def listening(
    batcher: Batcher,
    preprocess: Callable[[Tensor], Tensor],
    labels: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 0,
) -> AsyncIterator[int]:
    """Take connections until the end of the block, and close those that are left then.

    Args:
        batcher: computes; already entered.
        preprocess: uint8 `[1, 3, H, W]`, of any size -> what the model takes, `[1, *batcher.frame_shape]`.
        labels: of the classes.
        host, port: where to listen; port 0 is any that is free.

    Yields:
        The port.
    """
    connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections[task] = writer
        try:
            await _answer(batcher, preprocess, labels, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):  # it left
            pass
        finally:
            del connections[task]
            writer.close()

    server = await asyncio.start_server(connected, host, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        # each sees the end of its connection: asyncio reports cancelled tasks as errors
        for writer in connections.values():
            writer.close()
        await asyncio.gather(*connections)


async def _answer(
    batcher: Batcher,
    preprocess: Callable[[Tensor], Tensor],
    labels: Sequence[str],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    async def send(**reply: Any) -> None:
        writer.write(json.dumps(reply).encode() + b"\n")
        await writer.drain()

    try:
        client = batcher.join()
    except RuntimeError as error:
        return await send(error=str(error))
    with client:
        number = 0
        while True:
            length = int.from_bytes(await reader.readexactly(4), "big")
            if length > MAX_BYTES:
                return await send(error=f"expected a picture of at most {MAX_BYTES} bytes, got {length}")
            data = await reader.readexactly(length)
            try:
                frame = await asyncio.to_thread(lambda data=data: preprocess(decode_picture(data)[None])[0])
            except ValueError as error:
                await send(frame=number, error=str(error))
            else:
                probability, best = (await client.predict(frame)).float().softmax(-1).max(-1)
                await send(frame=number, label=labels[int(best)], probability=round(probability.item(), 4))
            number += 1


class Camera:
    """The client's end; an async context manager.

    Args:
        host, port: of the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self.address = host, port

    async def __aenter__(self) -> "Camera":
        self.reader, self.writer = await asyncio.open_connection(*self.address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    async def show(self, picture: bytes) -> dict[str, Any]:
        """Send an encoded picture; the server's answer.

        Raises:
            ConnectionError: the server has closed the connection.
        """
        self.writer.write(len(picture).to_bytes(4, "big") + picture)
        await self.writer.drain()
        line = await self.reader.readline()
        if not line:
            raise ConnectionError("expected an answer, got the end of the connection: is the server there?")
        return json.loads(line)
