"""Load the server with cameras of different paces that come and go: `python -m examples.stream_server.load_test`.

A camera has a rate of its own, shows jittered frames of a moving texture, and skips those that fall due while it
waits for an answer, as a live one must. It leaves after one to four seconds, and another takes its place. Server and
cameras share one process; the model has one thread.
"""

import argparse
import asyncio
import io
import math
import random
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

import tsm_triton
from tsm_triton.backbones import create_backbone
from tsm_triton.commands.demo.motion_clips import CLASSES, render, sample_textures
from tsm_triton.streaming.batching import Batcher
from tsm_triton.video.transforms import eval_transform

from .connection import Camera, listening

HEAD = (
    "streams",
    "frames a tick",
    "offered / s",
    "answered / s",
    "skipped",
    "mean batch",
    "p50 ms",
    "p95 ms",
    "p99 ms",
)


@dataclass
class Tally:
    """What came of a run."""

    seconds: list[float] = field(default_factory=list)  # from a picture to its answer
    skipped: int = 0
    joined: int = 0


async def camera(port: int, pictures: Sequence[bytes], fps: float, seconds: float, tally: Tally) -> None:
    """Show pictures at a rate for a while."""
    tally.joined += 1
    async with Camera("127.0.0.1", port) as connection:
        began = due = time.perf_counter()
        number = 0
        while due < began + seconds:
            await asyncio.sleep(due - time.perf_counter())
            sent = time.perf_counter()
            answer = await connection.show(pictures[number % len(pictures)])
            if "label" not in answer:
                raise RuntimeError(f"expected a prediction, got {answer}")
            tally.seconds.append(time.perf_counter() - sent)
            due, number = due + random.uniform(0.8, 1.2) / fps, number + 1
            while due < time.perf_counter():
                due, number = due + 1 / fps, number + 1
                tally.skipped += 1


async def place(port: int, pictures: Sequence[bytes], mean_fps: float, until: float, tally: Tally) -> None:
    """One camera after another."""
    await asyncio.sleep(random.uniform(0, 1 / mean_fps))
    while (left := until - time.perf_counter()) > 0:
        fps = mean_fps * random.uniform(0.5, 1.5)
        await camera(port, pictures, fps, min(left, random.uniform(1, 4)), tally)


async def run(
    model: nn.Module, size: int, streams: int, fps: float, max_batch: int, seconds: float
) -> tuple[Tally, Batcher]:
    """Keep `streams` cameras connected for a while."""
    tally, pictures = Tally(), moving_pictures()
    async with (
        Batcher(model, (3, size, size), capacity=streams, max_batch=max_batch) as batcher,
        listening(batcher, eval_transform(size, short_side=size), CLASSES) as port,
    ):
        until = time.perf_counter() + seconds
        await asyncio.gather(*(place(port, pictures, fps, until, tally) for _ in range(streams)))
    return tally, batcher


def moving_pictures() -> list[bytes]:
    """JPEGs of a texture that moves."""
    texture = sample_textures(1, torch.Generator().manual_seed(0))
    pictures = []
    for frame in render(texture, torch.tensor([0]), 16, 160)[0]:
        file = io.BytesIO()
        Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(file, "jpeg")
        pictures.append(file.getvalue())
    return pictures


def row(tally: Tally, batcher: Batcher, streams: int, max_batch: int, seconds: float) -> list[str]:
    """A line of the table, under `HEAD`."""
    answered = len(tally.seconds)
    offered = answered + tally.skipped
    times = tally.seconds if answered > 1 else 2 * (tally.seconds or [math.nan])
    percentiles = statistics.quantiles(times, n=100)
    return [
        str(streams),
        f"at most {max_batch}",
        f"{offered / seconds:.0f}",
        f"{answered / seconds:.0f}",
        f"{tally.skipped / max(offered, 1):.0%}",
        f"{answered / max(batcher.batches.total(), 1):.1f}",
        *(f"{1000 * percentiles[p - 1]:.0f}" for p in (50, 95, 99)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.stream_server.load_test", description=__doc__)
    add = parser.add_argument
    add("--model", default="mobilenetv2_100", help="random weights (default: %(default)s)")
    add("--size", type=int, default=128, help="of its input in pixels (default: %(default)s)")
    add("--fps", type=float, default=5, help="mean rate of a camera (default: %(default)s)")
    add("--streams", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    add("--seconds", type=float, default=10, help="for each row (default: %(default)s)")
    add("--write", type=Path, metavar="README", help="put the table between its two markers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    model = tsm_triton.patch(create_backbone(args.model, num_classes=len(CLASSES)), direction="causal").eval()

    lines = ["| " + " | ".join(HEAD) + " |", "|" + " ---: |" * len(HEAD)]
    runs = [(streams, max_batch) for max_batch in (1, 32) for streams in args.streams]
    for streams, max_batch in tqdm(runs, desc="Load test", disable=None):
        done = asyncio.run(run(model, args.size, streams, args.fps, max_batch, args.seconds))
        lines.append("| " + " | ".join(row(*done, streams, max_batch, args.seconds)) + " |")
    table = "\n".join(lines)
    print(table)
    if args.write is not None:
        text = args.write.read_text()
        args.write.write_text(
            re.sub(r"(<!-- load test -->\n).*(<!-- end -->)", rf"\g<1>{table}\n\2", text, flags=re.DOTALL)
        )


if __name__ == "__main__":
    main()
