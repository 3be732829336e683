"""`tsm-triton stream`: files, folders and cameras in; an annotated video and a timeline out."""

import csv
import itertools
import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tsm_triton import Streaming, patch, save_checkpoint
from tsm_triton.backbones import create_backbone
from tsm_triton.cli import main
from tsm_triton.commands.demo.motion_clips import CLASSES, render, sample_textures, write_clip
from tsm_triton.commands.interrupt import Interrupt
from tsm_triton.commands.labels import read_labels
from tsm_triton.commands.models import Said, load_trained_model
from tsm_triton.commands.stream import annotation, sources
from tsm_triton.commands.stream import command as stream
from tsm_triton.commands.stream.sources import open_source
from tsm_triton.preparation import Preparation, set_preparation
from tsm_triton.video import live, probe, read_frames
from tsm_triton.video.transforms import eval_transform

from .servers import http_server, send
from .video_files import numbers, write_video

NUM_FRAMES = 6


@pytest.fixture
def weights(tmp_path):
    """Untrained, and named as the demo names its own."""
    model = patch(create_backbone("test_resnet", num_classes=len(CLASSES)), direction="causal")
    set_preparation(model, Preparation(48, 48))
    save_checkpoint(model, tmp_path / "causal.pt", CLASSES)
    return tmp_path / "causal.pt"


@pytest.fixture
def clip(tmp_path):
    texture = sample_textures(1, torch.Generator().manual_seed(0))
    write_clip(tmp_path / "clip.mp4", render(texture, torch.tensor([0]), NUM_FRAMES)[0])
    return tmp_path / "clip.mp4"


@pytest.fixture
def folder(clip, tmp_path):
    (tmp_path / "images").mkdir()
    for number, frame in enumerate(read_frames(clip, range(NUM_FRAMES))):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / "images" / f"{number:03d}.png")
    return tmp_path / "images"


def outputs(out):
    """The frames of the annotated video, once it is sure that the folder holds whole files only."""
    assert {path.name for path in out.iterdir()} == {"annotated.mp4", "timeline.png"}
    assert (out / "timeline.png").read_bytes().startswith(b"\x89PNG")
    info = probe(out / "annotated.mp4")
    return read_frames(out / "annotated.mp4", range(info.num_frames)), info


@pytest.fixture
def camera(clip, monkeypatch):
    """A camera that shows a file."""
    monkeypatch.setitem(live.CAMERAS, sys.platform, ("mp4", str(clip).replace("clip", "{}")))
    clip.rename(clip.with_name("0.mp4"))


