"""Live frames: of a camera, or of a URL, which is opened again when the connection breaks."""

import errno
import itertools
import re
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from ..extras import requirements
from .containers import LEAP, MOMENT, Upright, decode, demux, film_among, film_of, leap_of, prepare, tracks_of

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

__all__ = ["CAMERAS", "ConnectionLostError", "Source", "is_url", "open_camera", "open_url", "without_login"]

# platform -> FFmpeg's input format, and what it calls camera number {}
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
FPS = 25.0  # where a source does not tell its rate
TIMEOUT = 10.0  # seconds without an answer, or without a packet
RECONNECTS = 5  # in a row
BACKOFF = 0.5  # seconds before the first of them; twice as many before each further one
STEADY = 60.0  # seconds after which a connection counts as made, and all its tries are free again
WAITING = 8  # frames, while the model works on one
PATIENCE = 0.1  # seconds
MAX_FPS = 1000
OPENING = (
    250  # packets, and bytes, by which a recording that begins again is known; fewer where it had no more
)
OPENING_BYTES = 1 << 26
AHEAD = 50  # packets of one track, by which the others are judged where none says how long it is
# A playlist's size is none of the video's, and a session has none.
SIZELESS = ("dash", "hls", "rtp", "rtsp", "sap", "sdp")
SINGLE_PICTURES = "mpjpeg"
NO_PTS = ("asf", "avi", "mxf")  # what FFmpeg makes up for them may follow the order of decoding

Timed: TypeAlias = tuple[Tensor, float]


@dataclass(frozen=True)
class Source:
    """Frames to come.

    Attributes:
        frames: uint8 `[3, H, W]`, RGB, upright, each with its time in seconds from the first one, which never runs
            backwards. None is a moment in which nothing came: the caller may want to stop.
        fps: their rate, as far as it is known before they are read.
        num_frames: how many there are, None where that is not known.
    """

    frames: Iterator[Timed | None]
    fps: float
    num_frames: int | None


class ConnectionLostError(ConnectionError):
    """A source broke off before its end and could not be opened again."""


def is_url(source: str) -> bool:
    """Whether it is `scheme://...`, as no local path begins.

    Example:
        >>> is_url("rtsp://10.0.0.7/stream1"), is_url("take:1.mp4")
        (True, False)
    """
    return re.match(r"[a-z][a-z0-9+.-]+://", source, re.IGNORECASE) is not None


def without_login(source: str) -> str:
    """A source as it may be printed: without the user and the password of a URL.

    Example:
        >>> without_login("rtsp://me:secret@10.0.0.7/stream1")
        'rtsp://10.0.0.7/stream1'
    """
    return re.sub(r"(?<=://)[^/?#]*@", "", source) if is_url(source) else source


def open_camera(index: int) -> Source:
    """The camera of a number.

    Raises:
        ImportError, ValueError: there is none that can be opened.
    """
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
    clock, fps = _Clock(LEAP), _rate(stream, LEAP)

    def frames() -> Generator[Timed, None, None]:
        upright = None
        with container:
            for frame in decode(demux(container, stream), stream):
                upright = upright or Upright.of(frame)
                yield upright.picture(frame), clock.at(_time(frame, stream), 1 / fps)

    return Source(_beside(frames()), fps, None)


def open_url(url: str) -> Source:
    """A video or a live stream of the network: http, https, rtsp (over TCP), rtmp and what else FFmpeg reads.

    When the connection breaks it is made anew, at most `RECONNECTS` times in a row. A recording goes on after the
    last frame; a live stream with what it shows by then, its clock so much later.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: nothing there that can be read. Iterating raises `ConnectionLostError` where the source breaks
            off for good before its end.
    """
    connection = _Connection(url)
    num_frames = connection.stream.frames or None
    return Source(_beside(_reconnecting(connection, url)), connection.fps, num_frames)


