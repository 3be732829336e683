"""Damage videos that this project encodes and read them: every one is read or refused, none takes the run down.

    python -m tests.fuzz_videos --count 10000 --out docs/fuzzing.md
    python -m tests.fuzz_videos --seed 123 --count 1     # one video again

Each is read twice, as `read_clip` reads and as `tsm-triton stream` does, in a child process with bounded memory
and time; a child that dies or hangs is counted, named by its seed, and replaced.
"""

import argparse
import math
import multiprocessing
import platform
import random
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from tqdm import tqdm

from .damage import damaged

# One frame may take MAX_PIXELS = 192 MiB in RGB; a decoder holds some more of them.
MEMORY = 4 << 30
SECONDS = 60
SOURCES = {
    "h264.mp4": dict(codec="libx264"),
    "fragmented.mp4": dict(codec="libx264", container_options={"movflags": "frag_keyframe+empty_moov"}),
    "mpeg4.avi": dict(codec="mpeg4"),
    "h264.mkv": dict(codec="libx264"),
    "vp8.webm": dict(codec="libvpx", b_frames=0),
    "mpeg2.ts": dict(codec="mpeg2video"),
    "h264.flv": dict(codec="libx264"),
    "rotated.mov": dict(codec="libx264", rotation=90.0),
    "thousand_fps.mp4": dict(codec="libx264", times=range(0, 20)),
}


