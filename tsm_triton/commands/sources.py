"""Where live frames come from: a video file, a folder of images or a camera, all read in order."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..extras import requirements
from ..video.containers import Orientation, decode, demux, open_video
from ..video.decoding import probe
from .common import printable

__all__ = ["Source", "open_source"]

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
IMAGES_PER_SECOND = 25.0
# platform -> FFmpeg's input format, and what it calls camera number {}
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}


@dataclass(frozen=True)
class Source:
    """Frames to come.

    Attributes:
        frames: uint8 `[3, H, W]`, RGB, upright, each with its time in seconds from the first one.
        fps: their rate, as far as it is known before they are read.
        num_frames: how many there are, None of a camera.
    """

    frames: Iterator[tuple[Tensor, float]]
    fps: float
    num_frames: int | None


def open_source(source: str) -> Source:
    """Recognise a source and open it.

    Args:
        source: the path of a video file or of a folder of images (read in the order of their names), or the
            number of a camera. A file that is called `0` is `./0`.

    Raises:
        FileNotFoundError, ImportError, ValueError: there is no such thing, or it cannot be read.
    """
    if source.isdecimal():
        return _camera(int(source))
    if Path(source).is_dir():
        return _folder(Path(source))
    info = probe(source)
    fps = info.fps or IMAGES_PER_SECOND
    return Source(_video(source, fps), fps, info.num_frames)


def _video(path: str, fps: float) -> Iterator[tuple[Tensor, float]]:
    with open_video(path, threads=True) as (container, stream):
        start, orientation, size = None, None, (0, 0)
        for number, frame in enumerate(decode(demux(container, stream), stream)):
            if orientation is None:
                start, orientation, size = frame.time, Orientation.of(frame), (frame.width, frame.height)
            # a stream may change its size half-way: every frame takes the size of the first
            rgb = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
            time = None if start is None or frame.time is None else frame.time - start
            if time is None or not math.isfinite(time):  # a damaged time base
                time = number / fps
            yield orientation.apply(torch.from_numpy(rgb).permute(2, 0, 1)), time


def _folder(folder: Path) -> Source:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)
    if not paths:
        raise ValueError(
            f"expected a folder of images ({', '.join(IMAGES)}), got none in {str(folder)!r}: "
            "pass the folder they lie in"
        )

    frames = ((_image(path), number / IMAGES_PER_SECOND) for number, path in enumerate(paths))
    return Source(frames, IMAGES_PER_SECOND, len(paths))


def _image(path: Path) -> Tensor:
    from PIL import Image, ImageOps
    from torchvision.transforms.v2.functional import pil_to_tensor

    try:
        with Image.open(path) as image:
            return pil_to_tensor(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # each of Pillow's formats fails in its own ways
        raise ValueError(
            f"expected an image, got {str(path)!r}, which cannot be read ({printable(str(error))}): "
            "save it again, or take it out of the folder"
        ) from error


def _camera(index: int) -> Source:
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise ImportError(f"cameras need PyAV (module 'av'): pip install {requirements('av')}") from error
    if sys.platform not in CAMERAS:
        raise ValueError(
            f"expected a system with v4l2 or avfoundation, got {sys.platform}: pass a video file"
        )
    kind, name = CAMERAS[sys.platform]
    try:
        container = av.open(name.format(index), format=kind)
    except (FFmpegError, ValueError) as error:  # ValueError: FFmpeg was built without the format
        raise ValueError(
            f"expected a camera at {name.format(index)!r}, got none that {kind} can open ({error}). "
            "Check that it is plugged in, free and yours to read, or pass a video file."
        ) from error
    stream = container.streams.video[0]

    def frames() -> Iterator[tuple[Tensor, float]]:
        with container:
            start = None
            for frame in decode(demux(container, stream), stream):
                time = frame.time or 0.0
                start = time if start is None else start
                yield torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1), time - start

    return Source(frames(), float(stream.average_rate or IMAGES_PER_SECOND), None)
