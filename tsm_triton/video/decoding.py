"""Frames out of video files: frame i is the i-th one displayed, and only what is needed is decoded.

One pass over the packets, without decoding, sorts them by presentation timestamp (pts): that numbers the
frames. Reading seeks to the keyframe before a wanted frame where that saves work, and knows a frame by its
pts, never by counting after a seek. What a seek does not deliver is read again from the start of the file.
"""

import os
import warnings
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..arguments import as_ints
from .containers import Orientation, decode, demux, open_video
from .sampling import Strategy, sample_frames

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

__all__ = ["VideoInfo", "probe", "read_clip", "read_frames"]

# A seek throws away the frames the decoder has in flight, about as many as it has threads.
SEEK_GAIN = 8

AnyPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        num_frames: the frames displayed.
        fps: their average rate in frames per second; 0 if the file does not tell.
        width, height: in pixels as displayed, after rotation; pixels are taken as square.
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


def read_frames(path: AnyPath, indices: Iterable[int] | Tensor) -> Tensor:
    """Decode chosen frames of a video file.

    A frame that cannot be decoded is replaced by the nearest earlier one that can (or by the first that can,
    if none is earlier), with one `UserWarning` for the file.

    Args:
        path: a local file in any format that FFmpeg reads.
        indices: 0-based frame numbers in display order; any order, repeats allowed.

    Returns:
        uint8 `[len(indices), 3, H, W]` on the CPU, RGB, turned upright.

    Raises:
        IndexError: a number outside `[0, num_frames)`.
        TypeError: a number that is not an integer, or a tensor of more than one axis.
        FileNotFoundError, ImportError, ValueError: as for `probe`.

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
    return _read(_index(path), as_ints(indices, "indices"))


def read_clip(
    path: AnyPath,
    num_segments: int,
    strategy: Strategy = "uniform",
    *,
    train: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample frames of a video file and decode them: `probe`, `sample_frames`, `read_frames` in one call.

    Args:
        path: a local file in any format that FFmpeg reads.
        num_segments: T, the frames of a clip.
        strategy: `"uniform"`, `"dense"` or `"twice"`, see `sample_frames`.
        train: draw one clip at random.
        generator: where the random numbers come from; the default generator if None.

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
    index = _index(path)
    frames = sample_frames(index.info.num_frames, num_segments, strategy, train=train, generator=generator)
    return _read(index, frames.flatten().tolist()).unflatten(0, tuple(frames.shape))


class _Packet(NamedTuple):
    """The times of a frame's packet, in units of the stream's time base."""

    pts: int
    dts: int
    duration: int
    is_key: bool


@dataclass(frozen=True)
class _Index:
    """Where the frames of a file are. Without `packets`, they can only be counted from its start."""

    path: str
    info: VideoInfo
    orientation: Orientation
    packets: list[_Packet]  # in display order
    keys: list[int]  # the frame numbers of the keyframes


def _index(path: AnyPath) -> _Index:
    path = os.fsdecode(path)
    with open_video(path) as (container, stream):
        shown = list(_shown(demux(container, stream), stream))
        time_base, rate = stream.time_base or 0, stream.average_rate or 0
    packets = sorted({packet.pts: packet for packet in shown if packet}.values())
    if len(packets) < len(shown):  # without a pts for each frame, none can be trusted
        packets = []

    with open_video(path) as (container, stream):
        frames = decode(demux(container, stream), stream)
        first = next(frames, None)
        if first is None:
            raise ValueError(
                f"expected a video that can be decoded, got no frame from {path!r}: is it damaged? "
                "Copy or encode it again."
            )
        num_frames = len(packets) or 1 + sum(1 for _ in frames)
    orientation = Orientation.of(first)
    width, height = orientation.size(first.width, first.height)

    duration = 0.0
    if packets:
        span = packets[-1].pts - packets[0].pts
        duration = float((span + (packets[-1].duration or span / max(1, num_frames - 1))) * time_base)
    fps = num_frames / duration if duration else float(rate)
    duration = duration or (num_frames / fps if fps else 0.0)
    info = VideoInfo(num_frames, fps, width, height, duration, orientation.rotation)
    return _Index(path, info, orientation, packets, [i for i, packet in enumerate(packets) if packet.is_key])


def _read(index: _Index, indices: list[int]) -> Tensor:
    info = index.info
    rows: dict[int, list[int]] = {}  # frame number -> where it goes; those still to be read
    for row, number in enumerate(indices):
        if not 0 <= number < info.num_frames:
            raise IndexError(
                f"expected frame numbers from 0 to {info.num_frames - 1}, got {number} for {index.path!r}: "
                "sample from the num_frames that probe() reports"
            )
        rows.setdefault(number, []).append(row)
    out = torch.empty((len(indices), 3, info.height, info.width), dtype=torch.uint8)
    width, height = index.orientation.size(info.width, info.height)

    def put(number: int, frame: "VideoFrame") -> None:
        # A stream may change its size half-way: every frame takes the size of the first.
        rgb = torch.from_numpy(frame.to_ndarray(format="rgb24", width=width, height=height))
        out[rows.pop(number)] = index.orientation.apply(rgb.permute(2, 0, 1))

    for number, frame in _walk(index, sorted(rows), fast=True):
        if number in rows:
            put(number, frame)

    missing, stood_in = deque(sorted(rows)), list[int]()
    earlier = None
    for number, frame in _walk(index, list(missing), fast=False):
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
    if stood_in:
        warnings.warn(
            f"{index.path}: {len(stood_in)} wanted frames cannot be decoded, the first of them frame "
            f"{stood_in[0]} of {info.num_frames}; the nearest earlier frame stands in for each",
            stacklevel=3,
        )
    return out


def _walk(index: _Index, wanted: list[int], *, fast: bool) -> Iterator[tuple[int, "VideoFrame"]]:
    """Decode up to the last of the wanted frames (ascending); `fast` seeks over what lies between them."""
    fast = fast and bool(index.packets)
    number_of: dict[int | None, int] = {packet.pts: number for number, packet in enumerate(index.packets)}
    pending, here, sought = deque(wanted), -1, -1
    with open_video(index.path, threads=fast) as (container, stream):
        frames = decode(demux(container, stream), stream)
        for counted in count():
            if not pending:
                return
            before = bisect_right(index.keys, pending[0])
            if fast and before and (key := index.keys[before - 1]) > max(here, sought) + SEEK_GAIN:
                frames, sought = _seek(container, stream, index.packets[key]), key
            if (frame := next(frames, None)) is None:
                return
            number = number_of.get(frame.pts) if index.packets else counted
            if number is not None:
                here = number
                while pending and pending[0] <= here:
                    pending.popleft()
                yield here, frame


def _seek(container: "InputContainer", stream: "VideoStream", key: _Packet) -> Iterator["VideoFrame"]:
    """The frames from a keyframe on; none where the container cannot get there."""
    from av.error import FFmpegError

    for target in (key.pts, key.dts):  # MP4 and Matroska seek by pts, MPEG-TS by dts
        with suppress(FFmpegError):
            container.seek(target, stream=stream)
            packets = demux(container, stream)
            first = next(packets)
            if first and first.is_keyframe and first.pts is not None and first.pts <= key.pts:
                return decode(chain([first], packets), stream)
    return iter(())


def _shown(
    packets: Iterator["Packet[VideoStream] | None"], stream: "VideoStream"
) -> Iterator[_Packet | None]:
    """One entry for each frame to display, None where it has no pts."""
    vp8 = stream.codec_context.name == "vp8"
    for packet in packets:
        if packet is None or not packet.size or packet.is_discard:
            continue
        if vp8 and not memoryview(packet)[0] & 0x10:  # a reference frame that is never shown
            continue
        pts, dts = packet.pts, packet.dts
        times = None if pts is None else (pts, pts if dts is None else dts, packet.duration or 0)
        yield times and _Packet(*times, packet.is_keyframe)
