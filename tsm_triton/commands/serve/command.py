"""`tsm-triton serve CHECKPOINT`: a page on which a camera or a video is seen by a causal model."""

import argparse
import asyncio
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ...extras import check_installed
from ...patching.hooks import shift_hooks
from ...streaming.batching import Batcher
from ...video.transforms import transform_for
from ..common import few_threads, pick_device, printable
from ..exported import exported_file, exported_step
from ..interrupt import Interrupt, stop_on_signal
from ..labels import labels_of
from ..models import Said, Trained, load_trained_model
from .service import Limits, Service

__all__ = ["run"]

MEGABYTE = 10**6


def run(args: argparse.Namespace) -> int:
    check_installed("serve", "av", "fastapi", "uvicorn", "websockets")
    few_threads()
    with (
        stop_on_signal() as interrupt,
        _listening(args.host, args.port) as listener,
        TemporaryDirectory(prefix="tsm-triton-serve-", ignore_cleanup_errors=True) as folder,
    ):
        service = _service(args, Path(folder))
        if not interrupt.asked:
            _announce(args, service, listener)
            asyncio.run(_serve(service, listener, interrupt))
    print("Stopped.")
    return 0


def _service(args: argparse.Namespace, folder: Path) -> Service:
    """The model of the arguments, with what the checkpoint says of it."""
    device = pick_device(args.device)
    trained, num_segments = _trained(args, device)
    preprocess = transform_for(trained.model)
    frame = preprocess(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    batcher = Batcher(
        trained.model,
        frame.shape[1:],
        capacity=args.clients,
        max_batch=min(args.clients, 32),
        fused=args.fused,
    )
    with torch.inference_mode():
        logits, _ = batcher.step(frame.to(device), batcher.step.init_state(frame.to(device)))
    labels = labels_of(args, trained.labels, logits.shape[-1])
    limits = Limits(max_bytes=args.max_upload * MEGABYTE)
    return Service(trained.name, labels, num_segments, preprocess, batcher, folder, limits)


def _trained(args: argparse.Namespace, device: torch.device) -> tuple[Trained, int | None]:
    """The model, or the step of an exported file; and T of the clips that it was trained on, which a file does not say.

    Raises:
        ValueError: a file that is none of a stream, or options that say otherwise.
    """
    exported = exported_file(str(args.checkpoint), None, "")
    if exported is None:
        trained = load_trained_model(args.checkpoint, Said.of(args), streamed=True)
        trained.model.to(device)
        return trained, shift_hooks(trained.model)[0].num_segments
    for option, given in (("--fused", args.fused), ("--model", args.model)):
        if given:
            raise ValueError(
                f"expected no {option} with {str(exported)!r}, which is as it was exported, got it: drop {option}"
            )
    step = exported_step(exported, Said.of(args).shift).on(device)
    return Trained(step, exported.stem, 1, step.said["labels"]), None


def _listening(host: str, port: int) -> socket.socket:
    """A socket that takes connections, which wait until the model is there.

    Raises:
        ValueError: nobody can listen there.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"expected an address to listen at, got {host!r} port {port} ({reason}): pass another --host or --port; "
            "--port 0 is any that is free"
        ) from error


def _announce(args: argparse.Namespace, service: Service, listener: socket.socket) -> None:
    host, port = (f"[{args.host}]" if ":" in args.host else args.host), listener.getsockname()[1]
    print(f"{service.name} of {printable(str(args.checkpoint))}, {len(service.labels)} classes", flush=True)
    if listener.getsockname()[0] in ("0.0.0.0", "::"):
        print("Whoever reaches this machine may use it, without a password; cameras need https or localhost.")
    print(f"http://{host}:{port}; Ctrl-C to stop", flush=True)


async def _serve(service: Service, listener: socket.socket, interrupt: Interrupt) -> None:
    import uvicorn

    from .app import make_app

    config = uvicorn.Config(
        make_app(service),
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="websockets-sansio",
        ws_max_size=service.limits.max_message,
        ws_per_message_deflate=False,  # pictures are compressed already
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not serving.done():  # of the signals uvicorn hears two itself, and says them again in the end
        server.should_exit |= interrupt.asked
        await asyncio.wait([serving], timeout=0.2)
    await serving
