"""Small videos whose frames tell their number: a barcode of ten columns, white for the bits that are set."""

import io
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


class _Bits(list[str]):
    """What H.264's syntax (ITU-T H.264, 7.3) is made of."""

    def u(self, count: int, value: int) -> "_Bits":
        self.append(f"{value:0{count}b}"[:count])
        return self

    def ue(self, *values: int) -> "_Bits":
        for value in values:
            self.append("0" * ((value + 1).bit_length() - 1) + f"{value + 1:b}")
        return self

    def raw(self, data: bytes) -> "_Bits":
        self.append("0" * (-sum(map(len, self)) % 8) + "".join(f"{byte:08b}" for byte in data))
        return self

    def unit(self, head: int) -> bytes:
        bits = "".join(self) + "1"
        data = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
        for byte in b"\3\2\1\0":  # those of the samples are not below 16
            data = data.replace(bytes([0, 0, byte]), bytes([0, 0, 3, byte]))
        return bytes([0, 0, 0, 1, head]) + data


def write_fields(path: Path, kinds: str, ahead: int = 0, gop: int = 13) -> Path:
    """H.264 of uncompressed barcodes, 25 a second: P a progressive frame, F two fields, in a packet each.

    Of each `ahead` + 1 pictures behind a keyframe the last comes first, and the others are needed by none.
    """
    head = _Bits().u(24, 77 << 16 | 30).ue(0, 6, 0, 6, 2).u(1, 0).ue(BITS - 1, 0).u(5, 0b00100)
    # 50 fields a second, and how many pictures are reordered
    head.u(5, 0b10000).u(1, 1).u(32, 1).u(32, 50).u(4, 0b1000).u(2, 0b11).ue(0, 0, 16, 16, ahead, 2)
    sets = head.unit(0x67) + _Bits().ue(0, 0).u(2, 0).ue(0, 0, 0).u(3, 0).ue(0, 0, 0).u(3, 4).unit(0x68)
    packets = list[tuple[bytes, int]]()
    for number in range(len(kinds)):
        within = number % gop
        shown = number + (within and (ahead if (within - 1) % (ahead + 1) == 0 else -1))
        fields, needed = kinds[shown] == "F", shown >= number
        begun = within and 1 - (1 - within) // (ahead + 1)  # of the pictures that others may need
        for field in range(1 + fields):
            key = within == field == 0
            picture = _Bits().ue(0, 7, 0).u(10, begun).u(1, fields)
            if fields:
                picture.u(1, field)
            if key:
                picture.ue(number // gop % 2)
            picture.u(10, 2 * (shown - number + within) + field).u((2 if key else 1) * needed, 0).ue(0, 1)
            for bit in [*range(BITS)] * (2 - fields):
                picture.ue(25).raw(
                    bytes([(235 if shown >> bit & 1 else 16) ^ 32 * field]) * 256 + b"\x80" * 128
                )
            data = picture.unit(0x65 if key else 0x61 if needed else 1)
            packets.append((b"\0\0\0\1\t\xf0" + sets * key + data, 2 * shown + field))
    raw = io.BytesIO(b"".join(data for data, _ in packets))
    with av.open(raw, format="h264") as read, av.open(path, "w") as write:
        out = write.add_stream_from_template(read.streams.video[0])
        times = sorted(time for _, time in packets)
        for number, (data, time) in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = out, Fraction(1, 50), sets in data
            packet.pts, packet.dts = time + 4, times[number]
            write.mux(packet)
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
