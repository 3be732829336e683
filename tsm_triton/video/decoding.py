"""Frames out of video files: frame i is the i-th that the decoder shows, and only what is needed is decoded.

One pass over the packets, without decoding, sorts them by presentation timestamp (pts): that numbers the
frames. Reading seeks to the keyframe before a wanted frame where that saves work, and knows a frame by its
pts, never by counting after a seek. What a seek does not deliver is read again from the start of the file.

Timestamps must prove themselves. AVI, ASF and MXF keep none, and what FFmpeg makes up for them may follow the
order of decoding; the clock of a joined transport stream starts again. Where that can be, the whole file is
decoded once, and unless its frames come in the order of their timestamps these are dropped: frames are counted.
So is H.264 that may hold fields, of which two packets make a frame.
"""

import os
import re
import warnings
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain, count, islice, pairwise, takewhile
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..arguments import as_count, as_ints
from .containers import MAX_PIXELS, Upright, decode, demux, open_video
from .integrity import check_joined, check_pages, warn_of_cut
from .sampling import Strategy, sample_frames

if TYPE_CHECKING:
    from fractions import Fraction

    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

__all__ = ["VideoInfo", "play", "probe", "read_clip", "read_frames"]

# A seek throws away the frames the decoder has in flight, about as many as it has threads.
SEEK_GAIN = 8
# Formats that keep the time at which a frame is shown, not only when it is decoded.
KEEP_PTS = ("flv", "matroska", "mov", "mpeg", "mpegts", "nut", "ogg", "wtv")
# No decoder reorders more: H.264 and HEVC hold 16 frames, each two fields at most.
MAX_REORDER = 32
# Seconds. FFmpeg's own programs take a longer step of a clock that may jump for a jump.
LEAP = 10
HOLE = 1
FPS = 25.0  # where a file does not tell