class _Connection:
    """An open URL and its film.

    Raises:
        ImportError, ValueError: as for `open_url`.
    """

    def __init__(self, url: str) -> None:
        try:
            import av
            from av.error import FFmpegError
        except ImportError as error:
            raise ImportError(f"URLs need PyAV (module 'av'): pip install {requirements('av')}") from error
        name = without_login(url)
        try:
            self.container: InputContainer = av.open(
                url, metadata_errors="replace", options={"rtsp_transport": "tcp"}, timeout=TIMEOUT
            )
        except (FFmpegError, ValueError) as error:
            raise ValueError(
                f"expected a video at {name!r}, got nothing that FFmpeg can read ({_reason(error)}): check the "
                "address, and that the server is up and lets you in"
            ) from error
        self.ahead: list[Any] = []  # read before they are shown
        try:
            tracks = tracks_of(self.container, name)
            self.stream = tracks[0] if len(tracks) == 1 else self._film(tracks)
            self.size = 0 if self.container.format.name in SIZELESS else max(0, self.container.size)
            self.length = _length(self.stream) or (self.container.duration or 0) / 1e6
            prepare(self.stream, name, threads=self.ends)
        except BaseException:
            self.container.close()
            raise
        self.fps = _rate(self.stream, self.leap)
        self.kind = self.container.format.name
        self.stamps: deque[int | None] = deque()  # of NO_PTS, of packets whose frames are to come
        self.opening: list[tuple[int, int | None]] = []  # the first packets: their bytes' hash, and when
        self.came = 0.0  # when the first of them came
        self.second = False  # a look at what ended once before
        self.broken: Exception | None = None
        self.arriving, self.ahead = self._arriving(self.ahead), []
        self.read = 0  # bytes
        self.clock, self.span = _Clock(self.leap), 0.0  # seconds of film

    def _film(self, tracks: list["VideoStream"]) -> "VideoStream":
        """The track to show: by their lengths where all say them, or by the packets that come first."""
        lengths = [MOMENT if track.frames == 1 else _length(track) for track in tracks]
        if all(lengths):
            return film_of(tracks, lengths)

        def ahead() -> Iterator["Packet[Any]"]:  # where it breaks, reading on tells why
            counts = Counter[int]()
            for packet in self.container.demux(*tracks):
                self.ahead.append(packet)
                yield packet
                counts[packet.stream_index] += packet.size > 0
                if counts[packet.stream_index] == AHEAD:
                    return

        return film_among(tracks, ahead(), leap_of(self.container))

    @property
    def ends(self) -> bool:
        """Whether it is a recording that says how long it is."""
        return self.length > 0 or self.size > 0

    @property
    def leap(self) -> float:
        """The longest step that the source's clock takes without a jump: as in a file, any but in a broadcast."""
        return leap_of(self.container) if self.ends else LEAP  # a live clock may be set anew while it is read

    @property
    def ended(self) -> bool:
        """Whether it ended in good order, as far as can be told, and with as much as it says."""
        # EIO is FFmpeg's word where a server that promised no length closes the connection
        closed = self.size == 0 and getattr(self.broken, "errno", None) == errno.EIO
        if not self.ends:
            return self.broken is None or closed
        return self.complete and (self.broken is None or (closed and self.kind not in SIZELESS))

    @property
    def sure(self) -> bool:
        """Whether no second look is needed to tell that it ended: a closed connection may have lost what is short."""
        # ASF and FLV count up to two frames more than there are
        short = self.length - self.span > 2.5 / self.fps
        return self.ends and self.ended and (self.broken is None or not short)

    @property
    def complete(self) -> bool:
        """Whether as much of it came as it says, give or take a second and what no picture needs."""
        if self.size and self.read > 0.9 * self.size:
            return True
        return self.span > 0.95 * self.length - 1

    def frames(self) -> Iterator[tuple["VideoFrame", float | None]]:
        """The frames as the decoder shows them, each with its time by the source's clock, where it has one.

        How the connection broke, if it did, is told by `broken` in the end.
        """
        for frame in decode(self._packets(), self.stream):
            at = _time(frame, self.stream)
            if self.kind in NO_PTS:  # the n-th frame is shown at the n-th time of decoding
                dts, base = self.stamps.popleft() if self.stamps else None, self.stream.time_base
                at = float(dts * base) if dts is not None and base else None
            # FFmpeg takes each picture of a camera that sends single ones for 1/25 s
            yield frame, time.monotonic() if self.kind == SINGLE_PICTURES else at

    def repeats(self, known: list[tuple[int, int | None]]) -> bool:
        """Whether it begins as an earlier connection did: a recording, from its start.

        A live stream may begin anew with the same picture, so what says no length must agree in all packets that are
        `known`, also in their times; until one differs they wait. Where none does it is taken for a recording: a scene
        that was still all the while loses nothing to see, but a recording would be shown again and again.
        """
        if not known or self.kind == SINGLE_PICTURES:  # pictures of a camera are alike where nothing moves
            return False
        whole = known if len(known) == OPENING else known[:-1] or known  # of the last, half may be missing
        for number, packet in enumerate(whole[:1] if self.ends else whole):
            while len(self.opening) <= number + 1:
                if (more := next(self.arriving, None)) is None:
                    return number > 0 or self.opening == known
                self.ahead.append(more)
            if self.opening[number] != packet:
                return False
        return True

    def _packets(self) -> Iterator["Packet[VideoStream] | None"]:
        """As they come; of a recording that breaks off not the last, of which half may be missing."""
        held, ahead = list["Packet[VideoStream]"](), iter(self.ahead)
        self.ahead = []
        for packet in itertools.chain(ahead, self.arriving):
            held.append(packet)
            if not self.ends or len(held) > 1:
                yield held.pop(0)
        whole = self.sure or (self.second and self.ended)
        if self.broken is None or whole:
            yield from held
        if self.broken is not None and (not self.ends or whole):
            yield None

    def _arriving(self, ahead: list["Packet[VideoStream]"]) -> Iterator["Packet[VideoStream]"]:
        from av.error import FFmpegError

        ours = (packet for packet in ahead if packet.stream_index == self.stream.index)
        del ahead
        try:
            for packet in itertools.chain(ours, self.container.demux(self.stream)):
                if packet.size:
                    self._note(packet)
                yield packet
        except (FFmpegError, IndexError) as error:  # IndexError: PyAV of a stream that came half
            self.broken = error

    def _note(self, packet: "Packet[VideoStream]") -> None:
        self.came = self.came or time.monotonic()
        self.read = max(self.read, (packet.pos or 0) + packet.size)
        enough = OPENING if not self.ends and self.read < OPENING_BYTES else 2
        if len(self.opening) < enough:
            # a recording that says how long it is may have other times where it came half
            self.opening.append((hash(bytes(packet)), None if self.ends else packet.dts))
        base = self.stream.time_base or 0
        at = None if packet.dts is None else float(packet.dts * base)
        if not packet.is_corrupt:  # half of the last one
            self.span = self.clock.at(at, 1 / self.fps) + float((packet.duration or 0) * base)
        if self.kind in NO_PTS:
            self.stamps.append(packet.dts)


