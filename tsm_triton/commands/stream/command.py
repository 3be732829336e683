"""`tsm-triton stream SOURCE`: live video through a causal model, frame by frame."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from ...extras import check_installed
from ...progress import Bar
from ...streaming.stream import Streaming
from ...video.live import ConnectionLostError, without_login
from ...video.transforms import transform_for
from ..common import make_folder, pick_device, printable
from ..demo import DEMO_WEIGHTS
from ..exported import exported_file, exported_step
from ..interrupt import Interrupt, stop_on_signal
from ..labels import labels_for
from ..models import Said, Trained, load_trained_model
from ..outputs import check_writable, claim
from .annotation import AnnotatedVideo, annotated_video, save_csv, save_json, save_timeline
from .pace import Meter, Pace
from .seen import Seen
from .sources import Source, open_source

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    check_installed("stream", "av", "matplotlib")
    _check_counts(args)
    exported = exported_file(args.model, args.weights, "--weights")
    weights = exported or _weights(args.weights)
    _check_files(args, weights)
    if exported:
        step = exported_step(exported, Said.of(args).shift).on(args.device)
        device, trained = step.device, Trained(step, exported.stem, 1, step.said["labels"])
    else:
        device = pick_device(args.device)
        trained = load_trained_model(weights, Said.of(args), streamed=True)
    labels = labels_for(args.labels, trained.labels)
    seen = Seen(labels, str(args.labels or weights), str(weights))
    stream = Streaming(trained.model.to(device), consensus=args.consensus, every=args.every)
    preprocess = transform_for(trained.model)
    source, name = open_source(args.source), printable(without_login(args.source))
    make_folder(args.out)
    video, timeline = args.out / "annotated.mp4", args.out / "timeline.png"

    def predicted(frame: Tensor) -> Tensor:
        # a clip of one frame
        return stream(preprocess(frame[None]).to(device))[0].float().log_softmax(-1).cpu()

    lost: list[ConnectionLostError] = []
    began = time.perf_counter()
    with stop_on_signal() as interrupt:
        pace = Pace(args.realtime, source.fps, interrupt)
        with annotated_video(video, source.fps) as writer:
            with _kept(lost):
                _watch(source, args.max_frames, pace, predicted, seen, writer)
            if not seen.times:
                if interrupt.asked:
                    raise KeyboardInterrupt
                raise (
                    lost[0]
                    if lost
                    else ValueError(
                        f"expected frames, got none from {name!r}: does it play? Encode it again."
                    )
                )
        elapsed = time.perf_counter() - began
        save_timeline(timeline, seen.times, seen.probabilities, seen.names, f"{trained.name} on {name}")
        if args.json:
            save_json(args.json, seen.predictions(args.top))
        if args.csv:
            save_csv(args.csv, seen.predictions(args.top))

    ended = "Stopped after" if interrupt.asked else "Streamed"
    count = len(seen.times)
    print(
        f"{ended} {count} frames in {elapsed:.1f} s ({count / elapsed:.1f} a second), dropped {pace.dropped}; "
        f"a stream remembers {stream.cache_bytes} bytes.\n"
        f"Wrote {_listed([video, timeline, args.json, args.csv])}."
    )
    for error in lost:
        print(f"tsm-triton: {error}", file=sys.stderr)
    return 1 if lost else 0


def _watch(
    source: Source,
    max_frames: int | None,
    pace: Pace,
    predicted: Callable[[Tensor], Tensor],
    seen: Seen,
    writer: AnnotatedVideo,
) -> None:
    """Take a source's frames as they come, and draw each with what the model makes of it."""
    total = max_frames if source.num_frames is None else min(source.num_frames, max_frames or sys.maxsize)
    meter = Meter()
    with Bar(total, "Streaming", "frame") as bar:
        bar.say(f"Streaming {'until it is stopped' if total is None else f'{total} frames'}")
        for number, frame, at in _until(source, pace.interrupt, max_frames):
            if not pace.keeps(at):
                bar.update()
                continue
            started = time.perf_counter()
            label, confidence = seen.add(number, at, predicted(frame))
            latency = time.perf_counter() - started
            writer.write(frame, at, label, confidence, meter.tick())
            bar.update(
                f"{printable(label)} {confidence:.0%}, {1000 * latency:.0f} ms, {meter.fps:.0f} fps"
                + (f", {pace.dropped} dropped" if pace.dropped else "")
            )


@contextmanager
def _kept(lost: list[ConnectionLostError]) -> Iterator[None]:
    """A connection that broke ends the stream, and what came until then is kept."""
    try:
        yield
    except ConnectionLostError as error:
        lost.append(error)


def _listed(paths: list[Path | None]) -> str:
    *first, last = [printable(str(path)) for path in paths if path is not None]
    return f"{', '.join(first)} and {last}"


def _check_counts(args: argparse.Namespace) -> None:
    if args.max_frames is not None and args.max_frames < 1:
        raise ValueError(f"expected --max-frames of at least 1, got {args.max_frames}: leave it out for all")
    if args.top < 1:
        raise ValueError(f"expected --top of at least 1, got {args.top}: leave it out for 5")


def _weights(path: str | Path | None) -> str | Path:
    if path is None and not DEMO_WEIGHTS.exists():
        raise FileNotFoundError(
            f"expected the demo's trained weights at {str(DEMO_WEIGHTS)!r}, which does not exist. Run "
            "`tsm-triton demo --direction causal` in this folder first, or pass --model and --weights."
        )
    return path or DEMO_WEIGHTS


def _check_files(args: argparse.Namespace, weights: str | Path) -> None:
    """Raise for a file of predictions that could not be written in the end, or that would replace another one."""
    taken = {path.resolve() for path in (weights, args.labels, Path(args.source)) if isinstance(path, Path)}
    written = [("--out", args.out / "annotated.mp4"), ("--out", args.out / "timeline.png")]
    for option, path in (*written, ("--json", args.json), ("--csv", args.csv)):
        if path is None:
            continue
        if option == "--out":
            if path.is_dir():
                raise ValueError(
                    f"expected a file or nothing at {str(path)!r}, got a folder: pass another --out"
                )
        else:
            check_writable(option, path)
        claim(option, path, taken)


def _until(
    source: Source, interrupt: Interrupt, max_frames: int | None
) -> Iterator[tuple[int, Tensor, float]]:
    number = 0
    for item in source.frames:
        if item is not None:
            yield number, *item
            number += 1
        if interrupt.asked or number == max_frames:
            return