@pytest.mark.parametrize("kind", ["file", "folder", "camera"])
def test_every_source_becomes_a_video_and_a_timeline(kind, request, weights, tmp_path, capsys):
    source = {"file": "clip", "folder": "folder", "camera": "camera"}[kind]
    given = request.getfixturevalue(source)
    argv = ["stream", "0" if kind == "camera" else str(given), "--weights", str(weights), "--device", "cpu"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    frames, info = outputs(tmp_path / "out")
    assert (info.num_frames, info.width) == (NUM_FRAMES, 240)
    assert info.height > 240
    assert info.fps == pytest.approx(25 if kind == "folder" else 8, rel=0.01)
    assert frames[0, :, 244:].max() > 200  # letters on the bar
    assert "Streamed 6 frames" in capsys.readouterr().out


def test_the_picture_stays_and_the_label_is_drawn_under_it(clip, weights, tmp_path):
    assert main(["stream", str(clip), "--weights", str(weights), "--out", str(tmp_path / "out")]) == 0
    frames, _ = outputs(tmp_path / "out")
    expected = torch.nn.functional.interpolate(read_frames(clip, [5]).float(), (240, 240), mode="bilinear")
    assert (frames[5:, :, :240].float() - expected).abs().mean() < 8


def test_probabilities_are_those_of_the_stream(clip, weights, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(stream, "save_timeline", lambda *arguments: drawn.append(arguments))
    argv = ["stream", str(clip), "--weights", str(weights), "--device", "cpu", "--consensus", "2"]
    assert main([*argv, "--every", "2", "--max-frames", "5", "--out", str(tmp_path / "out")]) == 0
    ((_, times, probabilities, labels, _),) = drawn
    trained = load_trained_model(weights, Said(), streamed=True)
    expected = Streaming(trained.model, consensus=2, every=2)
    video = eval_transform(48, short_side=48)(read_frames(clip, range(5)))
    for frame, actual in zip(video, probabilities, strict=True):
        torch.testing.assert_close(actual, expected(frame[None])[0].softmax(-1))
    assert times == pytest.approx([i / 8 for i in range(5)], abs=1e-3)
    assert labels == list(CLASSES)


def test_the_demos_weights_are_the_default(clip, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["stream", str(clip)]) == 2
    error = capsys.readouterr().err
    assert "Run `tsm-triton demo --direction causal` in this folder first" in error
    (tmp_path / "demo").mkdir()
    weights.rename(tmp_path / "demo" / "causal.pt")
    assert main(["stream", str(clip), "--max-frames", "2"]) == 0
    assert outputs(tmp_path / "stream")[1].num_frames == 2


def test_plain_state_dicts_need_a_model_and_take_labels(clip, tmp_path, capsys):
    model = patch(create_backbone("test_resnet", num_classes=3), direction="causal")
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    argv = ["stream", str(clip), "--weights", str(tmp_path / "plain.pt"), "--out", str(tmp_path / "out")]
    said = {"model": "test_resnet", "direction": "causal", "place": "blockres", "shift-div": "8"}
    for left_out in said:  # nothing that decides the numbers is guessed
        some = [word for name, value in said.items() if name != left_out for word in (f"--{name}", value)]
        assert main([*argv, *some]) == 2
        error = capsys.readouterr().err
        assert "a bare state dict" in error
        assert f"pass --{left_out} as it was trained" in error
    argv += [word for name, value in said.items() for word in (f"--{name}", value)]
    assert main([*argv, "--labels", str(tmp_path / "labels.txt")]) == 0
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    assert main([*argv, "--labels", str(tmp_path / "labels.txt")]) == 2
    assert "expected 3 labels, one a class, got 2" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_weights_of_another_model_name_the_keys(clip, weights, tmp_path, capsys):
    state = torch.load(weights, weights_only=True)["state_dict"]
    first = next(iter(state))
    state["extra.weight"] = state.pop(first)
    torch.save(state, tmp_path / "other.pt")
    argv = ["stream", str(clip), "--weights", str(tmp_path / "other.pt"), "--model", "test_resnet"]
    argv += ["--direction", "causal", "--place", "blockres", "--shift-div", "8"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"missing: {first}" in error
    assert "unexpected: extra.weight" in error
    assert main(["stream", str(clip), "--weights", str(weights), "--model", "resnet18"]) == 2
    assert "expected weights of 'resnet18', got weights of 'test_resnet'" in capsys.readouterr().err


def test_a_file_that_is_no_weights_is_refused_and_runs_no_code(clip, tmp_path, capsys):
    bad = tmp_path / "bad.pt"
    bad.write_text("not weights")
    code = tmp_path / "code.pt"
    torch.save({"state_dict": print}, code)
    for path in (bad, code):
        assert main(["stream", str(clip), "--weights", str(path), "--model", "test_resnet"]) == 2
        assert "expected weights that torch.load(weights_only=True) reads" in capsys.readouterr().err
    assert main(["stream", str(clip), "--weights", str(tmp_path / "none.pt"), "--model", "test_resnet"]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("patched", "got"),
    [(dict(direction="bidirectional"), "got bidirectional ones"), (None, "got unshifted ones")],
)
def test_weights_that_read_the_next_frame_or_none_are_refused(patched, got, clip, tmp_path, capsys):
    model = create_backbone("test_resnet", num_classes=3)
    save_checkpoint(model if patched is None else patch(model, **patched), tmp_path / "other.pt")
    argv = ["stream", str(clip), "--weights", str(tmp_path / "other.pt"), "--out", str(tmp_path / "out")]
    for more in ([], ["--direction", "causal"], ["--model", "test_resnet"]):
        assert main([*argv, *more]) == 2
        error = capsys.readouterr().err
        assert "expected causal weights" in error
        assert got in error
        assert "Train a causal model" in error
    assert not (tmp_path / "out").exists()


@pytest.fixture
def press_ctrl_c():
    """In a background job of a shell, which ignores it, too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_a_background_job_goes_on_ignoring_ctrl_c(press_ctrl_c, clip, weights, tmp_path, monkeypatch):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    write = annotation.AnnotatedVideo.write
    monkeypatch.setattr(
        annotation.AnnotatedVideo, "write", lambda *args: (press_ctrl_c(), press_ctrl_c(), write(*args))
    )
    assert main(["stream", str(clip), "--weights", str(weights), "--out", str(tmp_path / "out")]) == 0
    assert outputs(tmp_path / "out")[1].num_frames == NUM_FRAMES


@pytest.mark.parametrize("moment", ["between frames", "in the model", "while waiting", "at the timeline"])
def test_ctrl_c_leaves_whole_files(moment, press_ctrl_c, clip, weights, tmp_path, monkeypatch, capsys):
    frames = open_source(str(clip))
    argv = ["stream", str(clip), "--weights", str(weights), "--out", str(tmp_path / "out")]

    def interrupted():
        for number, (frame, at) in enumerate(frames.frames):
            if moment == "while waiting" and number == 3:
                threading.Timer(0.2, press_ctrl_c).start()
                at += 3600  # not due for an hour
            yield frame, at
            if moment == "between frames" and number == 2:
                press_ctrl_c()

    class Interrupted(Streaming):
        def __call__(self, frame):
            if moment == "in the model" and len(seen) == 3:
                press_ctrl_c()
            seen.append(frame)
            return super().__call__(frame)

    def save_timeline(*arguments):
        if moment == "at the timeline":
            press_ctrl_c()
        annotation.save_timeline(*arguments)

    seen = []
    monkeypatch.setattr(
        stream, "open_source", lambda _: sources.Source(interrupted(), frames.fps, frames.num_frames)
    )
    monkeypatch.setattr(stream, "Streaming", Interrupted)
    monkeypatch.setattr(stream, "save_timeline", save_timeline)
    before = signal.getsignal(signal.SIGINT)
    if moment == "while waiting":
        argv.append("--realtime")
    assert main(argv) == 0
    count = outputs(tmp_path / "out")[1].num_frames
    # a slow machine drops frames on the way to the one it waits for
    expected = {"at the timeline": [NUM_FRAMES], "while waiting": [2, 3, 4]}.get(moment, [4])
    assert count in expected
    assert f"Stopped after {count} frames" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_leaves_the_files_of_before(
    press_ctrl_c, clip, weights, tmp_path, monkeypatch, capsys
):
    argv = ["stream", str(clip), "--weights", str(weights), "--out", str(tmp_path / "out")]
    assert main([*argv, "--max-frames", "2"]) == 0

    def impatient(self, frame, *_):
        press_ctrl_c()
        press_ctrl_c()

    monkeypatch.setattr(annotation.AnnotatedVideo, "write", impatient)
    assert main(argv) == 130
    assert "interrupted" in capsys.readouterr().err
    assert outputs(tmp_path / "out")[1].num_frames == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.usefixtures("signals_heard")
def test_a_kill_leaves_whole_files_and_a_second_one_those_of_before(
    name, clip, weights, tmp_path, monkeypatch, capsys
):
    number, write = getattr(signal, name), annotation.AnnotatedVideo.write
    before = signal.getsignal(number)
    argv = ["stream", str(clip), "--weights", str(weights), "--out", str(tmp_path / "out")]
    argv += ["--json", str(tmp_path / "a.json"), "--csv", str(tmp_path / "a.csv")]

    def killed(self, *args):
        if self.pts >= 0:
            signal.raise_signal(number)
        write(self, *args)

    monkeypatch.setattr(annotation.AnnotatedVideo, "write", killed)
    assert main(argv) == 0
    assert "Stopped after 2 frames" in capsys.readouterr().out
    assert outputs(tmp_path / "out")[1].num_frames == 2
    assert len(json.loads((tmp_path / "a.json").read_text())) == 2
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 3
    monkeypatch.setattr(
        annotation.AnnotatedVideo, "write", lambda *_: [signal.raise_signal(number) for _ in "12"]
    )
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 128 + number
    assert outputs(tmp_path / "out")[1].num_frames == 2
    assert {path.suffix for path in tmp_path.iterdir()} == {"", ".pt", ".mp4", ".json", ".csv"}
    assert signal.getsignal(number) is before


def test_a_process_that_is_killed_while_its_source_keeps_silent_leaves_whole_files(weights, tmp_path):
    data = write_video(tmp_path / "a.ts", 40, gop=5).read_bytes()
    sent = threading.Event()

    def answer(request, _):
        send(request, data)
        request.wfile.flush()
        sent.set()
        time.sleep(60)

    with http_server(answer) as url:
        argv = ["stream", url, "--weights", str(weights), "--out", str(tmp_path / "out"), "--device", "cpu"]
        process = subprocess.Popen(
            [sys.executable, "-m", "tsm_triton.cli", *argv, "--csv", str(tmp_path / "a.csv")],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert sent.wait(120)
            deadline = time.monotonic() + 60
            while not (temporary := list((tmp_path / "out").glob(".*"))) or not temporary[0].stat().st_size:
                assert time.monotonic() < deadline
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.1)
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, err
    count = outputs(tmp_path / "out")[1].num_frames
    assert f"Stopped after {count} frames" in out
    assert len((tmp_path / "a.csv").read_text().splitlines()) == count + 1
    assert not list(tmp_path.glob(".*"))


def test_predictions_are_written_as_json_and_as_a_table(clip, weights, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(stream, "save_timeline", lambda *arguments: drawn.append(arguments))
    argv = ["stream", str(clip), "--weights", str(weights), "--out", str(tmp_path / "out"), "--top", "3"]
    argv += ["--json", str(tmp_path / "a.json"), "--csv", str(tmp_path / "a.csv")]
    assert main(argv) == 0
    rows = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert [row["frame"] for row in rows] == list(range(NUM_FRAMES))
    assert [row["time"] for row in rows] == pytest.approx([i / 8 for i in range(NUM_FRAMES)], abs=1e-3)
    ((_, _, probabilities, _, _),) = drawn
    for row, scores in zip(rows, probabilities, strict=True):
        best = scores.topk(3)
        assert [entry["label"] for entry in row["top"]] == [CLASSES[i] for i in best.indices.tolist()]
        assert [entry["score"] for entry in row["top"]] == pytest.approx(best.values.tolist(), abs=1e-6)
        assert {"label": row["label"], "score": row["score"]} == row["top"][0]
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["frame", "time", "label", "score", "label_2", "score_2", "label_3", "score_3"]
    assert [(int(row["frame"]), float(row["time"]), row["label_3"]) for row in table] == [
        (row["frame"], row["time"], row["top"][2]["label"]) for row in rows
    ]
    assert main([*argv[:-4], "--json", str(tmp_path / "a.jsonl")]) == 0
    lines = (tmp_path / "a.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_frames_that_were_dropped_keep_their_numbers(clip, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(stream.Pace, "keeps", lambda self, at: at == 0 or at > 0.5)
    argv = ["stream", str(clip), "--weights", str(weights), "--realtime", "--out", str(tmp_path / "out")]
    assert main([*argv, "--json", str(tmp_path / "a.json")]) == 0
    assert [row["frame"] for row in json.loads((tmp_path / "a.json").read_text())] == [0, 5]


def test_predictions_go_to_a_file_of_their_own(clip, weights, tmp_path, capsys):
    argv = ["stream", str(clip), "--weights", str(weights), "--out", str(tmp_path / "out")]
    for more, message in (
        (["--json", str(tmp_path)], "expected --json to be a file in a folder that exists"),
        (["--csv", str(tmp_path / "none" / "a.csv")], "expected --csv to be a file in a folder that exists"),
        (["--json", str(clip)], "which is given for something else"),
        (["--csv", str(weights)], "which is given for something else"),
        (["--csv", str(tmp_path / "a"), "--json", str(tmp_path / "a")], "which is given for something else"),
        (["--top", "0"], "expected --top of at least 1"),
    ):
        assert main([*argv, *more]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_url_becomes_a_video_and_one_that_breaks_off_says_so(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(live, "BACKOFF", 0.01)
    data = write_video(tmp_path / "a.ts", 30, gop=5).read_bytes()
    argv = ["--weights", str(weights), "--out", str(tmp_path / "out")]
    with http_server(lambda request, _: send(request, data, len(data))) as url:
        assert main(["stream", f"{url}/a.ts", *argv]) == 0
    assert outputs(tmp_path / "out")[1].num_frames == 30
    with http_server(lambda request, _: send(request, data[: len(data) * 2 // 3], len(data))) as url:
        assert main(["stream", f"{url}/a.ts".replace("//", "//me:secret@"), *argv]) == 1
    assert 10 < outputs(tmp_path / "out")[1].num_frames < 30
    out, err = capsys.readouterr()
    assert "frames before the connection broke" in err
    assert "secret" not in out + err


def picture_of(folder):
    return next(open_source(str(folder)).frames)[0]


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
@pytest.mark.parametrize("suffix", ["png", "tiff", "ppm"])
def test_images_of_16_bits_are_scaled_to_8(suffix, mode, tmp_path):
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).round().astype(np.uint16)
    mode, order = (mode, ">u2") if suffix == "tiff" and mode == "I;16B" else ("I;16", "<u2")
    Image.frombytes(mode, (64, 48), ramp.astype(order).tobytes()).save(tmp_path / f"a.{suffix}")
    expected = torch.from_numpy((ramp / 257).round().astype(np.uint8)).expand(3, -1, -1)
    assert torch.equal(picture_of(tmp_path), expected)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_images_of_numbers_without_a_white_are_refused(kind, tmp_path):
    Image.fromarray(np.ones((8, 8), kind)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="with numbers of 32 bits, of which none is known to be white"):
        picture_of(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_images_of_several_pictures_are_refused(suffix, tmp_path):
    first, second = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second])
    with pytest.raises(ValueError, match="with 2 pictures in one file"):
        picture_of(tmp_path)


def test_every_kind_of_image_keeps_its_colours(tmp_path):
    red = Image.new("RGB", (32, 16), (255, 0, 0))
    for number, image in enumerate((red, red.convert("P"), red.convert("RGBA"))):
        image.save(tmp_path / f"{number}.png")
    red.convert("CMYK").save(tmp_path / "3.jpg", quality=95)
    exif = red.getexif()
    exif[0x0112] = 6
    red.save(tmp_path / "4.jpg", exif=exif, quality=95)
    frames = [frame for frame, _ in open_source(str(tmp_path)).frames]
    assert [tuple(frame.shape[1:]) for frame in frames] == [(16, 32)] * 4 + [(32, 16)]
    for frame in frames:
        assert (frame[:, 4, 4].int() - torch.tensor([255, 0, 0])).abs().max() < 8


def test_images_come_in_the_order_of_their_numbers_and_hidden_files_stay_out(tmp_path):
    names = ["a.png", "frame2.png", "Frame9.PNG", "frame10.png", "frame10b.png", "frame0100.jpg", "z1.2.png"]
    for number, name in enumerate(names):
        Image.new("L", (8, 8), 20 * number).save(tmp_path / name)
    for hidden in ("._frame2.png", ".DS_Store", "Thumbs.db", ".frame3.png"):
        (tmp_path / hidden).write_bytes(b"no image")
    (tmp_path / "folder.png").mkdir()
    shades = [int(frame.float().mean()) for frame, _ in open_source(str(tmp_path)).frames]
    assert shades == [20 * number for number in range(len(names))]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_labels_are_read_in_every_unicode(encoding, end, tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes(end.join(["", "swipe left", "  Zurück\u2028", "", "停", ""]).encode(encoding))
    assert read_labels(path) == ["swipe left", "Zurück\N{REPLACEMENT CHARACTER}", "停"]
    path.write_bytes(b"".join(f"{name}{end}".encode("utf-8-sig") for name in ("a", "b")))
    assert read_labels(path) == ["a", "b"]
    path.write_bytes(b"\xfe\xff" + "left\nright".encode("utf-16-be"))
    assert read_labels(path) == ["left", "right"]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("links\nzurück\n".encode("latin-1"), 2),
        (b"\xff\xfea\0\n\0b", 2),
        (b"\xff\xfea\0\n\0\n\0\x00\xd8b\0", 3),
    ],
)
def test_labels_in_another_encoding_are_refused_with_their_line(data, line, clip, weights, tmp_path, capsys):
    (tmp_path / "labels.txt").write_bytes(data)
    argv = ["stream", str(clip), "--weights", str(weights), "--labels", str(tmp_path / "labels.txt")]
    assert main(argv) == 2
    assert f"expected labels in UTF-8 or UTF-16, got line {line} of" in capsys.readouterr().err


def test_realtime_drops_what_is_late_and_waits_for_what_is_early(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(stream.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stream.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    pace, kept = stream.Pace(True, 10, Interrupt()), []
    for number in range(20):
        if pace.keeps(number / 10):
            kept.append(number)
            clock[0] += 0.25  # a model that takes two and a half frames
    assert kept[0] == 0
    assert {b - a for a, b in itertools.pairwise(kept)} <= {2, 3}
    assert pace.dropped == 20 - len(kept)
    clock[0] = 110.0
    assert pace.keeps(11.0)
    assert clock[0] == pytest.approx(111.0)
    clock[0] = 200.0  # falling behind for ever: one frame a second is shown
    late = [number for number in range(111, 141) if pace.keeps(number / 10)]
    assert late == [120, 130, 140]
    assert all(stream.Pace(False, 10, Interrupt()).keeps(number / 10) for number in range(3))


def test_dropped_frames_leave_the_annotated_video_its_pace(clip, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stream.Pace, "keeps", lambda self, at: at == 0 or at > 0.5)
    argv = ["stream", str(clip), "--weights", str(weights), "--realtime", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    info = outputs(tmp_path / "out")[1]
    assert info.num_frames == 2
    assert info.duration > 0.6


def test_sources_give_their_frames_in_order(tmp_path, folder):
    path = write_video(tmp_path / "barcodes.mp4", 20)
    source = open_source(str(path))
    assert source.num_frames == 20
    frames, times = zip(*source.frames, strict=True)
    assert numbers(torch.stack(frames)) == list(range(20))
    assert times == pytest.approx([i / 25 for i in range(20)], abs=1e-3)
    turned = open_source(str(write_video(tmp_path / "turned.mp4", 2, rotation=90)))
    assert next(turned.frames)[0].shape[-2:] == frames[0].shape[:0:-1]
    Image.new("L", (48, 48)).save(folder / "zz.tiff")
    (folder / "notes.txt").write_text("no image")
    frames = [frame for frame, _ in open_source(str(folder)).frames]
    assert len(frames) == NUM_FRAMES + 1
    assert frames[-1].shape == (3, 48, 48)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.mp4", "does not exist"),
        ("99", "expected a camera"),
        ("empty", "expected a folder of images"),
    ],
)
def test_a_source_that_is_not_there_is_an_error(source, message, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["stream", source, "--weights", str(weights)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "stream").exists()


def test_bad_numbers_are_refused(clip, weights, capsys):
    for argv, message in (
        (["--max-frames", "0"], "expected --max-frames of at least 1"),
        (["--consensus", "0"], "consensus must be at least 1"),
        (["--every", "0"], "every must be at least 1"),
    ):
        assert main(["stream", str(clip), "--weights", str(weights), *argv]) == 2
        assert message in capsys.readouterr().err


def test_pictures_of_optical_flow_are_no_frames_of_a_stream(tmp_path):
    for number in (1, 2, 10):
        Image.new("RGB", (8, 8), (number,) * 3).save(tmp_path / f"img_{number}.png")
        for axis in "xy":
            Image.new("L", (8, 8), 128).save(tmp_path / f"flow_{axis}_{number}.png")
    assert [int(frame[0, 0, 0]) for frame, _ in open_source(str(tmp_path)).frames] == [1, 2, 10]


def test_a_frame_in_two_files_is_refused(tmp_path):
    for suffix in ("png", "jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"1.{suffix}")
    with pytest.raises(ValueError, match="several that are called '1'"):
        open_source(str(tmp_path))


def test_names_of_decimal_numbers_of_several_lengths_are_refused(tmp_path):
    for name in ("0.0", "0.25", "0.5"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match="1 to 2 behind the point"):
        open_source(str(tmp_path))