_Packets: TypeAlias = 'Iterator["Packet[VideoStream] | None"]'
AnyPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        num_frames: the frames displayed.
        fps: their average rate in frames per second; 0 if the file does not tell.
        width, height: in pixels as displayed, after rotation; pixels are taken as square, and a clean aperture (`clap`,
            Matroska's `PixelCrop*`) is not cut out, as PyAV's frames are not.
        duration: in seconds, of the frames displayed; 0 if the file does not tell.
        rotation: the degrees counterclockwise by which `read_frames` turns the coded frames:
            0, 90, 180 or 270.
    """

    num_frames: int
    fps: float
    width: int
    height: int
    duration: float
    rotation: int


def probe(path: AnyPath) -> VideoInfo:
    """Describe a video file: one pass over its packets, and its first frame decoded.

    Args:
        path: a local file in any format that FFmpeg reads; bytes are decoded as `os.fsdecode` does.

    Returns:
        The `VideoInfo`. Frames are counted, not taken from the container's header.

    Raises:
        FileNotFoundError: no such file.
        ImportError: PyAV is not installed.
        ValueError: a directory, an empty file, no video stream, no frame that can be decoded, or frames of
            more than `MAX_PIXELS` pixels.

    Example:
        >>> import tempfile, PIL.Image
        >>> frames = [PIL.Image.new("RGB", (64, 48), (20 * i, 0, 0)) for i in range(8)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     frames[0].save(f"{folder}/red.gif", save_all=True, append_images=frames[1:], duration=40)
        ...     probe(f"{folder}/red.gif")
        VideoInfo(num_frames=8, fps=25.0, width=64, height=48, duration=0.32, rotation=0)
    """
    return _index(path).info


def read_frames(
    path: AnyPath, indices: Iterable[int] | Tensor, *, size: int | None = None, strict: bool = False
) -> Tensor:
    """Decode chosen frames of a video file.

    A frame that cannot be decoded is replaced by the nearest earlier one that can (or by the first that can,
    if none is earlier), with one `UserWarning` for the file; `strict` refuses.

    Args:
        path: a local file in any format that FFmpeg reads.
        indices: 0-based frame numbers in display order; any order, repeats allowed.
        size: what the short side is scaled to in pixels, larger or smaller, by FFmpeg while it converts to RGB:
            bilinear, antialiased, to the size that torchvision's `resize` gives; None for the video's own.
        strict: raise for a frame that cannot be decoded, or that FFmpeg had to mend.

    Returns:
        uint8 `[len(indices), 3, H, W]` on the CPU, RGB, turned upright.

    Raises:
        IndexError: a number outside `[0, num_frames)`.
        TypeError: a number that is not an integer, or a tensor of more than one axis.
        FileNotFoundError, ImportError, ValueError: as for `probe`; a size that makes frames of more than
            `MAX_PIXELS`; with `strict`, a wanted frame that cannot be decoded whole.

    Example:
        >>> import tempfile, PIL.Image
        >>> frames = [PIL.Image.new("RGB", (64, 48), (20 * i, 0, 0)) for i in range(8)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     frames[0].save(f"{folder}/red.gif", save_all=True, append_images=frames[1:])
        ...     read_frames(f"{folder}/red.gif", [7, 0, 7])[:, 0, 0, 0]
        tensor([140,   0, 140], dtype=torch.uint8)
    """
    if isinstance(indices, Tensor) and indices.dim() != 1:
        raise TypeError(
            f"indices must be a 1-D tensor or integers, got shape {tuple(indices.shape)}: flatten it first"
        )
    return _read(_sized(_index(path), size), as_ints(indices, "indices"), strict)


def read_clip(
    path: AnyPath,
    num_segments: int,
    strategy: Strategy = "uniform",
    *,
    train: bool = False,
    generator: torch.Generator | None = None,
    num_clips: int | None = None,
    size: int | None = None,
    strict: bool = False,
) -> Tensor:
    """Sample frames of a video file and decode them: `probe`, `sample_frames`, `read_frames` in one call.

    Args:
        path: a local file in any format that FFmpeg reads.
        num_segments: T, the frames of a clip.
        strategy: `"uniform"`, `"dense"`, `"twice"` or `"authors"`, see `sample_frames`.
        train: draw one clip at random.
        generator: where the random numbers come from; the default generator if None.
        num_clips: see `sample_frames`.
        size, strict: see `read_frames`.

    Returns:
        uint8 `[num_clips, T, 3, H, W]` on the CPU, RGB, turned upright.

    Raises:
        FileNotFoundError, ImportError, ValueError: as for `probe` and `sample_frames`.

    Example:
        >>> import tempfile, PIL.Image
        >>> frames = [PIL.Image.new("RGB", (64, 48), (20 * i, 0, 0)) for i in range(8)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     frames[0].save(f"{folder}/red.gif", save_all=True, append_images=frames[1:])
        ...     read_clip(f"{folder}/red.gif", num_segments=4).shape
        torch.Size([1, 4, 3, 48, 64])
    """
    index = _sized(_index(path), size)
    frames = sample_frames(
        index.info.num_frames, num_segments, strategy, train=train, generator=generator, num_clips=num_clips
    )
    return _read(index, frames.flatten().tolist(), strict).unflatten(0, tuple(frames.shape))


class _Packet(NamedTuple):
    """The times of a frame's packet, in units of the stream's time base."""

    pts: int
    dts: int | None
    duration: int
    is_key: bool


@dataclass(frozen=True)
class _Index:
    """Where the frames of a file are. Without `packets`, they can only be counted from its start."""

    path: str
    track: int
    info: VideoInfo
    upright: Upright
    packets: list[_Packet]  # in display order
    times: list[float]  # of the frames, in seconds from the first on; none where the file does not tell
    split: bool = False  # other packets than these may hold the second field of a frame

    @cached_property
    def keys(self) -> list[int]:
        """The frame numbers of the keyframes."""
        return [number for number, packet in enumerate(self.packets) if packet.is_key]

    @cached_property
    def number_of(self) -> dict[int | None, int]:
        """A frame's number by its pts."""
        return {packet.pts: number for number, packet in enumerate(self.packets)}


class _OutOfOrderError(Exception):
    """The decoder shows frames in another order than that of their timestamps."""


def _index(path: AnyPath) -> _Index:
    path = os.fsdecode(path)
    with open_video(path) as (container, stream):
        from av.format import Flags  # once it is sure that PyAV is installed

        check_joined(path, container)
        warn_of_cut(path, container)
        track, shown = stream.index, list(_shown(demux(container, stream), stream))
        time_base = stream.time_base
        stated = float(stream.average_rate or stream.guessed_rate or 0)
        keeps_pts = container.format.name.partition(",")[0] in KEEP_PTS
        # may be cut and joined anywhere, and its clock may jump
        broadcast = bool(container.format.flags & Flags.ts_discont.value)

    with open_video(path, track) as (container, stream):
        frames = decode(demux(container, stream), stream)
        first = next(frames, None)
        if len(shown) < 2:
            check_pages(path, stream)
        if first is None:
            raise ValueError(
                f"expected a video that can be decoded, got no frame from {path!r}: is it damaged? "
                "Copy or encode it again."
            )
        packets, split = _in_display_order(shown, first if broadcast else None), False
        if not packets or _doubtful(stream, first, shown, packets, keeps_pts):
            order = [first.pts, *(frame.pts for frame in frames)]
            if order != [packet.pts for packet in packets]:
                (shown, packets), split = _beginning(order, shown, keeps_pts), True
            num_frames = len(order)
        else:
            num_frames = len(packets)
    upright = Upright.of(first, path)

    times, duration, fps = _times(shown, packets, num_frames, time_base, keeps_pts, broadcast)
    fps = fps or stated
    duration = duration or (num_frames / fps if fps else 0.0)
    info = VideoInfo(num_frames, fps, *upright.size, duration, upright.orientation.rotation)
    return _Index(path, track, info, upright, packets, times, split)


def _times(
    shown: list[_Packet | None],
    packets: list[_Packet],
    num_frames: int,
    time_base: "Fraction | None",
    keeps_pts: bool,
    broadcast: bool,
) -> tuple[list[float], float, float]:
    """When each frame is shown, how long all last, and the rate; no times and no duration unless each has its own."""
    timed = [(packet.dts, packet.duration) for packet in shown if packet and packet.dts is not None]
    # GIF and APNG tell how long each is held; where others' durations are made up, they seldom fit all steps
    held = all(b - a == duration for (a, duration), (b, _) in pairwise(timed))
    stamps, last = [dts for dts, _ in timed], timed[-1][1] if timed and held else 0
    if packets and (keeps_pts or len(stamps) < len(shown)):
        stamps, last = [packet.pts for packet in packets], packets[-1].duration
    if not time_base or len(stamps) != (len(packets) or len(shown)):
        return [], 0.0, 0.0
    times, duration, fps = _timed(stamps, last, time_base, broadcast)
    return (times, duration, fps) if len(times) == num_frames else ([], 0.0, fps)


def _sized(index: _Index, size: int | None) -> _Index:
    """The same with frames of another short side."""
    if size is None:
        return index
    upright = index.upright.scaled(as_count(size, "size"))
    if upright.width * upright.height > MAX_PIXELS:
        raise ValueError(
            f"expected frames of at most MAX_PIXELS = {MAX_PIXELS} pixels, got {upright.width} x {upright.height} "
            f"for size={size} from {index.path!r}: pass a smaller size"
        )
    return replace(index, upright=upright)


def _in_display_order(shown: list[_Packet | None], first: "VideoFrame | None") -> list[_Packet]:
    """The packets sorted by pts; none unless each has its own.

    A stream that was cut begins with frames that lack the keyframe before them: they are left out, where the
    first frame that the decoder shows is given and is a keyframe.
    """
    packets = [packet for packet in shown if packet]
    if len({packet.pts for packet in packets}) < len(shown):
        return []
    key = next((packet.pts for packet in packets if packet.is_key), None)
    start = key if first and first.pts == key else None
    return sorted(packet for packet in packets if start is None or packet.pts >= start)


def _beginning(
    order: list[int | None], shown: list[_Packet | None], keeps_pts: bool
) -> tuple[list[_Packet | None], list[_Packet]]:
    """The packets that decoded frames begin with, as of two fields the first, where their pts tell; all if not.

    Also by pts, where the frames come so.
    """
    pts = set(order)
    # a field lasts half as long as its frame
    found = [packet._replace(duration=0) for packet in shown if packet and packet.pts in pts]
    if len(found) != len(order):
        return shown, []
    packets = sorted(found, key=lambda packet: packet.pts)
    proven = keeps_pts and len(pts) == len(order) and order == [packet.pts for packet in packets]
    return [*found], packets if proven else []


def _doubtful(
    stream: "VideoStream",
    first: "VideoFrame",
    shown: list[_Packet | None],
    packets: list[_Packet],
    keeps_pts: bool,
) -> bool:
    """Whether the decoder may show the frames in another order than that of their timestamps."""
    pts = [packet.pts for packet in shown if packet]
    dts = [packet.dts for packet in shown if packet and packet.dts is not None]
    place = {time: position for position, time in enumerate(pts)}
    if any(b <= a for a, b in pairwise(dts)) or any(
        abs(place[packet.pts] - number) > MAX_REORDER for number, packet in enumerate(packets)
    ):
        return True
    codec = stream.codec_context
    return codec.codec.reorder and (
        not keeps_pts
        or codec.name == "mpeg4"  # two frames may be packed into one packet
        or bool(first.interlaced_frame)  # a packet may hold a field
        or (codec.name == "h264" and _may_hold_fields(codec.extradata or b""))
        or (bool(codec.has_b_frames) and pts == sorted(pts))
    )


def _may_hold_fields(extradata: bytes) -> bool:
    """Whether H.264's first sequence parameter set allows fields, also behind frames (ITU-T H.264, 7.3.2.1.1)."""
    # in Annex B, or as MP4 and Matroska keep it
    found = re.search(rb"(?:\A\x01.{7}|\x00\x00\x01)[\x27\x47\x67](.+)", extradata, re.DOTALL)
    if not found:
        return True
    bits = iter("".join(f"{byte:08b}" for byte in found[1].replace(b"\0\0\3", b"\0\0")))

    def u(count: int) -> int:
        return int("0" + "".join(islice(bits, count)), 2)

    def ue() -> int:
        zeros = sum(1 for _ in takewhile("0".__eq__, bits))
        return (1 << zeros) - 1 + u(zeros)

    profile, _ = u(24) >> 16, ue()
    if profile not in (66, 77, 88):  # Baseline, Main and Extended have no matrices of scales
        chroma = ue()
        _ = u(chroma == 3), ue(), ue(), u(1)
        for size in ([16] * 6 + [64] * (6 if chroma == 3 else 2)) * u(1):
            scale = step = 8
            for _ in range(size * u(1)):
                if step:  # by a signed number: 0, 1, -1, 2, -2, ...
                    code = ue()
                    step = (scale + (code + 1 >> 1) * (1 if code % 2 else -1)) % 256
                scale = step or scale
    _, order = ue(), ue()
    if order == 0:
        ue()
    elif order == 1:
        _ = u(1), ue(), ue()
        for _ in range(min(255, ue())):
            ue()
    _ = ue(), u(1), ue(), ue()
    return not u(1)


def _timed(
    stamps: list[int], last: int, time_base: "Fraction", broadcast: bool
) -> tuple[list[float], float, float]:
    """The times of frames in seconds from the first on, how long they last, and how many come a second.

    A clock that was set back goes on at the usual step; so does one that leaps, in a format where it may. There
    a hole, as where the signal was lost, does not lower the rate.
    """
    steps = [b - a for a, b in pairwise(stamps)]
    forward = sorted(step for step in steps if step > 0) or [0]
    usual = forward[(len(forward) - 1) // 2]  # the median; statistics and fractions would bring decimal along
    leap, hole = LEAP / time_base, max(HOLE / time_base, 10 * usual)
    steps = [usual if step < 0 or (broadcast and step > leap) else step for step in steps]
    ticks = [*accumulate(steps, initial=0)]
    length = ticks[-1] + (last or ticks[-1] / max(1, len(steps)))
    running = length - sum(step - usual for step in steps if broadcast and step > hole)
    times = [tick * time_base.numerator / time_base.denominator for tick in ticks]
    duration, running = float(length * time_base), float(running * time_base)
    return times, duration, len(stamps) / running if running else 0.0


def play(path: AnyPath) -> tuple[VideoInfo, Iterator[tuple[Tensor, float]]]:
    """All frames of a video file in order, each with its time.

    Returns:
        What the file holds, and its frames: uint8 `[3, H, W]`, RGB, upright, each with its time in seconds from
        the first one, which never runs backwards.

    Raises:
        FileNotFoundError, ImportError, ValueError: as for `probe`.
    """
    index = _index(path)
    return index.info, _play(index)


def _play(index: _Index) -> Iterator[tuple[Tensor, float]]:
    at, before, step = 0.0, None, 1 / (index.info.fps or FPS)
    with open_video(index.path, index.track, threads=True) as (container, stream):
        for counted, frame in enumerate(decode(demux(container, stream), stream)):
            number = index.number_of.get(frame.pts, counted)
            if number < len(index.times):
                at = max(at, index.times[number])
            elif not index.times:
                at = number * step
            else:  # the file has grown since
                passed = 0 if before is None or frame.pts is None else frame.pts - before
                at += float(passed * stream.time_base) if passed > 0 and stream.time_base else step
            before = frame.pts
            yield index.upright.picture(frame), at


def _read(index: _Index, indices: list[int], strict: bool = False) -> Tensor:
    for number in indices:
        if not 0 <= number < index.info.num_frames:
            raise IndexError(
                f"expected frame numbers from 0 to {index.info.num_frames - 1}, got {number} for {index.path!r}: "
                "sample from the num_frames that probe() reports"
            )
    try:
        return _filled(index, indices, strict)
    except _OutOfOrderError:
        return _filled(replace(index, packets=[]), indices, strict)


def _filled(index: _Index, indices: list[int], strict: bool) -> Tensor:
    info, (width, height) = index.info, index.upright.size
    rows: dict[int, list[int]] = {}  # frame number -> where it goes; those still to be read
    for row, number in enumerate(indices):
        rows.setdefault(number, []).append(row)
    out = torch.empty((len(indices), 3, height, width), dtype=torch.uint8)

    def put(number: int, frame: "VideoFrame") -> None:
        out[rows.pop(number)] = index.upright.picture(frame)

    for number, frame in _walk(index, sorted(rows), fast=True, sound=strict):
        if number in rows:
            put(number, frame)

    if rows and (stood_in := _fill_up(index, deque(sorted(rows)), put, strict)):
        lost = (
            f"{len(stood_in)} wanted frames cannot be decoded, the first of them frame "
            f"{stood_in[0]} of {info.num_frames}"
        )
        if strict:
            raise ValueError(
                f"expected a video that can be decoded, got {index.path!r}, of which {lost}: copy or encode it again"
            )
        warnings.warn(
            f"{index.path}: {lost}; the nearest earlier frame stands in for each",
            stacklevel=4,
        )
    return out


def _fill_up(
    index: _Index, missing: deque[int], put: Callable[[int, "VideoFrame"], None], strict: bool
) -> list[int]:
    """Read the frames that seeking did not deliver from the start; the numbers of those that another stands in for."""
    stood_in, earlier = list[int](), None
    # to the end: only then it is sure that none comes late
    for number, frame in _walk(index, [*missing, index.info.num_frames - 1], fast=False, sound=strict):
        while missing and missing[0] <= number:
            wanted = missing.popleft()
            if wanted < number:
                stood_in.append(wanted)
            put(wanted, frame if wanted == number else earlier or frame)
        earlier = frame
    for wanted in missing:
        if earlier is None:
            raise ValueError(
                f"expected a video that can be decoded, got no frame from {index.path!r}: is it damaged? "
                "Copy or encode it again."
            )
        stood_in.append(wanted)
        put(wanted, earlier)
    return stood_in


def _walk(index: _Index, wanted: list[int], *, fast: bool, sound: bool) -> Iterator[tuple[int, "VideoFrame"]]:
    """Decode up to the last of the wanted frames (ascending).

    `fast` seeks over what lies between them, and ends early where that cannot be; `sound` leaves out frames that
    FFmpeg mended.

    Raises:
        _OutOfOrderError: the frames prove that timestamps do not number them.
    """
    fast = fast and bool(index.packets)
    pending, here, sought, last = deque(wanted), -1, -1, -1
    with open_video(index.path, index.track, threads=fast) as (container, stream):
        # a field that no other needs may be half of a wanted frame
        thin = fast and not index.split
        wanted_pts = {index.packets[number].pts for number in wanted} if thin else None
        frames = decode(_thinned(demux(container, stream), stream, wanted_pts), stream)
        for counted in count():
            if not pending:
                return
            before = bisect_right(index.keys, pending[0])
            if fast and before and (key := index.keys[before - 1]) > max(here, sought) + SEEK_GAIN:
                packets = _seek(container, stream, index.packets[key])
                frames, sought, last = decode(_thinned(packets, stream, wanted_pts), stream), key, -1
            if (frame := next(frames, None)) is None:
                return
            number = index.number_of.get(frame.pts) if index.packets else counted
            if number is None:
                continue
            if number <= last:
                raise _OutOfOrderError
            last = number
            if number >= sought:  # those before lack the keyframe before them
                if here < sought and not frame.key_frame:
                    return  # one in the container's words alone: what it needs lies before
                here = number
                while pending and pending[0] <= here:
                    pending.popleft()
                if not (sound and frame.is_corrupt):
                    yield here, frame


def _thinned(packets: _Packets, stream: "VideoStream", wanted: set[int] | None) -> _Packets:
    """The packets, the decoder told to drop those frames that are not wanted and that no other frame needs."""
    for packet in packets:
        if wanted is not None:
            spare = packet is not None and packet.pts is not None and packet.pts not in wanted
            stream.codec_context.skip_frame = "NONREF" if spare else "DEFAULT"
        yield packet


def _seek(container: "InputContainer", stream: "VideoStream", key: _Packet) -> _Packets:
    """The packets from a keyframe on; none where the container cannot get there."""
    from av.error import FFmpegError

    for target in (key.pts, key.dts):  # MP4 and Matroska seek by pts, MPEG-TS by dts
        if target is None:
            continue
        with suppress(FFmpegError):
            container.seek(target, stream=stream)
            packets = demux(container, stream)
            first = next(packets)
            if first and first.is_keyframe and first.pts is not None and first.pts <= key.pts:
                return chain([first], packets)
    return iter(())


def _shown(packets: _Packets, stream: "VideoStream") -> Iterator[_Packet | None]:
    """One entry for each frame to display, None where it has no pts."""
    vp8 = stream.codec_context.name == "vp8"
    for packet in packets:
        if packet is None or not packet.size or packet.is_discard:
            continue
        if vp8 and not memoryview(packet)[0] & 0x10:  # a reference frame that is never shown
            continue
        if packet.pts is None:
            yield None
        else:
            yield _Packet(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe)
