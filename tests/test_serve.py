"""`tsm-triton serve`: each connection a stream of its own, equal to `Streaming`, that leaves nothing behind."""

import io
import json
import re
import signal
import socket
import threading
import time
from collections import deque
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tsm_triton.cli import main
from tsm_triton.commands.demo.motion_clips import CLASSES
from tsm_triton.commands.serve import command, uploads
from tsm_triton.commands.serve.app import make_app
from tsm_triton.commands.serve.service import Limits
from tsm_triton.video import read_frames

from .serving import (
    NUM_SEGMENTS,
    SIZE,
    arguments,
    asked,
    motion,
    part,
    serving,
    streamed,
    write_motion,
    write_weights,
)
from .video_files import write_sound

ROOT = Path(__file__).parent.parent
CAMERA = {"source": "camera"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "causal.pt")


@pytest.fixture
def served(weights, tmp_path):
    """A server in this process, which must have forgotten all its clients in the end."""

    @contextmanager
    def served(*options, **limits):
        folder = tmp_path / "uploads"
        folder.mkdir()
        service = command._service(arguments(weights, "--device", "cpu", *options), folder)
        object.__setattr__(service, "limits", Limits(**limits))
        with TestClient(make_app(service)) as client:
            yield client, service
            until = time.monotonic() + 10
            while service.batcher.num_streams or list(folder.iterdir()):
                assert time.monotonic() < until, "expected no streams and no files to be left"
                time.sleep(0.01)

    return served


def encoded(frame):
    file = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).numpy()).save(file, "png")
    return file.getvalue()


def show(stream, frame):
    stream.send_bytes(encoded(frame))
    return stream.receive_json()


def assert_seen(answers, expected):
    assert len(answers) == len(expected)
    for answer, top in zip(answers, expected, strict=True):
        assert [label for label, _ in answer["top"]] == [label for label, _ in top]
        shares = [share for _, share in answer["top"]]
        assert shares == pytest.approx([share for _, share in top], abs=1e-4)


def upload(stream, name, data):
    """The answers to a file up to its end, and the pictures among them."""
    stream.send_text(asked(name, data))
    answers, pictures = [], []
    while True:
        message = stream.receive()
        if message["type"] == "websocket.close":
            return answers, pictures
        if message.get("bytes") is not None:
            pictures.append(message["bytes"])
            continue
        answers.append(json.loads(message["text"]))
        if "send" in answers[-1]:
            stream.send_bytes(part(answers[-1], data))


def test_the_page_is_one_file_that_loads_nothing_from_elsewhere(served):
    with served() as (client, _):
        answer = client.get("/")
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert not re.findall(r"""(?:src|href)=["'](?!data:)|https?://[\w]|@import|url\(""", answer.text)
        for path in ("/docs", "/redoc", "/openapi.json"):  # FastAPI's own, which load from a CDN
            assert client.get(path).status_code == 404


def test_the_checkpoint_says_what_is_served(served):
    with served("--max-upload", 7, max_bytes=7 * 10**6) as (client, _):
        assert client.get("/model").json() == {
            "model": "test_resnet",
            "classes": len(CLASSES),
            "num_segments": NUM_SEGMENTS,
            "size": [SIZE, SIZE],
            "max_bytes": 7 * 10**6,
        }


@pytest.mark.parametrize("options", [(), ("--fused",)])
def test_a_cameras_labels_are_those_of_a_stream(options, served, weights):
    frames = motion(6)
    expected = streamed(weights, frames)
    assert len({top[0][0] for top in expected}) > 1  # the labels change, or the test tells little
    with served(*options) as (client, _), client.websocket_connect("/stream") as stream:
        stream.send_json(CAMERA)
        answers = [show(stream, frame) for frame in frames]
    assert [answer["frame"] for answer in answers] == list(range(6))
    times = [answer["time"] for answer in answers]
    assert times == sorted(times)
    assert_seen(answers, expected)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_an_exported_stream_is_served_as_its_checkpoint_is(suffix, weights, tmp_path, capsys):
    path, frames = tmp_path / f"live{suffix}", motion(4)
    assert main(["export", str(weights), "--to", suffix[1:], "--path", str(path), "--streaming"]) == 0
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    service = command._service(arguments(path, "--device", "cpu"), uploads)
    with TestClient(make_app(service)) as client:
        said = client.get("/model").json()
        assert (said["model"], said["num_segments"], said["size"]) == ("live", None, [SIZE, SIZE])
        with client.websocket_connect("/stream") as first, client.websocket_connect("/stream") as second:
            for stream in (first, second):
                stream.send_json(CAMERA)
            answers = [[show(stream, frame) for stream in (first, second)] for frame in frames]
    for seen in zip(*answers, strict=True):
        assert_seen(seen, streamed(weights, frames))
    for more in (["--fused"], ["--model", "resnet18"], ["--shift-div", "4"]):
        assert main(["serve", str(path), "--device", "cpu", *more]) == 2
        assert more[0] in capsys.readouterr().err
    clips = tmp_path / "clips.onnx"
    assert main(["export", str(weights), "--to", "onnx", "--path", str(clips)]) == 0
    assert main(["serve", str(clips), "--device", "cpu"]) == 2
    assert "expected a stream's file" in capsys.readouterr().err


