"""`tsm-triton stream SOURCE`: live video through a causal model, frame by frame."""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ...extras import check_installed
from ...streaming.stream import Streaming
from ...video.live import ConnectionLostError, without_login
from ..common import make_folder, pick_device, printable, read_labels
from ..demo import DEMO_WEIGHTS
from ..interrupt import Interrupt, stop_on_signal
from .annotation import Prediction, annotated_video, save_csv, save_json, save_timeline
from .sources import Source, open_source
from .weights import load_trained

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    check_installed("stream", "av", "matplotlib")
    if args.max_frames is not None and args.max_frames < 1:
        raise ValueError(f"expected --max-frames of at least 1, got {args.max_frames}: leave it out for all")
    if args.top < 1:
        raise ValueError(f"expected --top of at least 1, got {args.top}: leave it out for 5")
    device = pick_device(args.device)
    weights = _weights(args.weights)
    _check_files(args, weights)
    trained = load_trained(weights, args.model, args.direction)
    model = trained.model.to(device)
    labels = trained.classes if args.labels is None else read_labels(args.labels)
    stream = Streaming(model, consensus=args.consensus, every=args.every)
    preprocess = trained.transform()
    source, name = open_source(args.source), printable(without_login(args.source))
    make_folder(args.out)
    video, timeline = args.out / "annotated.mp4", args.out / "timeline.png"

    total = (
        args.max_frames
        if source.num_frames is None
        else min(source.num_frames, args.max_frames or sys.maxsize)
    )
    numbers: list[int] = []
    times: list[float] = []
    probabilities: list[Tensor] = []
    lost: list[ConnectionLostError] = []
    began = time.perf_counter()
    with stop_on_signal() as interrupt:
        pace, meter = _Pace(args.realtime, source.fps, interrupt), _Meter()
        with (
            tqdm(total=total, desc="Streaming", unit="frame", disable=None) as progress,
            annotated_video(video, source.fps) as writer,
        ):
            with _kept(lost):
                for number, frame, at in _until(source, interrupt, args.max_frames):
                    progress.update()
                    if not pace.keeps(at):
                        continue
                    started = time.perf_counter()
                    # a clip of one frame
                    logits = stream(preprocess(frame[None]).to(device))[0]
                    scores = logits.float().softmax(-1).cpu()
                    latency = time.perf_counter() - started
                    if labels is None:
                        labels = [f"class {i}" for i in range(len(scores))]
                    if len(labels) != len(scores):
                        raise ValueError(
                            f"expected {len(scores)} labels, one a class, got {len(labels)} in "
                            f"{str(args.labels or weights)!r}: pass --labels with one on each line"
                        )
                    confidence, best = scores.max(-1)
                    if not confidence.isfinite():
                        raise ValueError(
                            f"expected finite scores, got {confidence} for the frame at {at:.2f} s: train the model of "
                            f"{str(weights)!r} again, its weights or this frame's activations are no numbers"
                        )
                    writer.write(frame, at, labels[int(best)], confidence.item(), meter.tick())
                    numbers.append(number)
                    times.append(at)
                    probabilities.append(scores)
                    progress.set_postfix_str(
                        f"{labels[int(best)]} {confidence:.0%}, {1000 * latency:.0f} ms, {meter.fps:.0f} fps"
                        + (f", {pace.dropped} dropped" if pace.dropped else "")
                    )
            if not times:
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
        names = labels or []
        save_timeline(timeline, times, probabilities, names, f"{trained.name} on {name}")
        rows = zip(numbers, times, probabilities, strict=True)
        predictions = [Prediction.of(*row, names, args.top) for row in rows] if args.json or args.csv else []
        if args.json:
            save_json(args.json, predictions)
        if args.csv:
            save_csv(args.csv, predictions)

    ended = "Stopped after" if interrupt.asked else "Streamed"
    print(
        f"{ended} {len(times)} frames in {elapsed:.1f} s ({len(times) / elapsed:.1f} a second), dropped "
        f"{pace.dropped}; a stream remembers {stream.cache_bytes} bytes.\n"
        f"Wrote {_listed([video, timeline, args.json, args.csv])}."
    )
    for error in lost:
        print(f"tsm-triton: {error}", file=sys.stderr)
    return 1 if lost else 0


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


class _Pace:
    """Which frames of a source to take so as not to fall behind it."""

    def __init__(self, realtime: bool, fps: float, interrupt: Interrupt) -> None:
        self.realtime = realtime
        self.period = 1 / fps
        self.interrupt = interrupt
        self.dropped = 0
        self.start: float | None = None
        self.taken = 0.0

    def keeps(self, at: float) -> bool:
        """Wait for a frame's time, and say whether it is still worth taking."""
        if not self.realtime:
            return True
        if self.start is None:
            self.start = time.monotonic() - at
        while (early := self.start + at - time.monotonic()) > 0 and not self.interrupt.asked:
            time.sleep(min(early, 0.05))  # a signal does not end a sleep
        # one a second is taken all the same, where decoding alone is slower than the source
        if early < -self.period and at - self.taken < 1:
            self.dropped += 1
            return False
        self.taken = at
        return True


class _Meter:
    """Results a second, all work included, averaged over about the last ten."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.fps = 0.0

    def tick(self) -> float:
        now = time.perf_counter()
        rate = 1 / max(now - self.last, 1e-6)
        self.fps = 0.9 * self.fps + 0.1 * rate if self.fps else rate
        self.last = now
        return self.fps


def _weights(path: Path | None) -> Path:
    if path is None and not DEMO_WEIGHTS.exists():
        raise FileNotFoundError(
            f"expected the demo's trained weights at {str(DEMO_WEIGHTS)!r}, which does not exist. Run "
            "`tsm-triton demo --direction causal` in this folder first, or pass --model and --weights."
        )
    return path or DEMO_WEIGHTS


def _check_files(args: argparse.Namespace, weights: Path) -> None:
    """Raise for a file of predictions that could not be written in the end, or that would replace another one."""
    taken = {path.absolute() for path in (weights, args.labels, Path(args.source)) if path is not None}
    for option, path in (("--json", args.json), ("--csv", args.csv)):
        if path is None:
            continue
        if not path.absolute().parent.is_dir() or path.is_dir():
            raise ValueError(
                f"expected {option} to be a file in a folder that exists, got {str(path)!r}: pass another one"
            )
        if path.absolute() in taken:
            raise ValueError(
                f"expected {option} to be a file of its own, got {str(path)!r}, which is given for something "
                "else: pass another one"
            )
        taken.add(path.absolute())


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
