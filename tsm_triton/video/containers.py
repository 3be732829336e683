"""Video files as PyAV opens them: their video stream, its packets and frames, and which way up these are."""

import functools
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..extras import requirements

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

__all__ = [
    "LEAP",
    "MAX_PIXELS",
    "MOMENT",
    "Orientation",
    "Upright",
    "decode",
    "demux",
    "film_among",
    "film_of",
    "leap_of",
    "open_video",
    "prepare",
    "scaled",
    "tracks_of",
]

# 8192 x 8192: twice 8K television, 192 MiB a frame in RGB. More is a broken or a hostile file.
MAX_PIXELS = 8192 * 8192
MAX_THREADS = 8
LEAP = 10.0  # seconds
MOMENT = 1e-9  # seconds that a track of one picture lasts, whatever it says: an AVIF's says a second
# the display matrices of 0, 90, 180 and 270 degrees counterclockwise
QUARTERS = ((1, 0, 0, 0, 1), (0, -1, 0, 1, 0), (-1, 0, 0, 0, -1), (0, 1, 0, -1, 0))


@contextmanager
def open_video(
    path: str, track: int | None = None, *, threads: bool = False
) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """An open file and the track in it that is the film.

    Args:
        path: of the file.
        track: the stream's index where it is known. Among several, finding it costs a pass over the packets.
        threads: decode several frames at once, which loses good ones beside a damaged one.

    Raises:
        FileNotFoundError, ImportError, ValueError: as for `tsm_triton.video.probe`.
    """
    with _opened(path) as container:
        tracks = tracks_of(container, path)
        if track is None and len(tracks) == 1:
            track = tracks[0].index
        if track is not None:
            stream: Any = container.streams[track]
            prepare(stream, path, threads)
            yield container, stream
            return
        track = film_among(tracks, container.demux(*tracks), leap_of(container)).index
    with open_video(path, track, threads=threads) as opened:
        yield opened


def _opened(path: str) -> "InputContainer":
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise ImportError(
            f"reading videos needs PyAV (module 'av'): pip install {requirements('av')}"
        ) from error
    if not os.path.exists(path):
        raise FileNotFoundError(f"expected a video file, got {path!r}, which does not exist: check the path")
    if os.path.isdir(path):
        raise ValueError(f"expected a video file, got the directory {path!r}: pass one of its files")
    if not os.path.isfile(path):
        raise ValueError(
            f"expected a video file, got {path!r}, a pipe or a device: save what comes as a file, or pass a camera's "
            "number to tsm-triton stream"
        )
    if os.path.getsize(path) == 0:
        raise ValueError(f"expected a video file, got {path!r}, which is empty: copy it again")
    try:
        # An absolute path, or FFmpeg reads "a:b.mp4" as a URL; tags in an unknown encoding must not raise.
        # A file may be a playlist in disguise: it may name other files, but fetch nothing. Nor is im%d.png a
        # pattern that stands for other files.
        options = {"protocol_whitelist": "file", "pattern_type": "none"}
        return av.open(os.path.abspath(path), metadata_errors="replace", options=options)
    except FFmpegError as error:
        raise ValueError(
            f"expected a video file, got {path!r}, which FFmpeg cannot read ({error.strerror}): "
            "is it a video? Copy it again, completely."
        ) from error


def tracks_of(container: "InputContainer", path: str) -> list["VideoStream"]:
    """The video streams that are neither the cover picture of a song nor a part of another's picture."""
    from av.stream import Disposition

    apart = Disposition.attached_pic | Disposition.dependent
    tracks = [stream for stream in container.streams.video if not stream.disposition & apart]
    if not tracks:
        kinds = ", ".join(sorted({s.type for s in container.streams} - {"video"}))
        kinds = kinds or ("cover pictures" if container.streams.video else "no streams")
        raise ValueError(
            f"expected a file with a video stream, got {path!r} with {kinds} only: pass another file"
        )
    return tracks


def leap_of(container: "InputContainer") -> float:
    """Seconds; a longer step of the container's clock is a jump. Only a broadcast's clock jumps."""
    from av.format import Flags

    return LEAP if container.format.flags & Flags.ts_discont.value else math.inf


