"""Videos a second that one core reads and prepares for training, beside those that the model takes.

A video gives 8 frames at 224 pixels. Decoded frames per used frame are counted: the frames that the decoder gave for
the eight that were used. Times of a core are processor time: others on the machine do not lengthen it by their turns.
"""

import io
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

import tsm_triton
from tsm_triton.video import decoding, pictures, read_frames
from tsm_triton.video.datasets import Listing, Sample, VideoDataset, read_shards
from tsm_triton.video.transforms import train_transform

from .gate import require_close
from .page import percent, table
from .run import Build, Measure, Row, Run
from .timing import in_turns, summary

NUM_SEGMENTS, SIZE, SHORT_SIDE = 8, 224, 256
NUM_FRAMES, FPS = 300, 30
MODEL = "resnet50"
PICTURES, SHARDS = "340x256, a JPEG a frame", "340x256, a keyframe every 250, tar shards"
# width, height; how many frames from one keyframe to the next, x264's own 250 or a second
SOURCES = {
    "340x256, a keyframe every 250": (340, 256, 250),
    "340x256, a keyframe every 30": (340, 256, 30),
    "1280x720, a keyframe every 250": (1280, 720, 250),
}


def cases(run: Run) -> dict[str, Build]:
    """A case a source, for one core, and the model's videos a second on the device."""
    names = [*list(SOURCES)[: 1 if run.quick else None], PICTURES, SHARDS]
    built: dict[str, Build] = {name: partial(build, run, name) for name in names}
    return {**built, MODEL: lambda: partial(model_rates, run.device, run.quick)}


def build(run: Run, name: str) -> Measure:
    """Write the source, to be read in its turn."""
    folder = tempfile.TemporaryDirectory()
    path = write(Path(folder.name), name)
    measured = shard_row if name == SHARDS else row

    def rows() -> list[Row]:
        with folder, _one_thread():
            return [{"source": name, **measured(path, 8 if run.quick else 31)}]

    return rows


def write(folder: Path, name: str) -> Path:
    """One of the sources, or the first one's pictures, or its film for tar shards."""
    path = _write(folder / "video.mp4", *SOURCES.get(name, next(iter(SOURCES.values()))))
    return _as_pictures(path) if name == PICTURES else path


def row(path: Path, repeats: int) -> dict[str, Any]:
    """Processor seconds of one video as it is trained on, a new clip each time, and what was decoded for it."""
    if path.is_file():
        _check(path)
    transform = train_transform(SIZE, flip=False)
    listing = Listing((Sample(str(path), 0),), ("one",))
    dataset = VideoDataset(listing, NUM_SEGMENTS, transform=transform, training=True, size=SHORT_SIDE)

    def epochs() -> Iterator[Any]:
        for epoch in range(repeats):
            dataset.set_epoch(epoch)
            yield dataset[0]

    return _timed(epochs(), repeats)


