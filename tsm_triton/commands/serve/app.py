"""The page and its connections, as a FastAPI application."""

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse

from .service import Service
from .session import Session

__all__ = ["make_app"]

# The page is one file: nothing is loaded from elsewhere.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}


def make_app(service: Service) -> FastAPI:
    """`/` is the page, `/model` tells what is served, and each connection to `/stream` is a stream, see `Session`."""
    page = Path(__file__).with_name("page.html").read_text("utf-8")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # a thread a client, each of which waits for one at a time: a file that is long to open holds nobody up
        threads = ThreadPoolExecutor(service.batcher.capacity, "tsm-triton serve")
        asyncio.get_running_loop().set_default_executor(threads)
        async with service.batcher:
            yield

    # without FastAPI's own pages, which load scripts from a CDN
    app = FastAPI(title="tsm-triton", openapi_url=None, lifespan=lifespan)

    @app.get("/")
    async def index() -> HTMLResponse:  # pyright: ignore[reportUnusedFunction]
        return HTMLResponse(page, headers=HEADERS)

    @app.get("/model")
    async def model() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        return service.description()

    @app.websocket("/stream")
    async def stream(socket: WebSocket) -> None:  # pyright: ignore[reportUnusedFunction]
        await socket.accept()
        session = Session(service, socket)
        try:
            await session.run()
        except WebSocketDisconnect:  # it left
            pass
        except ValueError as error:
            await session.refuse(str(error))
        except Exception:
            logging.getLogger("uvicorn.error").exception("a stream failed")
            await session.refuse(
                "expected an answer of the model, got an error, which the server has printed"
            )

    return app