def damage(data: bytes, rng: random.Random) -> bytes:
    """Break a file in one to three ways."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(DAMAGES)(bytearray(data), rng)
    return data


def _truncated(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(len(data) + 1)])


def _flipped(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 4, 32, 256)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _head_flipped(data: bytearray, rng: random.Random) -> bytes:
    return damaged(data, rng, 1024) if data else b""


def _extreme_number(data: bytearray, rng: random.Random) -> bytes:
    """A size, a count or a time becomes the smallest or largest there is."""
    width = rng.choice((1, 2, 4, 8))
    at = rng.randrange(max(1, len(data) - width))
    data[at : at + width] = rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * width
    return bytes(data)


def _run(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 16, 256, 4096)))


def _removed(data: bytearray, rng: random.Random) -> bytes:
    start, end = _run(data, rng)
    return bytes(data[:start] + data[end:])


def _zeroed(data: bytearray, rng: random.Random) -> bytes:
    start, end = _run(data, rng)
    return bytes(data[:start] + bytes(end - start) + data[end:])


def _repeated(data: bytearray, rng: random.Random) -> bytes:
    start, end = _run(data, rng)
    return bytes(data[:end] + data[start:])


# what a message says -> how it is counted
REASONS = {
    "which FFmpeg cannot read": "FFmpeg cannot read it",
    "is empty": "empty",
    "got no frame": "no frame",
    "does not know": "unknown codec",
    "MAX_PIXELS": "too large",
    "with a video stream": "no video stream",
}
DAMAGES = (_truncated, _flipped, _head_flipped, _extreme_number, _removed, _zeroed, _repeated)


def read(folder: Path, seed: int) -> str:
    """Damage the video of a seed and read it both ways; what came of each, in a few words."""
    rng = random.Random(seed)
    name = rng.choice(list(SOURCES))
    path = folder / f"damaged-{seed}-{name}"
    path.write_bytes(damage((folder / name).read_bytes(), rng))
    try:
        clip, streamed = _outcome(_read_clip, path), _outcome(_stream, path)
    finally:
        path.unlink(missing_ok=True)
    return f"{clip} | {streamed}"


def _outcome(reading: Callable[[Path], str], path: Path) -> str:
    try:
        return reading(path)
    except ValueError as error:
        for words, reason in REASONS.items():
            if words in str(error):
                return f"refused: {reason}"
        raise


def _read_clip(path: Path) -> str:
    from tsm_triton.video import read_clip

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clip = read_clip(path, num_segments=3)
    assert clip.shape[:3] == (1, 3, 3), clip.shape
    return "read, some frames stood in for others" if caught else "read"


def _stream(path: Path) -> str:
    from tsm_triton.commands.stream.sources import open_source

    source, shapes = open_source(str(path)), set()
    for frame, at in source.frames:
        assert math.isfinite(at), at
        shapes.add((frame.dtype, *frame.shape))
    assert len(shapes) <= 1, shapes
    return "read" if shapes else "refused: no frame"


def _child(folder: Path, pipe: Connection) -> None:
    import av.logging
    import torch

    import tsm_triton.commands.stream.sources  # noqa: F401

    av.logging.set_level(av.logging.PANIC)
    torch.set_num_threads(1)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    while True:
        try:
            seed = pipe.recv()
        except EOFError:
            return
        try:
            outcome = read(folder, seed)
        except BaseException as error:
            outcome = f"FAILED: {type(error).__name__}: {error}"
        pipe.send((outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10))


class Reader:
    """A child process that reads, with another in its place when it dies or hangs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: multiprocessing.process.BaseProcess | None = None

    def read(self, seed: int) -> tuple[int, str, int]:
        """The seed, what came of it, and the most MiB that the child has held."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=_child, args=(self.folder, other), daemon=True)
            self.process.start()
            other.close()
        self.pipe.send(seed)
        try:
            if self.pipe.poll(SECONDS):
                return (seed, *self.pipe.recv())
            outcome = f"FAILED: no answer in {SECONDS} s"
        except EOFError:
            self.process.join()
            outcome = f"FAILED: the process died ({self.process.exitcode})"
        self.close()
        return seed, outcome, 0

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def fuzz(count: int, start: int = 0, jobs: int = 2) -> tuple[Counter[str], list[str], int]:
    """Read `count` damaged videos: a tally of outcomes, the failures with their seeds, the largest child in MiB."""
    from .video_files import write_video

    tally, failures, largest = Counter[str](), list[str](), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source, options in SOURCES.items():
            write_video(folder / source, 20, gop=5, **options)  # type: ignore[arg-type]
        readers = SimpleQueue[Reader]()
        for _ in range(jobs):
            readers.put(Reader(folder))

        def work(seed: int) -> tuple[int, str, int]:
            reader = readers.get()
            try:
                return reader.read(seed)
            finally:
                readers.put(reader)

        with ThreadPoolExecutor(jobs) as pool:
            # counted here and not by the threads: tqdm's lock stays held where a signal has ended a bar
            results = tqdm(pool.map(work, range(start, start + count)), total=count, unit="video")
            for seed, outcome, mebibytes in results:
                largest = max(largest, mebibytes)
                tally[outcome.partition(": no answer")[0].partition(": the process")[0]] += 1
                if outcome.startswith("FAILED"):
                    failures.append(f"seed {seed}: {outcome}")
        while not readers.empty():
            readers.get().close()
    return tally, failures, largest


def page(tally: Counter[str], failures: list[str], seeds: str, took: str) -> str:
    """What came of a run, as Markdown."""
    import av

    ffmpeg = ", ".join(f"{name} {'.'.join(map(str, v))}" for name, v in av.library_versions.items())
    lines = [
        "# Damaged videos",
        "",
        f"Written by `python -m tests.fuzz_videos --out`: seeds {seeds}, with PyAV {av.__version__} ({ffmpeg}) and",
        f"Python {platform.python_version()}. {took}; {len(failures)} failures.",
        "",
        f"Each is one of {len(SOURCES)} small videos ({', '.join(sorted(SOURCES))}), cut short or with bits,",
        "numbers or stretches of it changed, and is read by `read_clip` and by the decoding loop of `tsm-triton",
        "stream`, in a process with bounded memory and time. A file is read, or refused with a `ValueError` that",
        "says why; another error, a crash or a minute without an answer is a failure.",
        "",
        "| videos | `read_clip` | `tsm-triton stream` |",
        "|---:|---|---|",
    ]
    rows = [
        f"| {count} | {outcome if '|' in outcome else outcome + ' | '} |"
        for outcome, count in tally.most_common()
    ]
    return (
        "\n".join([*lines, *rows, *(["", *(f"- {failure}" for failure in failures)] if failures else [])])
        + "\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_videos", description=__doc__)
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0, help="the first video's")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tally as a page of Markdown")
    args = parser.parse_args()
    start = time.perf_counter()
    tally, failures, largest = fuzz(args.count, args.seed, args.jobs)
    for outcome, count in tally.most_common():
        print(f"{count:6}  {outcome}")
    took = f"{args.count} videos in {time.perf_counter() - start:.0f} s, largest reader {largest} MiB"
    print(took)
    for failure in failures:
        print(failure)
    if args.out is not None:
        seeds = f"{args.seed} to {args.seed + args.count - 1}"
        args.out.write_text(page(tally, failures, seeds, took), "utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