def shard_row(path: Path, repeats: int) -> dict[str, Any]:
    """The same out of a tar file, front to back by webdataset, which holds the video so many times."""
    film, shard = path.read_bytes(), path.with_suffix(".tar")
    with tarfile.open(shard, "w") as tar:
        for number in range(repeats):
            for name, data in ((f"{number:04d}{path.suffix}", film), (f"{number:04d}.cls", b"0")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    transform = train_transform(SIZE, flip=False)
    options: dict[str, Any] = dict(transform=transform, training=True, size=SHORT_SIDE, shuffle=1)
    return _timed(read_shards(shard, NUM_SEGMENTS, classes=("one",), **options), repeats)


def _timed(videos: Iterable[Any], count: int) -> dict[str, Any]:
    """Processor seconds from each video to the next, and the frames that were decoded."""
    seconds, used, items = list[float](), 0, iter(videos)
    with _counted() as decoded:
        for _ in range(count):
            started = time.process_time()
            clip, _ = next(items)
            seconds.append(time.process_time() - started)
            used += len(clip)
    timing = summary(seconds)
    return {
        "videos_per_second": 1 / timing.median,
        "spread": timing.spread,
        "decoded_per_used": len(decoded) / used,
    }


def model_rates(device: str, quick: bool) -> list[dict[str, Any]]:
    """Videos a second of the patched network, in inference and on a GPU in training."""
    clips, dtype = (1, torch.float32) if device == "cpu" else (16, torch.bfloat16)
    model = timm.create_model(MODEL).to(device, dtype).to(memory_format=torch.channels_last)
    model = tsm_triton.patch(model, NUM_SEGMENTS)
    shape = (clips * NUM_SEGMENTS, 3, SIZE, SIZE)
    x = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    if device == "cpu":
        return [_rate_of_a_core(model.eval(), x, clips, 3 if quick else 7)]
    calls = {"inference": torch.inference_mode()(model.eval().forward)}
    rows = _rates(calls, x, clips, 3 if quick else 11)
    model.train()
    return rows + _rates({"training": lambda x: _step(model, x)}, x, clips, 3 if quick else 11)


@torch.inference_mode()
def _rate_of_a_core(model: nn.Module, x: torch.Tensor, clips: int, repeats: int) -> dict[str, Any]:
    """Without a GPU: one core, which would have to load the videos too."""
    seconds = []
    with _one_thread():
        model(x)
        for _ in range(repeats):
            started = time.process_time()
            model(x)
            seconds.append(time.process_time() - started)
    timing = summary(seconds)
    rate = clips / timing.median
    return {"model": MODEL, "form": "inference, a core", "videos_per_second": rate, "spread": timing.spread}


def _rates(calls: dict[str, Any], x: torch.Tensor, clips: int, repeats: int) -> list[dict[str, Any]]:
    return [
        {"model": MODEL, "form": form, "videos_per_second": clips / timing.median, "spread": timing.spread}
        for form, timing in in_turns(calls, [x], repeats).items()
    ]


def _step(model: nn.Module, x: torch.Tensor) -> None:
    model.zero_grad(set_to_none=True)
    model(x).float().square().mean().backward()


def _check(path: Path) -> None:
    """The frames that are read by their number are those of a decoding from the start."""
    wanted = list(range(7, NUM_FRAMES, NUM_FRAMES // NUM_SEGMENTS))
    kept = [frame for number, (frame, _) in enumerate(decoding.play(path)[1]) if number in set(wanted)]
    require_close(f"frames of {path.name}", read_frames(path, wanted).float(), torch.stack(kept).float(), 0)


@contextmanager
def _counted() -> Iterator[list[int | None]]:
    """The frames that decoders give meanwhile."""
    seen, decode, picture = [], decoding.decode, pictures._picture

    def counting(packets: Any, stream: Any) -> Any:
        for frame in decode(packets, stream):
            seen.append(frame.pts)
            yield frame

    def counting_picture(*arguments: Any) -> Any:
        seen.append(None)
        return picture(*arguments)

    decoding.decode, pictures._picture = counting, counting_picture
    try:
        yield seen
    finally:
        decoding.decode, pictures._picture = decode, picture


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as a DataLoader's workers have it; the decoder follows
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write(path: Path, width: int, height: int, gop: int) -> Path:
    """Ten seconds of a texture under a camera that pans, with a grain of its own in each frame."""
    rng = np.random.default_rng(0)
    margin = height // 4
    coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, 24, 32))).float()
    picture = interpolate(coarse, (height + 2 * margin, width + 2 * margin), mode="bicubic")
    picture = picture.clamp(0, 255)[0].permute(1, 2, 0).numpy()
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": str(gop), "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(NUM_FRAMES):
            x = int(margin * (1 + np.sin(number / 25)))
            y = int(margin * (1 + np.cos(number / 31)))
            grain = rng.integers(-8, 9, (height, width, 1))
            pixels = (picture[y : y + height, x : x + width] + grain).clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _as_pictures(path: Path) -> Path:
    folder = path.with_suffix("")
    folder.mkdir()
    for number, (frame, _) in enumerate(decoding.play(path)[1], 1):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"{number:05d}.jpg")
    return folder


def lines(rows: list[Row]) -> list[str]:
    sources = [row for row in rows if "source" in row]
    models = [row for row in rows if "model" in row]
    return [
        *table(
            ["ten seconds of H.264", "videos/s a core", "spread", "decoded frames per used frame"],
            [
                [
                    row["source"],
                    f"{row['videos_per_second']:.1f}",
                    percent(row["spread"]),
                    f"{row['decoded_per_used']:.1f}",
                ]
                for row in sources
            ],
        ),
        "",
        *table(
            ["model, eager", "form", "videos/s", "spread"],
            [
                [row["model"], row["form"], f"{row['videos_per_second']:.1f}", percent(row["spread"])]
                for row in models
            ],
        ),
    ]