def test_clients_in_turn_do_not_mix(served, weights):
    clips = [motion(5, kind) for kind in range(3)]
    answers = [[] for _ in clips]
    with served() as (client, service):
        with (
            client.websocket_connect("/stream") as first,
            client.websocket_connect("/stream") as second,
            client.websocket_connect("/stream") as third,
        ):
            streams = (first, second, third)
            for stream in streams:
                stream.send_json(CAMERA)
            for t in range(5):
                for stream, clip in zip(streams, clips, strict=True):  # all at once: one batch
                    stream.send_bytes(encoded(clip[t]))
                for stream, seen in zip(streams, answers, strict=True):
                    seen.append(stream.receive_json())
            assert service.batcher.num_streams == 3
        with client.websocket_connect("/stream") as again:  # in the place of one that left
            again.send_json(CAMERA)
            answers.append([show(again, frame) for frame in clips[0]])
    for seen, clip in zip(answers, [*clips, clips[0]], strict=True):
        assert_seen(seen, streamed(weights, clip))


@pytest.mark.parametrize("broken", [b"", b"no picture", "half a picture"])
def test_a_broken_picture_costs_the_stream_nothing(broken, served, weights):
    frames = motion(4)
    data = encoded(frames[1])[:200] if broken == "half a picture" else broken
    with served() as (client, _), client.websocket_connect("/stream") as stream:
        stream.send_json(CAMERA)
        answers = [show(stream, frame) for frame in frames[:2]]
        stream.send_bytes(data)
        refusal = stream.receive_json()
        answers += [show(stream, frame) for frame in frames[2:]]
    assert refusal["frame"] == 2
    assert re.search("expected a picture, got .* encode it as JPEG or PNG", refusal["error"])
    assert_seen(answers, streamed(weights, frames))


@pytest.mark.parametrize("shape", [(3, 1, 20_000), (3, 20_000, 1)])
def test_a_strip_is_refused_before_it_is_scaled_up(shape, served):
    with served() as (client, _), client.websocket_connect("/stream") as stream:
        stream.send_json(CAMERA)
        assert (
            "at most 16 times as long as wide" in show(stream, torch.zeros(shape, dtype=torch.uint8))["error"]
        )
        assert "top" in show(stream, motion(1)[0])


def test_files_that_are_long_to_open_hold_nobody_up(served, monkeypatch):
    opened, opening = threading.Event(), []

    def play(path):
        opening.append(path)
        opened.wait(60)
        raise ValueError("expected a video")

    monkeypatch.setattr(uploads, "play", play)
    monkeypatch.setattr(uploads.Upload, "_check_format", lambda upload: None)
    with served("--clients", 41) as (client, _), ExitStack() as stack:
        stack.callback(opened.set)
        others = [stack.enter_context(client.websocket_connect("/stream")) for _ in range(40)]
        for other in others:  # more than asyncio has threads by itself
            other.send_text(asked("a.mp4", b"video"))
            other.send_bytes(part(other.receive_json(), b"video"))
        with client.websocket_connect("/stream") as stream:
            stream.send_json(CAMERA)
            assert "top" in show(stream, motion(1)[0])
        while len(opening) < 40:
            time.sleep(0.01)
        opened.set()
        assert [other.receive_json()["error"] for other in others] == ["expected a video"] * 40