def film_among(tracks: list["VideoStream"], packets: "Iterable[Packet[Any]]", leap: float) -> "VideoStream":
    """The track that `film_of` takes by the times of packets, or by how many there are where times say nothing."""
    from av.error import FFmpegError

    counts, spans, before = Counter[int](), Counter[int](), dict[int, int | None]()
    longest = {track.index: leap / track.time_base if track.time_base else 0 for track in tracks}
    with suppress(FFmpegError, IndexError):  # as in `demux`
        for packet in packets:
            if not packet.size:
                continue
            index, at = packet.stream_index, packet.pts if packet.dts is None else packet.dts
            counts[index] += 1
            if at is not None and (last := before.get(index)) is not None and 0 < at - last <= longest[index]:
                spans[index] += at - last
            before[index] = at

    numbers = [counts[track.index] for track in tracks]
    lengths = [
        float(spans[track.index] * (track.time_base or 0)) * number / max(1, number - 1)
        for track, number in zip(tracks, numbers, strict=True)
    ]
    if any(number > 1 and not length for number, length in zip(numbers, lengths, strict=True)):
        lengths = numbers
    return film_of(tracks, [MOMENT if number == 1 else n for number, n in zip(numbers, lengths, strict=True)])


def film_of(tracks: list["VideoStream"], lengths: Sequence[float]) -> "VideoStream":
    """Of the tracks that last at least half as long as the longest the largest, the default, the first.

    So it is no preview, no empty track, and not the still picture beside an animated one.
    """
    from av.stream import Disposition

    def worth(track: "VideoStream") -> tuple[int, bool]:
        codec = track.codec_context
        area = 0 if codec is None else codec.width * codec.height
        return area, bool(track.disposition & Disposition.default)

    longest = max(lengths)
    return max((t for t, length in zip(tracks, lengths, strict=True) if 2 * length >= longest), key=worth)


def prepare(stream: "VideoStream", path: str, threads: bool) -> None:
    """Set the decoder up; raise `ValueError` where there is none, or for frames that are too large."""
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


def scaled(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height with the short side as asked, the long one cut to whole pixels, as torchvision's resize."""
    short, long = sorted((width, height))
    long = int(short_side * long / short)
    return (short_side, long) if width <= height else (long, short_side)


class Orientation(NamedTuple):
    """How a coded frame is turned upright: its axes exchanged first, then mirrored."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of(cls, frame: "VideoFrame", path: str | None = None) -> "Orientation":
        """That of a frame, of the file at `path` if it comes from one."""
        try:
            data: Any = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:  # FFmpeg gave a kind of side data that PyAV does not know: a picture's EXIF
            # `rotation` does not tell whether the picture is mirrored, too
            said = cls.of_picture(path) if path else None
            return said or cls.from_matrix(QUARTERS[round(frame.rotation / 90) % 4])
        return cls() if data is None else cls.from_matrix(memoryview(bytes(data)).cast("i"))

    @classmethod
    def of_picture(cls, path: str) -> "Orientation | None":
        """What a picture's EXIF says, None where it says nothing."""
        from PIL import ExifTags, Image

        with suppress(Exception), Image.open(path) as image:  # each of Pillow's formats fails in its own ways
            turns = {1: "", 2: "x", 3: "xy", 4: "y", 5: "t", 6: "tx", 7: "txy", 8: "ty"}
            turn = turns.get(image.getexif().get(ExifTags.Base.Orientation))
            return None if turn is None else cls(*(letter in turn for letter in "txy"))

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


class Upright(NamedTuple):
    """How frames become RGB pictures: a stream may change its size half-way, every frame takes that of the first."""

    orientation: Orientation
    width: int
    height: int

    @classmethod
    def of(cls, first: "VideoFrame", path: str | None = None) -> "Upright":
        return cls(Orientation.of(first, path), first.width, first.height)

    def scaled(self, short_side: int) -> "Upright":
        """The same pictures, with this short side."""
        width, height = scaled(self.width, self.height, short_side)
        return self._replace(width=width, height=height)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures."""
        return self.orientation.size(self.width, self.height)

    def picture(self, frame: "VideoFrame") -> Tensor:
        """uint8 `[3, H, W]`; converted and scaled in one pass of FFmpeg's, bilinear with antialiasing."""
        how = {"format": "rgb24", "interpolation": "BILINEAR", **_one_thread()}
        rgb = frame.to_ndarray(width=self.width, height=self.height, **how)
        return self.orientation.apply(torch.from_numpy(rgb).permute(2, 0, 1))


@functools.cache
def _one_thread() -> dict[str, Any]:
    """What PyAV 17 needs to be told; else it starts a thread a core for each picture: ten times a small one's time."""
    import av

    return {"threads": 1} if int(av.__version__.partition(".")[0]) >= 17 else {}
