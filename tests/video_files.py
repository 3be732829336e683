"""Small videos whose frames tell their number: a barcode of ten columns, white for the bits that are set."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.stream import Disposition
from torch import Tensor

BITS = 10
WIDTH, HEIGHT = 16 * BITS, 64


def barcode(number: int) -> np.ndarray:
    """The RGB picture `[HEIGHT, WIDTH, 3]` of a frame number below 1024."""
    bits = [number >> bit & 1 for bit in range(BITS)]
    row = np.repeat(np.array(bits, np.uint8) * 255, WIDTH // BITS)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3)))


def numbers(frames: Tensor) -> list[int]:
    """The frame numbers that pictures `[..., 3, HEIGHT, WIDTH]` show."""
    columns = frames.float().unflatten(-1, (BITS, -1)).mean(dim=(-4, -3, -1)) > 127
    return (columns * 2 ** torch.arange(BITS)).sum(-1).flatten().tolist()


def write_video(
    path: Path,
    num_frames: int = 60,
    *,
    codec: str = "libx264",
    gop: int = 12,
    b_frames: int = 2,
    times: Sequence[int] | None = None,
    rotation: float | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    container_options: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Encode barcodes, 25 a second or at `times` in 1/25 s; the path's suffix names the container."""
    with av.open(path, "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options={"g": str(gop), "bf": str(b_frames), **options})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number, time in enumerate(times if times is not None else range(num_frames)):
            frame = av.VideoFrame.from_ndarray(barcode(number)).reformat(*size)
            frame.pts, frame.time_base = time, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path, *, cover: bool = False) -> Path:
    """A fifth of a second of silence, with a cover picture if asked."""
    with av.open(path, "w") as container:
        stream = container.add_stream("mp3", rate=44100)
        picture = container.add_stream("mjpeg", rate=1) if cover else None
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8)).reformat(format="yuvj420p")
            container.mux(picture.encode(frame) + picture.encode(None))
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8820), np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        container.mux(stream.encode(sound) + stream.encode(None))
    return path
