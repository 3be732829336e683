"""Reading video files: each frame carries its own number, so a test can tell which one came back."""

import os
import subprocess
import sys
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as F

from tsm_triton.video import VideoInfo, containers, decoding, probe, read_clip, read_frames

from .video_files import HEIGHT, WIDTH, barcode, numbers, write_fields, write_sound, write_video

WANTED = [40, 3, 59, 3, 0, 41]
# Of each container: with a frame count and without, seeking by pts and by dts, and with no timestamps at all.
FORMATS = {
    "h264.mp4": {},
    "h264.mkv": {},
    "h264.ts": {},
    "h264.h264": {},
    "no_b_frames.mp4": {"b_frames": 0},
    "every_frame_a_key.mp4": {"gop": 1},
    "open_gop.mkv": {"x264-params": "open-gop=1"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "vp8.webm": {"codec": "libvpx", "b_frames": 0, "deadline": "realtime"},
    # whose timestamps FFmpeg makes up, in the order of decoding
    "h264.avi": {},
    "open_gop.avi": {"x264-params": "open-gop=1"},
    "h264.asf": {},
    "h264.mxf": {},
    "mpeg1.asf": {"codec": "mpeg1video"},
    "mpeg2.wmv": {"codec": "mpeg2video"},
    # or has for few packets, or for none
    "h264.vob": {},
    "h265.hevc": {"codec": "libx265", "x265-params": "log-level=none"},
    "h264.flv": {},
    "mpeg2.mxf": {"codec": "mpeg2video"},
    "interlaced.ts": {"codec": "mpeg2video", "flags": "+ildct+ilme"},
}


@pytest.fixture
def decoded(monkeypatch):
    """The frames decoded so far, as a list that grows."""
    seen = []
    real = decoding.decode

    def counting(packets, stream):
        for frame in real(packets, stream):
            seen.append(frame.pts)
            yield frame

    monkeypatch.setattr(decoding, "decode", counting)
    return seen


@pytest.mark.parametrize("name", FORMATS)
def test_frame_i_is_the_ith_displayed(tmp_path, name):
    path = write_video(tmp_path / name, **FORMATS[name])
    assert probe(path) == VideoInfo(60, 25.0, WIDTH, HEIGHT, 2.4, 0)
    assert numbers(read_frames(path, range(60))) == list(range(60))
    assert numbers(read_frames(path, WANTED)) == WANTED


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.h264", "a.mpg"])
def test_played_frames_come_in_order_with_their_times(tmp_path, name):
    info, played = decoding.play(write_video(tmp_path / name))
    frames, times = zip(*played, strict=True)
    assert (info.num_frames, numbers(torch.stack(frames))) == (60, list(range(60)))
    assert times == pytest.approx([i / 25 for i in range(60)], abs=1e-3)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_timestamps_copied_from_the_order_of_decoding_number_no_frames(tmp_path, suffix):
    with (
        av.open(write_video(tmp_path / "right.mp4")) as read,
        av.open(tmp_path / f"a.{suffix}", "w") as write,
    ):
        out = write.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(p for p in read.demux(video=0) if p.size):
            copy = av.Packet(bytes(packet))
            copy.stream, copy.time_base, copy.is_keyframe = out, Fraction(1, 25), packet.is_keyframe
            copy.pts = copy.dts = number
            write.mux(copy)
    path = tmp_path / f"a.{suffix}"
    assert numbers(read_frames(path, WANTED)) == WANTED
    assert [number for one in range(60) for number in numbers(read_frames(path, [one]))] == list(range(60))


def test_frames_that_come_out_of_the_order_of_their_timestamps_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_doubtful", lambda *_: False)
    assert numbers(read_frames(write_video(tmp_path / "a.avi", gop=60), WANTED)) == WANTED


def test_two_frames_packed_into_one_packet_are_two(tmp_path):
    vop, user_data = b"\0\0\1\xb6", b"\0\0\1\xb2DivX503b1393p"
    skipped = vop + 0b010_1_00000_1_0_01111_00.to_bytes(3, "big")[:2]  # a frame that repeats the one before
    with av.open(write_video(tmp_path / "plain.mp4", 61, codec="mpeg4", b_frames=1)) as read:
        extra = read.streams.video[0].codec_context.extradata
        packets = [(bytes(p), p.is_keyframe) for p in read.demux(video=0) if p.size]
    is_b = [data[data.find(vop) + 4] >> 6 == 2 for data, _ in packets]
    with av.open(tmp_path / "packed.avi", "w") as write:
        out = write.add_stream("mpeg4", rate=25)
        out.width, out.height, out.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        out.codec_context.extradata = extra + user_data
        for number, (data, is_keyframe) in enumerate(packets):
            follows = number + 1 < len(packets) and is_b[number + 1]
            data = skipped if is_b[number] else data + packets[number + 1][0] if follows else data
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = out, Fraction(1, 25), is_keyframe
            packet.pts = packet.dts = number
            write.mux(packet)
    assert any(is_b)
    assert numbers(read_frames(tmp_path / "packed.avi", range(61))) == list(range(61))


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("kinds", ["F" * 26, "PPFFPFFFPPFFF" * 2])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv", "mpg", "avi"])
def test_two_fields_make_a_frame(tmp_path, decoded, suffix, kinds, ahead):
    path = write_fields(tmp_path / f"a.{suffix}", kinds, ahead)
    info, played = decoding.play(path)
    assert (info.num_frames, info.fps, info.duration) == (26, pytest.approx(25), pytest.approx(1.04))
    frames, times = zip(*played, strict=True)
    whole = read_frames(path, range(26))
    assert numbers(torch.stack(frames)) == numbers(whole) == list(range(26))
    if (suffix, kinds[0], ahead) != ("avi", "P", 1):  # where AVI's times are those of decoding
        assert times == pytest.approx([i / 25 for i in range(26)], abs=1e-3)
    assert torch.equal(read_frames(path, [25, 16, 2]), whole[[25, 16, 2]])
    decoded.clear()
    assert torch.equal(read_frames(path, [14])[0], whole[14])
    assert len(decoded) - 26 < (17 if suffix == "avi" else 13)  # after those that were counted


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
@pytest.mark.parametrize("options", [{}, {"profile": "main"}, {"cqm": "jvt", "profile": "high444"}])
def test_only_h264_that_may_hold_fields_is_decoded_to_be_counted(tmp_path, decoded, options, suffix):
    for may_hold, params in ((False, "ref=1"), (True, "fake-interlaced=1")):
        path = write_video(tmp_path / f"a.{suffix}", 5, **options, **{"x264-params": params})
        decoded.clear()
        assert probe(path).num_frames == 5
        assert len(decoded) == (5 if may_hold else 1)


def joined(folder, name, counts=(40, 30), offsets=("0", "0"), **options):
    """Videos written one behind the other, byte by byte."""
    parts = [
        write_video(folder / f"{i}.{name}", n, container_options={"output_ts_offset": at}, **options)
        for i, (n, at) in enumerate(zip(counts, offsets, strict=True))
    ]
    path = folder / f"joined.{name}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize(
    ("name", "offsets", "options"),
    [
        ("again.ts", ("0", "0"), {}),
        ("half_a_frame_later.ts", ("0", "0.02"), {}),
        ("forward.ts", ("0", "3600"), {}),
        ("a_little_forward.ts", ("0", "7"), {}),
        ("back.ts", ("3600", "0"), {}),
        ("mpeg2.ts", ("0", "0"), {"codec": "mpeg2video"}),
        ("again.mpg", ("0", "0"), {"codec": "mpeg2video"}),
        ("h264.mpg", ("0", "0"), {}),
        ("again.mkv", ("0", "0"), {}),
        ("again.h264", ("0", "0"), {}),
    ],
)
def test_a_clock_that_jumps_moves_no_frame(tmp_path, name, offsets, options):
    path = joined(tmp_path, name, offsets=offsets, **options)
    shown = [*range(40), *range(30)]
    info, played = decoding.play(path)
    assert info.num_frames == 70
    assert info.fps == pytest.approx(25, rel=1e-3)
    assert numbers(read_frames(path, range(70))) == shown
    assert numbers(read_frames(path, [69, 0, 41, 39])) == [29, 0, 1, 39]
    frames, times = zip(*played, strict=True)
    assert numbers(torch.stack(frames)) == shown
    expected = [i / 25 for i in range(70)]
    if "a_little" in name:  # as where the signal was lost: no jump of the clock
        expected[40:] = [7 + i / 25 for i in range(30)]
        assert list(times) == sorted(times)
    else:
        assert info.duration == pytest.approx(2.8, abs=0.05)
        assert times == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mov", "libx264"),
        ("a.flv", "libx264"),
        ("a.asf", "libx264"),
        ("a.nut", "mpeg4"),
        ("a.ivf", "libvpx"),
    ],
)
def test_a_second_file_that_ffmpeg_passes_over_is_refused(tmp_path, name, codec):
    path = joined(tmp_path, name, codec=codec)
    for part in (0, 1):
        assert probe(tmp_path / f"{part}.{name}").num_frames in (40, 30)
    with pytest.raises(ValueError, match="several joined byte by byte"):
        read_frames(path, [0])


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"movflags": "faststart"}),
        ("a.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mov", "libx264", {"movflags": "faststart"}),
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx", {}),
        ("a.avi", "mpeg4", {}),
    ],
)
def test_a_file_whose_end_is_missing_is_told(tmp_path, name, codec, options):
    path = write_video(tmp_path / name, codec=codec, container_options=options)
    assert probe(path).num_frames == 60
    data = path.read_bytes()
    (tmp_path / f"more_{name}").write_bytes(data + b"what a camera puts behind it")
    assert probe(tmp_path / f"more_{name}").num_frames == 60
    path.write_bytes(data[: len(data) * 3 // 4])
    with pytest.warns(UserWarning, match=f"whose end is missing .{path.stat().st_size:,} of at least"):
        assert 0 < probe(path).num_frames < 60
    with pytest.warns(UserWarning, match="whose end is missing"):
        read_clip(path, 4)


@pytest.mark.parametrize("name", ["a.ts", "a.mpg"])
def test_a_clock_that_overflows_moves_no_frame(tmp_path, name):
    wrap = {"output_ts_offset": str(2**33 / 90000 - 1.7)}
    path = write_video(tmp_path / name, container_options=wrap, codec="mpeg2video")
    assert probe(path) == VideoInfo(60, pytest.approx(25), WIDTH, HEIGHT, pytest.approx(2.4), 0)
    assert numbers(read_frames(path, WANTED)) == WANTED


def test_a_stream_that_was_cut_begins_with_its_first_keyframe(tmp_path):
    path = write_video(tmp_path / "a.ts", 60, gop=20, **{"x264-params": "open-gop=1"})
    with av.open(path) as container:
        positions = [p.pos for p in container.demux(video=0) if p.size]
    path.write_bytes(path.read_bytes()[:376] + path.read_bytes()[positions[7] :])
    count = probe(path).num_frames
    assert 30 < count < 53
    assert numbers(read_frames(path, range(count))) == list(range(60 - count, 60))


def write_tracks(path, *tracks):
    """A film of several tracks, each of so many frames from a number on, of a size; one in 1/25 s, or in so many."""
    with av.open(path, "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in tracks]
        for stream, (_, _, size, *_) in zip(streams, tracks, strict=True):
            stream.codec_context.time_base = Fraction(1, 25)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for stream, (count, first, size, *every) in zip(streams, tracks, strict=True):
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(barcode(first + number)).reformat(*size)
                frame.pts, frame.time_base = number * (every or [1])[0], Fraction(1, 25)
                container.mux(stream.encode(frame))
            if count:
                container.mux(stream.encode(None))
    return path


SIZE = (WIDTH, HEIGHT)
FILM = (30, 0, SIZE)


OF_SEVERAL_TRACKS = {
    "still first": ((1, 500, SIZE), FILM),
    "preview first": ((5, 500, (2 * WIDTH, 2 * HEIGHT)), FILM),
    "empty first": ((0, 500, SIZE), FILM),
    "small first": ((30, 500, (WIDTH // 2, HEIGHT // 2)), FILM),
    "another view": (FILM, (31, 500, SIZE)),
    "still last": (FILM, (1, 500, SIZE)),
    "slow and large": ((30, 0, (2 * WIDTH, 2 * HEIGHT), 5), (150, 500, SIZE)),
}


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
@pytest.mark.parametrize("tracks", OF_SEVERAL_TRACKS)
def test_of_several_tracks_the_film_is_read(tmp_path, suffix, tracks):
    path = write_tracks(tmp_path / f"a.{suffix}", *OF_SEVERAL_TRACKS[tracks])
    assert probe(path).num_frames == 30
    assert numbers(read_frames(path, range(30))) == list(range(30))
    assert numbers(torch.stack([frame for frame, _ in decoding.play(path)[1]])) == list(range(30))


def test_a_file_that_grows_while_it_plays_keeps_its_clock(tmp_path):
    at = [5 * number for number in range(40)] + [200 + number for number in range(60)]
    path = write_video(tmp_path / "a.mkv", gop=5, b_frames=0, times=at)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.warns(UserWarning, match="whose end is missing"):
        frames = decoding.play(path)[1]
    shown = [next(frames)]
    path.write_bytes(whole)
    shown += frames
    found = numbers(torch.stack([frame for frame, _ in shown]))
    assert found == list(range(100))
    assert [time for _, time in shown] == pytest.approx([number / 25 for number in at], abs=2e-3)


@pytest.mark.parametrize("suffix", ["avif", "gif", "png"])
@pytest.mark.parametrize("pictures", [2, 8])
def test_animations_are_read_whole(tmp_path, suffix, pictures):
    first, *others = [Image.fromarray(barcode(number)) for number in range(pictures)]
    try:
        first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=others, duration=40)
    except (KeyError, ValueError) as error:  # Pillow comes without the encoder
        pytest.skip(str(error))
    assert numbers(read_frames(tmp_path / f"a.{suffix}", range(pictures))) == list(range(pictures))
    assert probe(tmp_path / f"a.{suffix}").num_frames == pictures
    assert probe(tmp_path / f"a.{suffix}").fps == pytest.approx(25)


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_the_last_picture_of_an_animation_is_held_as_long_as_it_says(tmp_path, suffix):
    first, *others = [Image.fromarray(barcode(number)) for number in range(4)]
    path = tmp_path / f"a.{suffix}"
    first.save(path, save_all=True, append_images=others, duration=[100, 200, 100, 3000])
    info, played = decoding.play(path)
    assert (info.duration, info.fps) == (pytest.approx(3.4), pytest.approx(4 / 3.4))
    assert [time for _, time in played] == pytest.approx([0, 0.1, 0.3, 0.4])


@pytest.mark.parametrize("suffix", ["webp", "tiff"])
def test_pictures_of_which_ffmpeg_reads_one_are_refused(tmp_path, suffix):
    first, *others = [Image.fromarray(barcode(number)) for number in range(8)]
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=others)
    with pytest.raises(ValueError, match="with 8 pictures, of which FFmpeg reads at most one"):
        probe(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("suffix", ["png", "tiff", "jpg"])
def test_a_name_is_no_pattern(tmp_path, suffix):
    for name, number in (("im%d", 9), ("im1", 1), ("im2", 2), ("im*", 3)):
        Image.fromarray(barcode(number)).save(tmp_path / f"{name}.{suffix}")
    assert numbers(read_frames(tmp_path / f"im%d.{suffix}", [0])) == [9]
    assert probe(tmp_path / f"im%d.{suffix}").num_frames == 1
    assert numbers(read_frames(tmp_path / f"im*.{suffix}", [0])) == [3]


def test_a_photograph_comes_upright_whatever_else_its_file_says(tmp_path):
    picture = Image.fromarray(barcode(9)).rotate(90, expand=True)
    exif = picture.getexif()
    exif[0x0112] = 6  # turned clockwise to be upright
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    info = probe(tmp_path / "a.jpg")
    if info.rotation:  # FFmpeg 8 and later
        assert numbers(read_frames(tmp_path / "a.jpg", [0])) == [9]
    assert {info.width, info.height} == {WIDTH, HEIGHT}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_a_photograph_is_mirrored_as_its_file_says(tmp_path, suffix):
    y, x = np.mgrid[:64, :96]
    path, picture = (
        tmp_path / f"a.{suffix}",
        Image.fromarray(np.stack([2 * x, 3 * y, x], -1).astype(np.uint8)),
    )
    turned = set()
    for orientation in range(1, 9):
        exif = picture.getexif()
        exif[0x0112] = orientation
        picture.save(path, exif=exif, quality=95)
        if not probe(path).rotation and orientation in (3, 6, 8):
            pytest.skip("this FFmpeg does not read EXIF")
        upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        frame = read_frames(path, [0])[0].permute(1, 2, 0).numpy()
        assert np.abs(frame.astype(int) - upright).mean() < 6, orientation
        turned.add(upright.tobytes())
    assert len(turned) == 8


def test_a_variable_frame_rate_does_not_move_frames(tmp_path):
    times = np.cumsum(np.random.default_rng(0).integers(1, 9, 60)).tolist()
    path = write_video(tmp_path / "variable.mp4", times=times)
    info = probe(path)
    assert numbers(read_frames(path, WANTED)) == WANTED
    assert info.num_frames == 60
    assert info.duration == pytest.approx((times[-1] - times[0]) / 25, abs=9 / 25)
    assert info.fps == pytest.approx(60 / info.duration)


def test_frames_are_rgb_uint8_near_the_original(tmp_path):
    frames = read_frames(write_video(tmp_path / "a.mp4", crf="1"), torch.tensor([5, 21]))
    assert (frames.dtype, frames.shape) == (torch.uint8, (2, 3, HEIGHT, WIDTH))
    expected = torch.from_numpy(np.stack([barcode(5), barcode(21)])).permute(0, 3, 1, 2)
    assert (frames.int() - expected.int()).abs().max() < 16


def test_no_indices_give_no_frames(tmp_path):
    assert read_frames(write_video(tmp_path / "a.mp4"), []).shape == (0, 3, HEIGHT, WIDTH)


def test_one_late_frame_decodes_one_group_of_pictures(tmp_path, decoded):
    for name in ("a.mp4", "a.mkv", "a.ts"):
        path = write_video(tmp_path / name, 300, gop=12)
        decoded.clear()
        assert numbers(read_frames(path, [290])) == [290]
        assert len(decoded) <= 1 + 12, name  # the first frame, for its size


def test_decoding_stops_after_the_last_wanted_frame(tmp_path, decoded):
    read_frames(write_video(tmp_path / "a.mp4", 300, gop=300, b_frames=0), [20, 4])
    assert len(decoded) == 1 + 21


def test_frames_that_no_wanted_one_needs_are_not_decoded(tmp_path, decoded):
    path = write_video(tmp_path / "a.mkv", 61, gop=60, codec="mpeg2video")  # B B P B B P: none needs a B
    assert numbers(read_frames(path, [58])) == [58]
    assert len(decoded) <= 1 + 60 // 3 + 2


def test_a_seek_that_lands_too_late_costs_time_but_no_frame(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4")
    real = decoding._seek
    late = lambda container, stream, key: real(container, stream, key._replace(pts=10**9, dts=10**9))  # noqa: E731
    monkeypatch.setattr(decoding, "_seek", late)
    assert numbers(read_frames(path, WANTED)) == WANTED
    monkeypatch.setattr(decoding, "_seek", lambda *_: iter(()))
    assert numbers(read_frames(path, WANTED)) == WANTED


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_rotated_videos_come_upright(tmp_path, rotation):
    path = write_video(tmp_path / "a.mp4", rotation=rotation)
    quarter = rotation // 90
    info = probe(path)
    assert info.rotation == rotation % 360
    assert (info.width, info.height) == ((HEIGHT, WIDTH) if quarter % 2 else (WIDTH, HEIGHT))
    frames = read_frames(path, WANTED)
    assert frames.shape[-2:] == (info.height, info.width)
    assert numbers(torch.rot90(frames, -quarter, dims=(-2, -1))) == WANTED


def test_all_eight_display_matrices_move_each_pixel_where_they_say():
    picture = torch.arange(6).view(1, 2, 3)
    for a, b, c, d in [(x, 0, 0, y) for x in (1, -1) for y in (1, -1)] + [
        (0, x, y, 0) for x in (1, -1) for y in (1, -1)
    ]:
        orientation = containers.Orientation.from_matrix([a, b, 0, c, d, 0, 0, 0, 1])
        moved = {(a * x + c * y, b * x + d * y): int(picture[0, y, x]) for y in range(2) for x in range(3)}
        left, top = min(x for x, _ in moved), min(y for _, y in moved)
        for (x, y), value in moved.items():
            assert orientation.apply(picture)[0, y - top, x - left] == value


def test_a_packet_of_vp8_that_is_never_shown_is_no_frame(tmp_path):
    source = write_video(tmp_path / "a.webm", 30, codec="libvpx", b_frames=0, deadline="realtime")
    with av.open(source) as read, av.open(tmp_path / "hidden.webm", "w") as write:
        out = write.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(p for p in read.demux(video=0) if p.size):
            data = bytearray(bytes(packet))
            if number == 17:
                data[0] &= ~0x10
            copy = av.Packet(bytes(data))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.stream, copy.is_keyframe = out, packet.is_keyframe
            write.mux(copy)
    path = tmp_path / "hidden.webm"
    assert probe(path).num_frames == 29
    assert numbers(read_frames(path, range(29))) == [n for n in range(30) if n != 17]


def test_a_truncated_file_is_the_frames_it_still_holds(tmp_path):
    for name, options in (("a.mp4", {"movflags": "+faststart"}), ("a.mkv", {}), ("a.ts", {})):
        path = write_video(tmp_path / name, 200, container_options=options)
        os.truncate(path, path.stat().st_size * 6 // 10)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            num_frames = probe(path).num_frames
        assert 60 < num_frames < 200, name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the very last packet may be cut in two
            assert numbers(read_frames(path, range(num_frames - 3))) == list(range(num_frames - 3)), name


def test_a_frame_that_cannot_be_decoded_is_replaced_by_an_earlier_one_with_one_warning(tmp_path):
    path = write_video(tmp_path / "a.mp4", 60, b_frames=0)
    with av.open(path) as container:
        damaged = [(p.pos, p.size) for p in container.demux(video=0) if p.size][48:]
    with open(path, "r+b") as file:
        for position, size in damaged:
            file.seek(position)
            file.write(bytes(size))
    assert probe(path).num_frames == 60
    with pytest.warns(
        UserWarning, match="3 wanted frames cannot be decoded, the first of them frame 50 of 60"
    ) as seen:
        frames = read_frames(path, [59, 10, 50, 47, 55])
    assert numbers(frames) == [47, 10, 47, 47, 47]
    assert [str(w.filename) for w in seen] == [__file__]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_strict_refuses_frames_that_ffmpeg_mends(tmp_path, codec):
    path = write_video(tmp_path / "a.mp4", 60, codec=codec, b_frames=0)
    with av.open(path) as container:
        position, size = [(p.pos, p.size) for p in container.demux(video=0) if p.size][30]
    with open(path, "r+b") as file:
        file.seek(position + 20)
        file.write(b"\x55" * (size - 20))
    assert read_frames(path, [30]).shape == (1, 3, HEIGHT, WIDTH)
    assert numbers(read_frames(path, [29, 50], strict=True)) == [29, 50]
    with pytest.raises(
        ValueError, match="1 wanted frames cannot be decoded, the first of them frame 30 of 60"
    ):
        read_frames(path, [29, 30], strict=True)


@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("size", [32, 96])
def test_frames_come_at_the_size_asked_for(tmp_path, size, rotation):
    path = write_video(tmp_path / "a.mp4", rotation=rotation)
    frames = read_frames(path, WANTED, size=size)
    expected = torch.Size([size, size * WIDTH // HEIGHT])
    assert frames.shape[-2:] == (expected[::-1] if rotation else expected)
    assert numbers(torch.rot90(frames, -rotation // 90, dims=(-2, -1))) == WANTED
    assert frames.shape == F.resize(read_frames(path, WANTED), [size]).shape


def test_scaling_is_that_of_torchvision_up_to_rounding(tmp_path):
    path = write_video(tmp_path / "a.mp4", crf="1")
    scaled, full = read_frames(path, WANTED, size=40), read_frames(path, WANTED)
    difference = (scaled.int() - F.resize(full, [40], antialias=True).int()).abs()
    assert difference.float().mean() < 3
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        read_frames(path, [0], size=0)
    with pytest.raises(ValueError, match=r"got 163840 x 65536 for size=65536 from .*pass a smaller size"):
        read_frames(path, [0], size=65536)


def test_a_damaged_start_is_replaced_by_the_first_frame_that_decodes(tmp_path):
    path = write_video(tmp_path / "a.mkv", 60, b_frames=0)
    with av.open(path) as container:
        damaged = [(p.pos, p.size) for p in container.demux(video=0) if p.size][:12]
    data = bytearray(path.read_bytes())
    for position, size in damaged:
        data[position + 16 : position + size] = bytes(size - 16)
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="2 wanted frames cannot be decoded, the first of them frame 0"):
        assert numbers(read_frames(path, [0, 5, 20])) == [12, 12, 20]


def test_a_clip_is_sampled_and_read_in_one_call(tmp_path):
    path = write_video(tmp_path / "a.mp4", 80)
    middles, starts = [5, 15, 25, 35, 45, 55, 65, 75], [0, 10, 20, 30, 40, 50, 60, 70]
    assert read_clip(path, 8).shape == (1, 8, 3, HEIGHT, WIDTH)
    assert numbers(read_clip(path, 8)) == middles
    assert numbers(read_clip(path, 8, "twice")) == middles + starts
    assert read_clip(path, 8, "dense").shape == (10, 8, 3, HEIGHT, WIDTH)
    drawn = [read_clip(path, 8, train=True, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*drawn)


def test_what_is_no_video_is_refused_by_name(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    for path, error, message in [
        (tmp_path / "none.mp4", FileNotFoundError, "none.mp4', which does not exist"),
        (tmp_path, ValueError, "got the directory"),
        (tmp_path / "empty.mp4", ValueError, "empty.mp4', which is empty"),
        ("/dev/null", ValueError, "a pipe or a device: save"),
        (tmp_path / "noise.mp4", ValueError, "noise.mp4', which FFmpeg cannot read"),
        (write_sound(tmp_path / "song.mp3"), ValueError, "expected a file with a video stream.*audio only"),
        (write_sound(tmp_path / "cover.mp3", cover=True), ValueError, "a video stream.*audio only"),
    ]:
        for call in (probe, lambda p: read_frames(p, [0]), lambda p: read_clip(p, 8)):
            with pytest.raises(error, match=message):
                call(path)


def test_wrong_frame_numbers_are_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    for wrong in ([60], [-1]):
        with pytest.raises(IndexError, match=rf"expected frame numbers from 0 to 59, got {wrong[0]}"):
            read_frames(path, wrong)
    for wrong, got in (
        ([0.5], "0.5 of type float"),
        (torch.zeros(2), "0.0 of type float"),
        (torch.ones(60, dtype=torch.bool), "a mask of bools"),
        (np.ones(60, dtype=bool), "a mask of bools"),
        ([3, True], "True of type bool"),
        (["3"], "'3' of type str"),
        (torch.zeros(2, 2, dtype=torch.int64), r"shape \(2, 2\)"),
        (3, "3 of type int"),
        ("33", "'33' of type str"),
    ):
        with pytest.raises(TypeError, match=f" must .*got {got}"):
            read_frames(path, wrong)  # pyright: ignore[reportArgumentType]
    assert numbers(read_frames(path, np.array([3, 1]))) == [3, 1]
    assert numbers(read_frames(path, _Series([3, 1]))) == [3, 1]  # pyright: ignore[reportArgumentType]


class _Series(list):
    """Of another library: it has a dtype, but no `tolist`."""

    dtype = "int64"


def test_a_path_may_be_bytes(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    assert probe(os.fsencode(path)).num_frames == 60
    with pytest.raises(FileNotFoundError, match="got 'none.mp4'"):
        probe(b"none.mp4")


def test_huge_frames_are_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 5)
    monkeypatch.setattr(containers, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    with pytest.raises(ValueError, match="at most MAX_PIXELS = 10239 pixels, got 160 x 64"):
        probe(path)


def test_a_colon_in_a_name_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.rename(write_video(tmp_path / "a.mp4"), "take:1.mp4")
    assert probe("take:1.mp4").num_frames == 60


def test_the_package_imports_neither_av_nor_timm_and_says_which_extra_is_missing(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    code = """if True:
        import sys
        import tsm_triton.video
        assert not {"av", "timm"} & set(sys.modules)
        sys.modules["av"] = None
        try:
            tsm_triton.video.probe("a.mp4")
        except ImportError as error:
            assert "pip install 'av>=14.1'" in str(error)
        else:
            raise AssertionError
    """
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_a_keyframe_in_the_words_of_the_container_alone_is_not_begun_at(tmp_path):
    path = tmp_path / "all_keys.mp4"
    pictures = np.kron(np.random.RandomState(0).randint(0, 256, (60, 90, 3)), np.ones((6, 6, 1))).astype(
        np.uint8
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"g": "40"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for i in range(80):
            picture = np.ascontiguousarray(pictures[3 * i % 150 :, 3 * i % 250 :][:96, :160])
            frame = av.VideoFrame.from_ndarray(picture).reformat(format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    at = data.find(b"stss")  # the list of keyframes; without it all are
    data[at : at + 4] = b"free"
    path.write_bytes(data)
    expected = read_frames(path, range(80))
    for wanted in ([30], [39, 70], [5, 60, 61]):
        assert torch.equal(read_frames(path, wanted, strict=True), expected[wanted])


def test_a_picture_is_converted_by_one_thread():
    # a DataLoader has a worker for each core; without the word PyAV starts a thread a core for each picture
    knows = "threads" in av.video.reformatter.VideoReformatter.reformat.__doc__
    assert containers._one_thread() == ({"threads": 1} if knows else {})
