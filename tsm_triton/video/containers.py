"""Video files as PyAV opens them: their video stream, its packets and frames, and which way up these are."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..extras import requirements

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

__all__ = ["MAX_PIXELS", "Orientation", "decode", "demux", "open_video"]

# 8192 x 8192: twice 8K television, 192 MiB a frame in RGB. More is a broken or a hostile file.
MAX_PIXELS = 8192 * 8192
MAX_THREADS = 8


@contextmanager
def open_video(path: str, *, threads: bool = False) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """An open file and its first video stream that is more than a cover picture.

    Args:
        path: of the file.
        threads: decode several frames at once, which loses good ones beside a damaged one.

    Raises:
        FileNotFoundError, ImportError, ValueError: as for `tsm_triton.video.probe`.
    """
    try:
        import av
        from av.error import FFmpegError
        from av.stream import Disposition
    except ImportError as error:
        raise ImportError(
            f"reading videos needs PyAV (module 'av'): pip install {requirements('av')}"
        ) from error
    if not os.path.exists(path):
        raise FileNotFoundError(f"expected a video file, got {path!r}, which does not exist: check the path")
    if os.path.isdir(path):
        raise ValueError(f"expected a video file, got the directory {path!r}: pass one of its files")
    if os.path.getsize(path) == 0:
        raise ValueError(f"expected a video file, got {path!r}, which is empty: copy it again")
    try:
        # An absolute path, or FFmpeg reads "a:b.mp4" as a URL; tags in an unknown encoding must not raise.
        # A file may be a playlist in disguise: it may name other files, but fetch nothing.
        options = {"protocol_whitelist": "file"}
        container = av.open(os.path.abspath(path), metadata_errors="replace", options=options)
    except FFmpegError as error:
        raise ValueError(
            f"expected a video file, got {path!r}, which FFmpeg cannot read ({error.strerror}): "
            "is it a video? Copy it again, completely."
        ) from error
    with container:
        # The cover picture of a song is a video stream to FFmpeg.
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            kinds = ", ".join(sorted({s.type for s in container.streams} - {"video"})) or "no streams"
            raise ValueError(
                f"expected a file with a video stream, got {path!r} with {kinds} only: pass another file"
            )
        stream = streams[0]
        if stream.codec_context is None:
            raise ValueError(
                f"expected a video that can be decoded, got {path!r} in a codec that FFmpeg does not know: is it "
                "damaged? Copy or encode it again."
            )
        if stream.width * stream.height > MAX_PIXELS:
            raise ValueError(
                f"expected frames of at most MAX_PIXELS = {MAX_PIXELS} pixels, got {stream.width} x "
                f"{stream.height} from {path!r}: scale the video down first"
            )
        # a DataLoader's workers set torch to one thread
        stream.thread_type = "AUTO" if threads else "SLICE"
        stream.thread_count = min(MAX_THREADS, torch.get_num_threads()) if threads else 1
        yield container, stream


def demux(container: "InputContainer", stream: "VideoStream") -> Iterator["Packet[VideoStream] | None"]:
    """The packets of a stream; the last, empty or None, flushes the decoder."""
    from av.error import FFmpegError

    try:
        yield from container.demux(stream)
    except (FFmpegError, IndexError):  # the file ends here, whatever its header promised or PyAV makes of it
        yield None


def decode(packets: Iterator["Packet[VideoStream] | None"], stream: "VideoStream") -> Iterator["VideoFrame"]:
    """The frames in display order, less those that cannot be decoded."""
    from av.error import FFmpegError

    for packet in packets:
        try:
            frames = stream.decode(packet)
        except FFmpegError:
            continue
        yield from frames


class Orientation(NamedTuple):
    """How a coded frame is turned upright: its axes exchanged first, then mirrored."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of(cls, frame: "VideoFrame") -> "Orientation":
        data: Any = frame.side_data.get("DISPLAYMATRIX")
        return cls() if data is None else cls.from_matrix(memoryview(bytes(data)).cast("i"))

    @classmethod
    def from_matrix(cls, matrix: Sequence[int]) -> "Orientation":
        a, b, _, c, d = matrix[:5]  # (x, y) goes to (a*x + c*y, b*x + d*y)
        return cls(True, c < 0, b < 0) if abs(b) > abs(a) else cls(False, a < 0, d < 0)

    @property
    def rotation(self) -> int:
        # Where the frame is also mirrored: the rotation that follows a left-right flip.
        if self.transpose:
            return 270 if self.mirror_x else 90
        return 180 if self.mirror_y else 0

    def size(self, width: int, height: int) -> tuple[int, int]:
        return (height, width) if self.transpose else (width, height)

    def apply(self, frame: Tensor) -> Tensor:
        frame = frame.transpose(-2, -1) if self.transpose else frame
        return frame.flip([axis for axis, mirrored in ((-1, self.mirror_x), (-2, self.mirror_y)) if mirrored])