def _reconnecting(connection: _Connection, url: str) -> Generator[Timed, None, None]:
    clock, known = _Clock(connection.leap), connection.opening
    upright: Upright | None = None
    delivered, since, tries, left, ended = 0, 0, 0, 0.0, False  # since: the source began as is known
    while True:
        began, before = time.monotonic(), delivered
        with connection.container:
            again = delivered > 0 and connection.repeats(known)
            connection.second = again and ended
            if connection.second and len(known) >= OPENING:
                return
            skip = since if again else 0
            for number, (frame, at) in enumerate(connection.frames()):
                if number == 0 and not again:
                    known, since = connection.opening, 0
                    if delivered:
                        clock.resume(connection.came - left)
                upright = upright or Upright.of(frame)
                if number >= skip:
                    yield upright.picture(frame), clock.at(at, 1 / connection.fps)
                    delivered, since, left = delivered + 1, since + 1, time.monotonic()
        if connection.sure or (connection.second and connection.ended and delivered == before):
            return
        if again:
            known = max(known, connection.opening, key=len)
        ended = connection.ended
        reason = "it ended" if connection.broken is None else _reason(connection.broken)
        tries = 0 if time.monotonic() - began > STEADY else tries
        while True:
            if tries == RECONNECTS:
                if ended and delivered and not connection.ends:  # as a live stream ends
                    return
                raise ConnectionLostError(
                    f"expected more of {without_login(url)!r}, got {delivered} frames before the connection broke "
                    f"({reason}); {tries} tries to open it again failed. Check the server and the network."
                )
            time.sleep(BACKOFF * 2**tries)
            tries += 1
            with suppress(ValueError):
                connection = _Connection(url)
                break


def _time(frame: "VideoFrame", stream: "VideoStream") -> float | None:
    # not frame.time: in PyAV 14 the last frames have no time base
    return float(frame.pts * stream.time_base) if frame.pts is not None and stream.time_base else None


def _length(stream: "VideoStream") -> float:
    """Seconds that a container says of one of its streams, 0 where it says none."""
    # Matroska's, as FFmpeg and mkvmerge write it; FFmpeg takes the file's for that of the first stream
    if said := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):
        return 3600 * int(said[1]) + 60 * int(said[2]) + float(said[3])
    return float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _rate(stream: "VideoStream", leap: float) -> float:
    rate = float(stream.average_rate or stream.guessed_rate or FPS)
    # some say 90000, the ticks of their clock; one frame in more than a leap is a clock that jumped
    return rate if 1 / leap <= rate <= MAX_FPS else FPS


class _Clock:
    """Seconds from the first frame, never backwards, whatever the source's own clock does."""

    def __init__(self, leap: float) -> None:
        self.leap = leap
        self.now: float | None = None
        self.theirs: float | None = None
        self.gap = 0.0

    def at(self, theirs: float | None, step: float) -> float:
        """The time of the next frame, after one `step` where the source's clock jumps or is silent."""
        passed = self.gap or step
        if theirs is not None and self.theirs is not None and 0 <= theirs - self.theirs <= self.leap:
            passed = theirs - self.theirs
        self.now = 0.0 if self.now is None else self.now + passed
        self.theirs, self.gap = theirs, 0.0
        return self.now

    def resume(self, gap: float) -> None:
        """Go on with another clock, so many seconds later."""
        self.theirs, self.gap = None, gap


def _beside(frames: Generator[Timed, None, None]) -> Iterator[Timed | None]:
    """Frames read in a thread of its own: however long the next one takes, the caller may stop meanwhile."""
    waiting: Queue[Timed | BaseException | None] = Queue(WAITING)
    stopped = threading.Event()

    def put(item: Timed | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(Full):
                return waiting.put(item, timeout=PATIENCE)

    def read() -> None:
        try:
            for item in frames:
                put(item)
                if stopped.is_set():
                    return frames.close()
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=read, name="tsm-triton live source", daemon=True).start()
    try:
        while True:
            try:
                item = waiting.get(timeout=PATIENCE)
            except Empty:
                yield None
                continue
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            yield item
    finally:
        stopped.set()
