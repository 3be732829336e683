"""Serve live streams over TCP: `python -m examples.stream_server`, from the root of the checkout."""

import argparse
import asyncio
from contextlib import suppress
from pathlib import Path

import torch

from tsm_triton.commands.common import pick_device
from tsm_triton.commands.demo import DEMO_WEIGHTS
from tsm_triton.commands.models import Said, load_trained_model
from tsm_triton.commands.options import add_shift_options
from tsm_triton.streaming.batching import Batcher
from tsm_triton.video.transforms import transform_for

from .connection import listening


async def serve(args: argparse.Namespace) -> None:
    trained = load_trained_model(args.weights, Said.of(args), streamed=True)
    preprocess = transform_for(trained.model)
    shape = preprocess(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape[1:]
    model = trained.model.to(pick_device(args.device))
    options = {"capacity": args.capacity, "max_batch": args.max_batch, "max_wait": args.max_wait / 1000}
    with torch.inference_mode():
        classes = model(torch.zeros(8, *shape, device=next(model.parameters()).device)).shape[1]
    labels = trained.labels or [f"class {i}" for i in range(classes)]
    async with (
        Batcher(model, shape, **options) as batcher,
        listening(batcher, preprocess, labels, args.host, args.port) as port,
    ):
        print(f"{trained.name} at {args.host}:{port}; Ctrl-C to stop", flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.stream_server", description=__doc__)
    add = parser.add_argument
    add("--weights", type=Path, default=DEMO_WEIGHTS, help="causal weights (default: the demo's)")
    add("--model", metavar="NAME", help="whose weights they are, where the file does not say")
    add_shift_options(parser, ["causal"])
    add("--device", help="default: cuda where there is one, else cpu")
    add("--host", default="127.0.0.1", help="default: %(default)s")
    add("--port", type=int, default=8765, help="default: %(default)s")
    add("--capacity", type=int, default=64, help="streams at once (default: %(default)s)")
    add("--max-batch", type=int, default=32, help="frames a tick (default: %(default)s)")
    add("--max-wait", type=float, default=2, help="milliseconds a tick waits (default: %(default)s)")
    args = parser.parse_args()
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(serve(args))
    except (OSError, ValueError, RuntimeError) as error:  # what the weights, the device or the port are not
        parser.error(str(error))


if __name__ == "__main__":
    main()
