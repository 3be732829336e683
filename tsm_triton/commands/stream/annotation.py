"""What a stream leaves behind: a video with the predictions drawn on it, a timeline, and the numbers as a file."""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..common import printable, replacing
from ..ranking import likeliest

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

__all__ = ["AnnotatedVideo", "Prediction", "annotated_video", "save_csv", "save_json", "save_timeline"]

MIN_HEIGHT, MAX_HEIGHT, MAX_WIDTH = 240, 1080, 3840  # of the picture in the annotated video, in pixels
TICKS = 1000  # a second
SHOWN = 8  # classes in the timeline


class Prediction(NamedTuple):
    """What was made of a frame.

    Attributes:
        frame: its 0-based number in the source, frames that were dropped counted.
        time: in seconds from the first frame.
        top: the likeliest labels with their probabilities, the likeliest first.
    """

    frame: int
    time: float
    top: list[tuple[str, float]]

    @classmethod
    def of(cls, frame: int, time: float, logs: Tensor, labels: Sequence[str], top: int) -> "Prediction":
        """From the log-probabilities of a frame, `[num_classes]`."""
        return cls(frame, time, likeliest(logs, labels, top))


class AnnotatedVideo:
    """An MP4 that is being written; made by `annotated_video`."""

    def __init__(self, container: "OutputContainer", stream: "VideoStream") -> None:
        self.container = container
        self.stream = stream
        self.size: tuple[int, int] = (0, 0)  # of the picture, fixed by the first frame
        self.bar = 0
        self.pts = -1

    def write(self, frame: Tensor, time: float, label: str, confidence: float, fps: float) -> None:
        """Draw under a picture what was made of it, and encode it.

        Args:
            frame: uint8 `[3, H, W]`, RGB.
            time: in seconds from the first frame.
            label: of the class.
            confidence: its probability.
            fps: how many frames a second are processed.
        """
        import av
        from PIL import Image, ImageDraw, ImageFont

        picture = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
        if self.pts < 0:
            self._fix_size(*picture.size)
        canvas = Image.new("RGB", (self.size[0], self.size[1] + self.bar), (17, 17, 17))
        canvas.paste(picture.resize(self.size, Image.Resampling.BILINEAR))
        draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(self.bar * 0.55)
        draw.rectangle(
            (0, self.size[1], round(self.size[0] * confidence), self.size[1] + self.bar), fill=(0, 78, 122)
        )
        middle, margin = self.size[1] + self.bar / 2, self.bar / 4
        said = f"{printable(label)}  {confidence:.0%}"
        draw.text((margin, middle), said, (255, 255, 255), font, anchor="lm")
        rate = f"{fps:.0f} fps"
        if draw.textlength(f"{said}  {rate}", font) + 2 * margin < self.size[0]:
            draw.text((self.size[0] - margin, middle), rate, (200, 200, 200), font, anchor="rm")

        encoded = av.VideoFrame.from_image(canvas)
        self.pts = max(self.pts + 1, round(time * TICKS))
        with _writing(self.stream):
            encoded.pts, encoded.time_base = self.pts, self.stream.codec_context.time_base
            self.container.mux(self.stream.encode(encoded))

    def finish(self) -> None:
        with _writing(self.stream):
            if self.pts >= 0:
                self.container.mux(self.stream.encode(None))
            self.container.close()

    def _fix_size(self, width: int, height: int) -> None:
        # small pictures are enlarged until letters can be read on them; MP4 wants even sides
        scale = min(max(1.0, MIN_HEIGHT / height), MAX_HEIGHT / height, MAX_WIDTH / width)
        self.size = (max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2))
        self.bar = max(24, self.size[1] // 12 // 2 * 2)
        self.stream.width, self.stream.height = self.size[0], self.size[1] + self.bar


@contextmanager
def annotated_video(path: Path, fps: float) -> Iterator[AnnotatedVideo]:
    """Write an MP4: H.264, or MPEG-4 where FFmpeg comes without x264. It takes its name when it is whole.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: FFmpeg cannot write these frames, or their times.
    """
    from fractions import Fraction

    import av

    if "libx264" in av.codecs_available:
        codec, options = "libx264", {"crf": "20", "preset": "veryfast"}
    else:
        codec, options = "mpeg4", {"qmin": "2", "qmax": "5"}
    with replacing(path) as temporary, av.open(temporary, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=min(max(1, round(fps)), TICKS), options=options)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        video = AnnotatedVideo(container, stream)
        yield video
        video.finish()


@contextmanager
def _writing(stream: "VideoStream") -> Iterator[None]:
    from av.error import FFmpegError

    try:
        yield
    except (FFmpegError, OverflowError) as error:  # OverflowError: a time beyond 64 bits
        raise ValueError(
            f"expected frames that FFmpeg writes with {stream.codec.name}, got {error}: is there room, and are "
            "the source's size and times sound? Encode it again at a common size and a constant rate."
        ) from error


def save_timeline(
    path: Path, times: Sequence[float], probabilities: Sequence[Tensor], labels: Sequence[str], title: str
) -> None:
    """Draw the probabilities of the classes that were likeliest at any time.

    Args:
        path: of the PNG.
        times: of the frames, in seconds.
        probabilities: of each frame, `[num_classes]`.
        labels: of the classes.
        title: of the picture.
    """
    from matplotlib.figure import Figure

    values = torch.stack(list(probabilities)).float()
    chosen = values.amax(0).topk(min(SHOWN, values.shape[1])).indices.sort().values.tolist()
    figure = Figure(figsize=(9, 3.6), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    style = "." if len(times) == 1 else "-"
    lines = [axes.plot(times, values[:, i].tolist(), style)[0] for i in chosen]
    axes.set(xlabel="seconds", ylabel="probability", ylim=(0, 1.02))
    # a dollar in a name is no formula
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3)
    # names beside their lines, not as the lines' labels: one that begins with _ would be left out
    names = [printable(str(labels[i])) for i in chosen]
    legend = axes.legend(
        lines, names, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def save_json(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write an array with an object for each frame; of a file called .jsonl an object on each line."""
    rows = [
        json.dumps(
            {
                "frame": prediction.frame,
                "time": round(prediction.time, 6),
                "label": prediction.top[0][0],
                "score": prediction.top[0][1],
                "top": [{"label": label, "score": score} for label, score in prediction.top],
            },
            ensure_ascii=False,
        )
        for prediction in predictions
    ]
    lines = path.suffix.lower() == ".jsonl"
    with replacing(path) as temporary:
        temporary.write_text(
            "".join(f"{row}\n" for row in rows) if lines else "[\n" + ",\n".join(rows) + "\n]\n", "utf-8"
        )


def save_csv(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write a row for each frame: `frame,time,label,score`, then `label_2,score_2` and so on."""
    width = max((len(prediction.top) for prediction in predictions), default=1)
    names = [
        "label",
        "score",
        *(f"{name}_{rank}" for rank in range(2, width + 1) for name in ("label", "score")),
    ]
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["frame", "time", *names])
        for prediction in predictions:
            ranked = [value for pair in prediction.top for value in pair]
            writer.writerow([prediction.frame, round(prediction.time, 6), *ranked])
