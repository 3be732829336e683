"""`tsm-triton stream`: files, folders and cameras in; an annotated video and a timeline out."""

import itertools
import signal
import sys
import threading

import pytest
import torch
from PIL import Image

from tsm_triton import Streaming, patch
from tsm_triton.cli import main
from tsm_triton.commands import annotation, sources, stream
from tsm_triton.commands.common import create_model
from tsm_triton.commands.motion_clips import CLASSES, render, sample_textures, write_clip
from tsm_triton.commands.sources import open_source
from tsm_triton.commands.weights import load_trained, save_trained
from tsm_triton.video import live, probe, read_frames
from tsm_triton.video.transforms import eval_transform

from .video_files import numbers, write_video

NUM_FRAMES = 6


@pytest.fixture
def weights(tmp_path):
    """Untrained, and named as the demo names its own."""
    model = create_model("test_resnet", num_classes=len(CLASSES))
    save_trained(tmp_path / "causal.pt", model, "test_resnet", CLASSES, 48)
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
    trained = load_trained(weights, None)
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
    model = patch(create_model("test_resnet", num_classes=3), direction="causal")
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    argv = ["stream", str(clip), "--weights", str(tmp_path / "plain.pt"), "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    assert "got none named in" in capsys.readouterr().err
    argv += ["--model", "test_resnet"]
    assert main([*argv, "--labels", str(tmp_path / "labels.txt")]) == 0
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    assert main([*argv, "--labels", str(tmp_path / "labels.txt")]) == 2
    assert "expected 3 labels, one a class, got 2" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_weights_of_another_model_name_the_keys(clip, weights, tmp_path, capsys):
    state = torch.load(weights, weights_only=True)["state_dict"]
    state["extra.weight"] = state.pop("conv1.0.weight" if "conv1.0.weight" in state else next(iter(state)))
    torch.save(state, tmp_path / "other.pt")
    argv = ["stream", str(clip), "--weights", str(tmp_path / "other.pt"), "--model", "test_resnet"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "missing: conv1.0.weight" in error or "missing: " in error
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


def test_realtime_drops_what_is_late_and_waits_for_what_is_early(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(stream.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stream.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    pace, kept = stream._Pace(True, 10, stream._Interrupt()), []
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
    assert all(stream._Pace(False, 10, stream._Interrupt()).keeps(number / 10) for number in range(3))


def test_dropped_frames_leave_the_annotated_video_its_pace(clip, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stream._Pace, "keeps", lambda self, at: at == 0 or at > 0.5)
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
