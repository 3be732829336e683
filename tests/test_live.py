"""Live sources: URLs that are read while they come, and opened again when the connection breaks."""

import io
import itertools
import socket
import struct
import time
from fractions import Fraction

import av
import pytest
import torch
from PIL import Image

from tsm_triton.commands.stream.sources import open_source
from tsm_triton.video import live
from tsm_triton.video.decoding import play

from .servers import http_server, rtsp_server, send
from .test_decoding import OF_SEVERAL_TRACKS, write_tracks
from .video_files import HEIGHT, WIDTH, barcode, numbers, write_video

FASTSTART = {"movflags": "faststart"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No waiting before a connection is made anew."""
    monkeypatch.setattr(live, "BACKOFF", 0.01)


def come(source):
    """The numbers of the frames that come, and their times."""
    items = [item for item in source.frames if item is not None]
    times = [at for _, at in items]
    assert times == sorted(times)
    return numbers(torch.stack([frame for frame, _ in items])) if items else [], times


def stills(path, shown, **options):
    """What shows these numbers, 25 a second, as bytes; none depends on those that come after."""
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream("mpeg2video", rate=25, options={"g": "10", "bf": "0", "b": "2000000"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for time_, number in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(barcode(number))
            frame.pts, frame.time_base = time_, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.mkv", "a.avi"])
def test_a_recording_is_read_to_its_end(tmp_path, name):
    data = write_video(tmp_path / name, 30, container_options=FASTSTART).read_bytes()
    with http_server(lambda request, _: send(request, data, len(data))) as url:
        shown, times = come(open_source(f"{url}/{name}"))
    assert shown == list(range(30))
    assert times == pytest.approx([i / 25 for i in range(30)], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "codec", "b_frames"),
    [
        ("a.mp4", "libx264", 2),
        ("a.mkv", "libx264", 2),
        ("a.avi", "mpeg4", 0),
        ("a.flv", "flv", 0),
        ("a.asf", "msmpeg4", 0),
    ],
)
def test_a_recording_whose_size_no_server_says_is_read_to_its_end(tmp_path, name, codec, b_frames):
    options = FASTSTART if name == "a.mp4" else {}
    data = write_video(
        tmp_path / name, 30, codec=codec, b_frames=b_frames, container_options=options
    ).read_bytes()
    asked = []

    def answer(request, number):
        asked.append(number)
        send(request, data)

    with http_server(answer) as url:
        shown, times = come(open_source(f"{url}/{name}"))
    assert shown == list(range(30))
    assert times == pytest.approx([i / 25 for i in range(30)], abs=2e-3)
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.flv"])
@pytest.mark.parametrize("part", [1 / 3, 0.9])
def test_a_recording_whose_size_no_server_says_goes_on_after_the_last_frame(tmp_path, name, part):
    options = FASTSTART if name == "a.mp4" else {}
    data = write_video(tmp_path / name, 60, gop=6, crf="1", container_options=options).read_bytes()

    def answer(request, number):
        send(request, data if number else data[: int(len(data) * part)])

    with http_server(answer) as url:
        assert come(open_source(f"{url}/{name}"))[0] == list(range(60))


def test_a_recording_whose_size_no_server_says_may_be_shorter_than_it_says(tmp_path):
    """By half a second of sound, say; a second look tells that no more is to come."""
    data = write_video(tmp_path / "a.flv", 50, codec="flv", b_frames=0).read_bytes()
    place = data.index(b"duration") + len(b"duration") + 1
    data = data[:place] + struct.pack(">d", 2.5) + data[place + 8 :]
    with http_server(lambda request, _: send(request, data)) as url:
        assert come(open_source(f"{url}/a.flv"))[0] == list(range(50))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("tracks", OF_SEVERAL_TRACKS)
def test_of_several_tracks_the_film_comes(tmp_path, suffix, tracks):
    name = f"a.{suffix}"
    data = write_tracks(tmp_path / name, *OF_SEVERAL_TRACKS[tracks]).read_bytes()
    with http_server(lambda request, _: send(request, data, len(data))) as url:
        assert come(open_source(f"{url}/{name}"))[0] == list(range(30))


def test_beside_a_still_picture_the_animation_comes(tmp_path):
    first, *others = [Image.fromarray(barcode(number)) for number in range(3)]
    try:
        first.save(tmp_path / "a.avif", save_all=True, append_images=others, duration=40)
    except (KeyError, ValueError) as error:  # Pillow comes without the encoder
        pytest.skip(str(error))
    data = (tmp_path / "a.avif").read_bytes()
    with http_server(lambda request, _: send(request, data, len(data))) as url:
        assert come(open_source(f"{url}/a.avif"))[0] == [0, 1, 2]


@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_a_recording_that_breaks_off_goes_on_after_the_last_frame(tmp_path, name):
    data = write_video(tmp_path / name, 60, gop=6, crf="1", container_options=FASTSTART).read_bytes()

    def answer(request, number):
        send(request, data[: len(data) * (5, 7, 9)[min(number, 2)] // 9], len(data))

    with http_server(answer) as url:
        shown, times = come(open_source(f"{url}/{name}"))
    assert shown == list(range(60))
    assert times == pytest.approx([i / 25 for i in range(60)], abs=1e-3)


def test_a_recording_that_never_comes_whole_is_given_up_after_so_many_tries(tmp_path):
    data = write_video(tmp_path / "a.ts", 60, gop=6).read_bytes()
    requests = []

    def answer(request, number):
        requests.append(number)
        send(request, data[: len(data) // 2], len(data))

    with http_server(answer) as url:
        source = open_source(f"{url}/a.ts")
        shown = []
        with pytest.raises(
            live.ConnectionLostError, match=r"expected more of .*a.ts', got \d+ frames before"
        ):
            shown.extend(item for item in source.frames if item is not None)
    assert numbers(torch.stack([frame for frame, _ in shown])) == list(range(len(shown)))
    assert 20 < len(shown) < 60
    assert len(requests) <= 3 * (1 + live.RECONNECTS)  # FFmpeg asks for the end of a file, too


def test_a_live_stream_that_breaks_off_goes_on_with_what_it_shows_by_then(tmp_path):
    first = write_video(tmp_path / "a.ts", 20).read_bytes()
    second = write_video(tmp_path / "b.ts", 30, gop=5).read_bytes()

    def answer(request, number):
        if number > 1:
            return request.send_error(404)
        return send(request, (first, second)[number])

    with http_server(answer) as url:
        shown, times = come(open_source(f"{url}/live"))
    assert shown == [*range(20), *range(30)]
    assert max(b - a for a, b in itertools.pairwise(times)) < 5


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("still", [3, 20])
def test_a_live_stream_that_begins_again_with_the_same_pictures_goes_on(tmp_path, still, reset):
    """Its clock begins again, too, so that nothing tells the connections apart but what comes later."""
    parts = [
        stills(tmp_path / "a.ts", [0] * still + [*range(1, 20)]),
        stills(tmp_path / "b.ts", [0] * still + [*range(101, 130)]),
    ]

    def answer(request, number):
        if number > 1:
            return request.send_error(404)
        send(request, parts[number])
        request.wfile.flush()
        if reset and number == 0:
            time.sleep(0.2)
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.connection.close()
        return None

    with http_server(answer) as url:
        shown, _ = come(open_source(f"{url}/live"))
    assert shown == [0] * still + [*range(1, 20)] + [0] * still + [*range(101, 130)]


def test_a_still_scene_whose_clock_goes_on_behind_a_break_is_no_recording(tmp_path):
    parts = [stills(tmp_path / f"{n}.ts", [0] * 20, output_ts_offset=str(9 * n)) for n in range(2)]

    def answer(request, number):
        return request.send_error(404) if number > 1 else send(request, parts[number])

    with http_server(answer) as url:
        assert len(come(open_source(f"{url}/live"))[0]) == 40


@pytest.mark.parametrize(
    ("name", "codec", "part", "requests"),
    [("a.ts", "libx264", 1, 2), ("a.ts", "libx264", 0.6, 3), ("a.m2v", "mpeg2video", 0.7, 3)],
)
def test_a_recording_without_a_length_goes_on_after_the_last_frame(
    tmp_path, monkeypatch, name, codec, part, requests
):
    monkeypatch.setattr(live, "OPENING", 50)
    data = write_video(tmp_path / name, 60, codec=codec, gop=6).read_bytes()
    asked = []

    def answer(request, number):
        asked.append(number)
        send(request, data if number else data[: int(len(data) * part)])

    with http_server(answer) as url:
        shown = come(open_source(f"{url}/live"))[0]
    assert len(shown) == 60
    assert (
        sum(number == place for place, number in enumerate(shown)) > 55
    )  # the last one before the break came half
    assert len(asked) == requests


def test_a_stream_without_a_length_that_begins_again_has_ended(tmp_path):
    data = write_video(tmp_path / "a.ts", 20).read_bytes()
    with http_server(lambda request, _: send(request, data)) as url:
        assert come(open_source(f"{url}/live"))[0] == list(range(20))


@pytest.mark.skipif(
    av.__version__.startswith("14.1."), reason="its FFmpeg crashes on a transport stream inside RTP"
)
def test_rtsp_is_read_over_tcp(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "RECONNECTS", 1)
    data = write_video(tmp_path / "a.ts", 50, gop=5).read_bytes()
    with rtsp_server(data) as (url, asked):
        source = open_source(url)
        shown = numbers(torch.stack([item[0] for item in itertools.islice(filter(None, source.frames), 40)]))
        source.frames.close()
    assert shown == list(range(shown[0], shown[0] + 40))
    (setup,) = [head for head in asked if head.startswith("SETUP")]
    assert "RTP/AVP/TCP" in setup


def test_a_source_that_keeps_silent_lets_its_reader_stop(tmp_path):
    data = write_video(tmp_path / "a.ts", 20).read_bytes()

    def answer(request, _):
        send(request, data)
        request.wfile.flush()
        time.sleep(5)

    with http_server(answer) as url:
        source, began = open_source(f"{url}/live"), time.monotonic()
        assert None in list(itertools.islice(source.frames, 40))
        source.frames.close()
        assert time.monotonic() - began < 4.5


@pytest.mark.parametrize("url", ["{}/none.mp4", "http://127.0.0.1:1/a.mp4", "nothing://127.0.0.1/a"])
def test_what_is_not_there_is_refused_at_once_and_names_no_password(url):
    with (
        http_server(lambda request, _: request.send_error(404)) as server,
        pytest.raises(
            ValueError, match="expected a video at '.*', got nothing that FFmpeg can read"
        ) as error,
    ):
        open_source(url.format(server).replace("//", "//me:secret@"))
    assert "secret" not in str(error.value)


def test_a_file_has_a_url_too(tmp_path):
    path = write_video(tmp_path / "a b.mp4", 5)
    assert come(open_source(path.as_uri()))[0] == list(range(5))


def test_a_playlist_whose_clock_begins_again_is_read_once(tmp_path):
    parts = [write_video(tmp_path / f"{n}.ts", 10 * (n + 3), gop=10).read_bytes() for n in range(3)]
    entries = "#EXT-X-DISCONTINUITY\n".join(f"#EXTINF:{0.4 * (n + 3)},\n{n}.ts\n" for n in range(3))
    playlist = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n{entries}#EXT-X-ENDLIST\n".encode()
    asked = []

    def answer(request, _):
        asked.append(name := request.path.strip("/"))
        data = playlist if name.endswith("m3u8") else parts[int(name[0])]
        send(request, data, len(data))

    with http_server(answer) as url:
        shown, times = come(open_source(f"{url}/a.m3u8"))
    assert shown == [*range(30), *range(40), *range(50)]
    assert times == pytest.approx([i / 25 for i in range(120)], abs=1e-3)
    assert asked.count("a.m3u8") == 1


def test_a_clock_never_runs_backwards():
    clock = live._Clock(live.LEAP)
    theirs = [3.0, 3.04, 3.0, None, 3.1, 90000.0, 90000.04, 0.0]
    times = [clock.at(at, 0.04) for at in theirs]
    assert times == pytest.approx([0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.28])
    clock.resume(60.0)
    assert clock.at(7.0, 0.04) == pytest.approx(60.28)


GAPS = [0, 1, 2, 3, 10, 11, 12, 13, 30, 31, 32, 33, 350, 351, 1300, 1301]


@pytest.mark.parametrize(
    ("name", "codec", "at"),
    [
        ("a.avi", "mpeg4", GAPS),
        ("a.avi", "libx264", GAPS),
        ("a.asf", "msmpeg4", GAPS),
        ("a.mp4", "mpeg4", GAPS),
        ("a.mkv", "libx264", GAPS),
        ("a.mp4", "libx264", range(0, 4000, 500)),
        ("a.avi", "libx264", range(0, 4000, 500)),
    ],
)
def test_gaps_are_those_of_the_file(tmp_path, name, codec, at):
    options = dict(codec=codec, times=at, b_frames=0)
    path = write_video(tmp_path / name, container_options=FASTSTART if name == "a.mp4" else {}, **options)
    data = path.read_bytes()
    with http_server(lambda request, _: send(request, data, len(data))) as url:
        shown, times = come(open_source(f"{url}/{name}"))
    assert shown == list(range(len(at)))
    assert times == pytest.approx([number / 25 for number in at], abs=2e-3)
    assert times == pytest.approx([time for _, time in play(path)[1]], abs=2e-3)


def test_a_camera_whose_scene_is_still_goes_on_behind_a_break():
    def pictures(numbers):
        for number in numbers:
            picture = io.BytesIO()
            Image.fromarray(barcode(number)).save(picture, "jpeg", quality=95)
            yield b"--f\r\nContent-Type: image/jpeg\r\n\r\n" + picture.getvalue() + b"\r\n"

    def answer(request, number):
        if number > 1:
            return request.send_error(404)
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace;boundary=f")
        request.end_headers()
        for picture in pictures([0, *range(1 + 100 * number, 20 + 100 * number)]):
            request.wfile.write(picture)
        return None

    with http_server(answer) as url:
        shown, _ = come(open_source(f"{url}/camera"))
    assert {0, 15, 101, 115} <= set(shown)


def test_pictures_that_a_camera_sends_one_by_one_are_timed_as_they_come(tmp_path):
    with av.open(tmp_path / "a.mjpeg", "w", format="mpjpeg") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(12):
            frame = av.VideoFrame(64, 48, "yuvj420p")
            frame.pts = number
            container.mux(stream.encode(frame))
    parts = (tmp_path / "a.mjpeg").read_bytes().split(b"--ffmpeg")

    def answer(request, number):
        if number:
            return request.send_error(404)
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace;boundary=ffmpeg")
        request.end_headers()
        for part in parts[1:]:
            request.wfile.write(b"--ffmpeg" + part)
            request.wfile.flush()
            time.sleep(0.1)
        return None

    with http_server(answer) as url:
        source = open_source(f"{url}/camera")
        times = [item[1] for item in source.frames if item is not None]
    assert len(times) >= 10
    assert times[-1] - times[3] > 0.05 * (len(times) - 4)
