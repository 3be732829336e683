"""A connection, which is a stream: what a client shows one way, what the model sees in it the other.

The client says what it shows, `{"source": "camera"}` or `{"source": "file", "name": "a.mp4", "bytes": 12345}`.

- A camera's pictures come as binary messages, JPEG, PNG or WebP. Each is answered, in order, by
  `{"frame": 0, "time": 0.0, "top": [["left", 0.93], ...]}`, or by `{"frame": 0, "error": "..."}` if it is no picture,
  which costs the stream nothing of its past.
- A file is asked for part by part, `{"send": [0, 1048576]}`, each sent as a binary message. Then come
  `{"video": {...}}`, for each frame a line as above and a binary message, its picture as a JPEG, no faster than it
  plays; and `{"done": 25}`.

Whatever ends a stream before is said as `{"error": "..."}`. A client leaves by closing the connection.
"""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import WebSocket, WebSocketDisconnect
from torch import Tensor

from ...streaming.batching import Client
from ...video.pictures import decode_picture
from ..common import printable
from ..ranking import likeliest
from .service import Service
from .uploads import Upload

__all__ = ["Session"]

TOP = 5
LONGEST_WAIT = 1.0  # seconds between two frames of a file, however long its clock says
Result = TypeVar("Result")


class Session:
    """One client's stream.

    Args:
        service: what it asks.
        socket: accepted.
    """

    def __init__(self, service: Service, socket: WebSocket) -> None:
        self.service = service
        self.socket = socket
        self.patience = service.limits.patience

    async def run(self) -> None:
        """Answer until the client leaves or its video ends.

        Raises:
            ValueError: what cannot be served, in words for the client.
            WebSocketDisconnect: the client has left.
        """
        self._check_origin()
        with self._join() as client:
            asked = await self._asked()
            if asked.get("source") == "camera":
                await self._camera(client)
            elif asked.get("source") == "file":
                await self._file(client, asked.get("name"), asked.get("bytes"))
            else:
                raise ValueError(
                    f"expected the source 'camera' or 'file', got {asked.get('source')!r}: pass one of them"
                )

    async def refuse(self, reason: str) -> None:
        """Say why the stream ends, to whoever is still there, and end it."""
        with suppress(WebSocketDisconnect, RuntimeError):  # RuntimeError: it is closed
            await self._send({"error": printable(reason)})
            await self.socket.close(1008)

    def _check_origin(self) -> None:
        """Pages of others that a browser here shows may not ask."""
        origin, host = self.socket.headers.get("origin"), self.socket.headers.get("host", "")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise ValueError(
                f"expected this server's own page, got {printable(origin)} asking {printable(host)}: use the page "
                "from here, and let a proxy pass the header Host on"
            )

    def _join(self) -> Client:
        batcher = self.service.batcher
        if batcher.num_streams == batcher.capacity:
            raise ValueError(
                f"expected at most {batcher.capacity} streams, got one more: leave another tab, or try again later"
            )
        return batcher.join()

    async def _camera(self, client: Client) -> None:
        number, began = 0, time.monotonic()
        while True:
            data = await self._bytes()
            at = time.monotonic() - began
            try:
                frame = await in_thread(self._decoded, data)
            except ValueError as error:
                await self._send({"frame": number, "error": printable(str(error))})
            else:
                await self._send(
                    {"frame": number, "time": round(at, 3), "top": await self._top(client, frame)}
                )
            number += 1

    async def _file(self, client: Client, name: Any, size: Any) -> None:
        with Upload(self.service.folder, name, size, self.service.limits) as upload:
            for begin, end in upload.parts():
                await self._send({"send": [begin, end]})
                await in_thread(upload.write, await self._bytes())
            video = await in_thread(upload.open)
            await self._send({"video": video})
            number, start = 0, time.monotonic()
            while (picture := await in_thread(upload.picture, self.service.prepared)) is not None:
                early = start + picture.time - time.monotonic()
                start -= max(0.0, early - LONGEST_WAIT)
                top = await self._top(client, picture.frame)
                await asyncio.sleep(min(start + picture.time - time.monotonic(), LONGEST_WAIT))
                await self._send({"frame": number, "time": round(picture.time, 3), "top": top})
                await self._wait(self.socket.send_bytes(picture.jpeg))
                number += 1
        await self._send({"done": number})
        await self.socket.close()

    async def _top(self, client: Client, frame: Tensor) -> list[tuple[str, float]]:
        """The likeliest labels of this stream's next frame `[3, H, W]`, as the model takes it."""
        logs = (await client.predict(frame)).float().log_softmax(-1)
        if logs.isnan().any():
            raise ValueError(
                "expected finite scores, got others: train the model again, its weights or this frame's activations "
                "are no numbers"
            )
        return likeliest(logs, self.service.labels, TOP)

    def _decoded(self, data: bytes) -> Tensor:
        return self.service.prepared(decode_picture(data))

    async def _asked(self) -> dict[str, Any]:
        text = (await self._receive()).get("text")
        try:
            asked = json.loads(text or "")
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            raise ValueError("expected the source first, as a JSON object, got something else: pass that")
        return asked

    async def _bytes(self) -> bytes:
        data = (await self._receive()).get("bytes")
        if data is None:
            raise ValueError(
                "expected a binary message, got text: pass a picture, or the part that is asked for"
            )
        return data

    async def _receive(self) -> dict[str, Any]:
        try:
            message: Any = await asyncio.wait_for(self.socket.receive(), self.patience)
        except asyncio.TimeoutError:
            raise ValueError(
                f"expected a picture within {self.patience:.0f} seconds, got none: try again, and keep the page in "
                "view"
            ) from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        return message

    async def _send(self, message: dict[str, Any]) -> None:
        await self._wait(self.socket.send_json(message))

    async def _wait(self, sending: Any) -> None:
        try:
            await asyncio.wait_for(sending, self.patience)
        except asyncio.TimeoutError:  # its network is gone
            raise WebSocketDisconnect(1006) from None


async def in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """A function's result; cancelled, it waits all the same, so that nothing is closed that the thread still reads."""
    call = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise
