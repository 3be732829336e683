"""Whether a file is one whole video: FFmpeg reads what it finds at its beginning, without a word."""

import mmap
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av import VideoStream
    from av.container import InputContainer

__all__ = ["check_joined", "check_pages", "warn_of_cut"]

# of the formats that FFmpeg reads to the end of the first file joined byte by byte: how long their signature is, which
# no frame holds
HEADS = {"asf": 16, "flv": 13, "ivf": 12, "nut": 25, "yuv4mpegpipe": 10}
# the element of a Matroska file that holds all others but its header
SEGMENT = 0x18538067


def check_pages(path: str, stream: "VideoStream") -> None:
    """Raise for pictures in one file of which FFmpeg reads only the first, or none: a TIFF's, an animated WebP's."""
    if stream.codec_context.name not in ("tiff", "webp"):
        return
    from PIL import Image

    pages = 1
    with suppress(Exception), Image.open(path) as image:  # each of Pillow's formats fails in its own ways
        pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise ValueError(
            f"expected a video, got {path!r} with {pages} pictures, of which FFmpeg reads at most one: "
            "save it as a video, as an animated PNG or AVIF, or as a folder of images"
        )


def check_joined(path: str, container: "InputContainer") -> None:
    """Raise for files written one behind the other, byte by byte, of which FFmpeg reads only the first."""
    name = container.format.name
    if "mp4" in name:
        joined = sum(kind == b"moov" for kind, _ in _boxes(path)) > 1
    elif name in HEADS:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            head = data[: HEADS[name]]
            joined = data.find(head, len(head)) >= 0
    else:
        return
    if joined:
        raise ValueError(
            f"expected one video, got {path!r} with several joined byte by byte, of which FFmpeg reads only the "
            "first: join them with ffmpeg -f concat, or pass each"
        )


def _boxes(path: str) -> Iterator[tuple[bytes, int]]:
    """The kinds of an MP4's outermost boxes, each with where it ends: their sizes lead from one to the next."""
    with open(path, "rb") as file:
        while len(head := file.read(8)) == 8:
            start, size, read = file.tell() - 8, int.from_bytes(head[:4], "big"), 8
            if size == 1:  # it stands in 64 bits behind
                size, read = int.from_bytes(file.read(8), "big"), 16
            yield head[4:], start + size
            if size < read:  # 0: up to the end of the file
                return
            file.seek(start + size)


def warn_of_cut(path: str, container: "InputContainer") -> None:
    """Warn where a file is shorter than it says, as one whose download broke off: FFmpeg reads what is there."""
    name, size = container.format.name, os.path.getsize(path)
    if "mp4" in name:
        # what else follows may be no box
        stated = max((end for kind, end in _boxes(path) if kind in (b"mdat", b"moof", b"moov")), default=0)
    elif "matroska" in name:
        stated = _segment_end(path)
    elif name == "avi":
        with open(path, "rb") as file:
            stated = int.from_bytes(file.read(8)[4:], "little")  # some count these eight, some do not
        stated = 0 if stated == 0xFFFFFFFF else stated
    else:
        return
    if stated > size:
        warnings.warn(
            f"expected a whole video, got {path!r}, whose end is missing ({size:,} of at least {stated:,} bytes): "
            "only the frames before it are read. Copy or download it again.",
            stacklevel=4,
        )


def _segment_end(path: str) -> int:
    """Where the segment of a Matroska file ends, which follows its header; 0 where it does not say."""
    with open(path, "rb") as file:

        def number(keep_mark: bool) -> tuple[int, bool]:
            """Of one to eight bytes, as the leading zeros of the first tell; and whether all its bits are set."""
            first = file.read(1)
            length = 9 - first[0].bit_length() if first else 9
            if length > 8:
                return 0, True
            value = int.from_bytes(first + file.read(length - 1), "big")
            bits = value & ((1 << 7 * length) - 1)
            return (value if keep_mark else bits), bits == (1 << 7 * length) - 1

        for _ in range(4):  # the header, and what may fill the room behind it
            kind, (size, unknown) = number(True)[0], number(False)
            if unknown:
                return 0
            if kind == SEGMENT:
                return file.tell() + size
            file.seek(size, os.SEEK_CUR)
    return 0