def test_a_files_labels_are_those_of_a_stream(served, weights, tmp_path):
    path = write_motion(tmp_path / "clip.mp4", 10)
    began = time.monotonic()
    with served(chunk=10_000) as (client, _), client.websocket_connect("/stream") as stream:
        answers, pictures = upload(stream, "clip.mp4", path.read_bytes())
    assert time.monotonic() - began > 9 / 50  # no faster than it plays
    parts = [answer["send"] for answer in answers if "send" in answer]
    assert len(parts) == -(-path.stat().st_size // 10_000) > 1
    (video,) = [answer["video"] for answer in answers if "video" in answer]
    assert (video["num_frames"], video["width"], video["height"]) == (10, 64, 64)
    seen = [answer for answer in answers if "top" in answer]
    frames = read_frames(path, range(10))
    assert_seen(seen, streamed(weights, frames))
    assert [answer["time"] for answer in seen] == pytest.approx([t / 50 for t in range(10)], abs=2e-3)
    assert answers[-1] == {"done": 10}
    for picture, frame in zip(pictures, frames, strict=True):
        with Image.open(io.BytesIO(picture)) as image:
            shown = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        assert (shown.view(64, 64, 3).permute(2, 0, 1).float() - frame.float()).abs().mean() < 8


def playlist(tmp_path):
    write_motion(tmp_path / "secret.ts")
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/secret.ts\n#EXT-X-ENDLIST\n".encode()


def concatenation(tmp_path):
    write_motion(tmp_path / "uploads" / "secret.mp4")
    return b"ffconcat version 1.0\nfile secret.mp4\n"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: b"", "expected a video, got 'the.mp4', which is empty"),
        (lambda _: b"no video at all" * 100, "which FFmpeg cannot read .*: is it a video"),
        (lambda _: bytes(300_001), "expected a video of at most 0 MB, got 'the.mp4' of 0 MB: cut or scale"),
        (
            lambda tmp: write_sound(tmp / "a.mp3").read_bytes(),
            "a file with a video stream, got 'the.mp4' with audio",
        ),
        (lambda tmp: write_motion(tmp / "a.mp4").read_bytes()[:3000], "expected a video.*, got 'the.mp4'"),
        (playlist, "which FFmpeg cannot read"),
        (concatenation, "which FFmpeg cannot read"),
    ],
    ids=["empty", "text", "large", "sound", "cut off", "playlist", "concatenation"],
)
def test_what_is_no_video_is_refused_by_its_name(make, words, served, tmp_path):
    with served(max_bytes=300_000) as (client, service), client.websocket_connect("/stream") as stream:
        data = make(tmp_path)
        answers, pictures = upload(stream, "the.mp4", data)
        (service.folder / "secret.mp4").unlink(missing_ok=True)
    assert re.search(words, answers[-1]["error"])
    assert str(tmp_path) not in answers[-1]["error"]
    assert not pictures


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (["no json"], "the source first, as a JSON object"),
        (["[1]"], "the source first"),
        ([b"\0"], "the source first"),
        (['{"source": "radio"}'], "expected the source 'camera' or 'file', got 'radio'"),
        (['{"source": "file", "bytes": true}'], "got a bool: pass a whole number"),
        (['{"source": "file", "bytes": 1e3}'], "got a float: pass a whole number"),
        (['{"source": "file", "bytes": 1' + "0" * 400 + "}"], "expected a video of at most"),
        (["[" * 100000], "as a JSON object"),
        (['{"source": "file", "bytes": -1, "name": {}}'], "which is empty"),
        (['{"source": "file", "bytes": 5}', b"123456"], "expected 5 bytes of 'video', got 6"),
        (['{"source": "file", "bytes": 5}', "12345"], "expected a binary message, got text"),
        (['{"source": "camera"}', "picture"], "expected a binary message, got text"),
        (['{"source": "camera"}'], "expected a picture within 0 seconds, got none"),
        (['{"source": "file", "bytes": 5}'], "expected a picture within 0 seconds, got none"),
        ([], "expected a picture within 0 seconds, got none"),
    ],
)
def test_a_client_that_does_not_keep_to_the_rules_is_told(messages, words, served):
    with served(patience=0.3) as (client, _), client.websocket_connect("/stream") as stream:
        for message in messages:
            (stream.send_text if isinstance(message, str) else stream.send_bytes)(message)
        while "error" not in (answer := stream.receive_json()):
            pass
        assert re.search(words, answer["error"])
        assert stream.receive()["type"] == "websocket.close"


def test_more_clients_than_places_are_told_to_wait(served):
    with served("--clients", 1) as (client, service):
        with client.websocket_connect("/stream") as first:
            first.send_json(CAMERA)
            assert "top" in show(first, motion(1)[0])
            with client.websocket_connect("/stream") as second:
                assert "expected at most 1 streams, got one more" in second.receive_json()["error"]
            assert "top" in show(first, motion(1)[0])
        while service.batcher.num_streams:
            time.sleep(0.01)
        with client.websocket_connect("/stream") as third:
            third.send_json(CAMERA)
            assert "top" in show(third, motion(1)[0])


@pytest.mark.parametrize("moment", ["sending", "playing"])
def test_a_client_that_leaves_is_forgotten_with_its_file(moment, served, tmp_path):
    data = write_motion(tmp_path / "clip.mp4", 60, fps=8).read_bytes()
    # the server sees in the end that nothing is left
    with served(chunk=1000) as (client, service), client.websocket_connect("/stream") as stream:
        stream.send_text(asked("clip.mp4", data))
        while "send" in (answer := stream.receive_json()):
            stream.send_bytes(part(answer, data))
            if moment == "sending":
                break
        assert list(service.folder.iterdir())
        assert service.batcher.num_streams == 1


@pytest.mark.parametrize(
    ("origin", "refused"),
    [("http://testserver", False), ("http://TestServer", False), ("https://elsewhere", True), ("null", True)],
)
def test_pages_of_others_may_not_ask(origin, refused, served):
    with served() as (client, _), client.websocket_connect("/stream", headers={"origin": origin}) as stream:
        stream.send_json(CAMERA)
        answer = show(stream, motion(1)[0])
    assert ("expected this server's own page" in answer.get("error", "")) is refused
    assert ("top" in answer) is not refused


def test_scores_that_are_no_numbers_and_a_model_that_fails_are_told(served, caplog):
    with served() as (client, service):
        for fault, words in ((float("nan"), "expected finite scores"), (KeyError("broken"), "got an error")):

            def hook(module, inputs, output, fault=fault):
                if isinstance(fault, Exception):
                    raise fault
                return output * fault

            handle = service.batcher.step.model.register_forward_hook(hook)
            with client.websocket_connect("/stream") as stream:
                stream.send_json(CAMERA)
                assert words in show(stream, motion(1)[0])["error"]
            handle.remove()
        with client.websocket_connect("/stream") as stream:  # the others go on
            stream.send_json(CAMERA)
            assert "top" in show(stream, motion(1)[0])
    assert [record.message for record in caplog.records] == ["a stream failed"]


def closing_code(stream):
    with pytest.raises(ConnectionClosed) as closed:
        deque(iter(lambda: stream.recv(timeout=10), None), maxlen=0)
    return closed.value.rcvd.code


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_nothing_left(ended_by, weights, tmp_path, signals_heard):
    data = write_motion(tmp_path / "clip.mp4", 60, fps=8).read_bytes()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with serving(weights, temporary) as (address, process), ExitStack() as stack:
        stream = address.replace("http", "ws", 1).rstrip("/") + "/stream"
        sending = stack.enter_context(connect(stream, open_timeout=60))
        playing = stack.enter_context(connect(stream, open_timeout=60))
        sending.send(asked("a.mp4", bytes(10**6)))
        assert "send" in sending.recv()
        playing.send(asked("clip.mp4", data))
        playing.send(part(json.loads(playing.recv()), data))
        while "top" not in playing.recv():
            pass
        assert len([path for path in temporary.rglob("*") if "tsm-triton-serve" in str(path)]) == 3
        process.send_signal(ended_by)
        closed = list(map(closing_code, (sending, playing)))
        assert process.stdout is not None
        assert process.stdout.read().endswith("Stopped.\n")
        assert process.wait(60) == 0
    assert closed == [1012, 1012]  # the service restarts, or ends
    assert not [path for path in temporary.rglob("*") if "tsm-triton-serve" in str(path)]


def refusal(capsys, *argv):
    assert main(["serve", *map(str, argv)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tsm-triton: error: expected ")
    assert error.count("\n") == 1
    return error


def test_what_cannot_be_served_is_refused_at_once(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    both = write_weights(tmp_path / "both.pt", "bidirectional")
    said = refusal(capsys, both, "--port", 0)
    assert "expected causal weights, which read the past only, got bidirectional ones" in said
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    assert "expected 8 labels" in refusal(capsys, weights, "--port", 0, "--labels", tmp_path / "labels.txt")
    assert "does not exist" in refusal(capsys, tmp_path / "nothing.pt", "--port", 0)
    assert "--device cpu" in refusal(capsys, weights, "--port", 0, "--device", "nothing")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"got '127.0.0.1' port {port} (" in refusal(capsys, weights, "--port", port)
    assert "got 'nowhere.invalid' port 0" in refusal(
        capsys, weights, "--port", 0, "--host", "nowhere.invalid"
    )


def test_every_file_of_the_package_is_in_its_wheel():
    (settings,) = re.findall(
        r"package-data\]\ntsm_triton = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.DOTALL
    )
    package = ROOT / "tsm_triton"
    others = [path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()]
    others = [name for name in others if not name.endswith((".py", ".pyc"))]
    assert "commands/serve/page.html" in others
    assert not [
        name for name in others if not any(fnmatch(name, pattern) for pattern in json.loads(settings))
    ]
