"""What fails half-way leaves nothing half done: patches, copies, streams, and files."""

import os
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from tsm_triton import Streaming, fuse, is_patched, patch, unpatch
from tsm_triton.cli import main
from tsm_triton.fusion import fuse as fusion
from tsm_triton.patching import patch as patching
from tsm_triton.streaming import fused_step as fused_stepping
from tsm_triton.streaming.state import StreamState
from tsm_triton.testing import assert_same_bits
from tsm_triton.video import read_frames

from .video_files import numbers, write_video


class OutOfMemory(RuntimeError):
    pass


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5).eval().requires_grad_(False)


def failing_at(call, number, error):
    """`call` that raises when it is called for the `number`-th time."""
    calls = iter(range(number + 1))

    def fail(*args, **kwargs):
        if next(calls, None) == number:
            raise error
        return call(*args, **kwargs)

    return fail


@pytest.mark.parametrize(
    "error", [OutOfMemory("out of memory"), KeyboardInterrupt()], ids=["memory", "ctrl-c"]
)
@pytest.mark.parametrize(
    ("where", "name", "number"),
    [
        (nn.Module, "register_forward_pre_hook", 0),
        (nn.Module, "register_forward_pre_hook", 2),
        (patching, "trace", 0),
        (patching, "verify_shifts", 0),
    ],
)
def test_a_patch_that_fails_leaves_no_hook(model, monkeypatch, where, name, number, error):
    frames = torch.randn(4, 3, 32, 32)
    before, keys = model(frames), list(model.state_dict())
    with monkeypatch.context() as patched:
        patched.setattr(where, name, failing_at(getattr(where, name), number, error))
        with pytest.raises(type(error)):
            patch(model, num_segments=2)
    assert not is_patched(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert_same_bits(model(frames), before)
    assert list(model.state_dict()) == keys
    assert is_patched(patch(model, num_segments=2))


@pytest.mark.parametrize(
    "error", [OutOfMemory("out of memory"), KeyboardInterrupt()], ids=["memory", "ctrl-c"]
)
@pytest.mark.parametrize(
    ("where", "name"),
    [
        (torch.export, "export"),
        (fusion, "rewrite"),
        (fusion, "fold_constants"),
        (fusion, "GraphModule"),
    ],
)
def test_a_fusion_that_fails_leaves_the_model_as_it_was(model, monkeypatch, where, name, error):
    patch(model, num_segments=2)
    frames = torch.randn(4, 3, 32, 32)
    before, keys = model(frames), list(model.state_dict())
    with monkeypatch.context() as patched:
        patched.setattr(where, name, failing_at(getattr(where, name), 0, error))
        with pytest.raises((RuntimeError, KeyboardInterrupt)):
            fuse(model, example_input=frames)
    assert list(model.state_dict()) == keys
    assert is_patched(model)
    assert_same_bits(model(frames), before)
    torch.testing.assert_close(fuse(model, example_input=frames)(frames), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fails_at", [0, 3])
def test_a_frame_that_fails_is_as_if_it_never_came(model, monkeypatch, fails_at):
    patch(model, num_segments=4, direction="causal")
    frames = torch.randn(3, 1, 3, 32, 32)
    undisturbed, disturbed = Streaming(model), Streaming(model)
    expected = [undisturbed(frame) for frame in frames]
    assert_same_bits(disturbed(frames[0]), expected[0])
    with monkeypatch.context() as patched:
        patched.setattr(
            nn.Conv2d, "forward", failing_at(nn.Conv2d.forward, fails_at, OutOfMemory("no memory"))
        )
        with pytest.raises(OutOfMemory):
            disturbed(frames[2])
    for frame, wanted in zip(frames[1:], expected[1:], strict=True):
        assert_same_bits(disturbed(frame), wanted)
    unpatch(model)


@pytest.mark.parametrize("method", ["index_copy", "clamp", "put"])
def test_a_frame_that_fails_behind_the_model_is_as_if_it_never_came(model, monkeypatch, method):
    patch(model, num_segments=4, direction="causal")
    frames = torch.randn(4, 2, 3, 32, 32)
    stream = Streaming(model, every=2, consensus=2)
    stream(frames[0])
    stream.reset([1])  # the next frame is due there alone
    before = stream.state_dict()
    where = StreamState if method == "put" else torch.Tensor
    with monkeypatch.context() as patched:
        patched.setattr(where, method, failing_at(getattr(where, method), 0, OutOfMemory("no memory")))
        with pytest.raises(OutOfMemory):
            stream(frames[1])
    after = stream.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert_same_bits(after[key], value)
    twin = Streaming(model, every=2, consensus=2)
    twin.load_state_dict(before)
    for frame in frames[1:]:
        assert_same_bits(stream(frame), twin(frame))


@pytest.mark.parametrize("method", ["new_zeros", "clamp"])
def test_a_first_frame_that_fails_lets_another_size_begin(model, monkeypatch, method):
    stream = Streaming(patch(model, direction="causal"), consensus=2)
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, method, failing_at(None, 0, OutOfMemory("no memory")))
        with pytest.raises(OutOfMemory):
            stream(torch.randn(2, 3, 32, 32))
    assert not any(cache.any() for cache in stream.state)
    frame = torch.randn(1, 3, 64, 64)
    assert_same_bits(stream(frame), Streaming(model)(frame))


@pytest.mark.parametrize("where", ["_captured", "rewritten", "replace"])
@pytest.mark.parametrize(
    "error", [OutOfMemory("out of memory"), KeyboardInterrupt()], ids=["memory", "ctrl-c"]
)
def test_a_fused_stream_that_fails_to_make_its_copy_keeps_the_one_before(model, monkeypatch, where, error):
    stream = Streaming(patch(model, direction="causal"), fused=True)
    frame = torch.randn(1, 3, 32, 32)
    expected = stream(frame)
    network, report = stream.step.network, stream.step.report
    stream.reset()
    with monkeypatch.context() as patched:
        patched.setattr(fused_stepping, where, failing_at(None, 0, error))
        with pytest.raises(type(error)):
            stream(torch.randn(1, 3, 64, 64))
    assert stream.step.network is network
    assert stream.step.report is report
    assert_same_bits(stream(frame), expected)


STREAM = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tsm_triton.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(main(["stream", {video!r}, "--weights", {weights!r}, "--model", "test_resnet", "--out", {out!r}]))
"""


def test_a_full_disk_leaves_no_file_under_its_final_name(model, tmp_path):
    video, weights = tmp_path / "video.mp4", tmp_path / "weights.pt"
    write_video(video, 30)
    torch.save(patch(model, direction="causal").state_dict(), weights)
    out = tmp_path / "out"
    # a file may not grow beyond this, as on a disk that is full
    code = STREAM.format(limit=2048, video=str(video), weights=str(weights), out=str(out))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 2, run.stdout + run.stderr
    assert run.stderr.count("\n") <= 3, run.stderr
    assert "tsm-triton: error:" in run.stderr
    assert "Traceback" not in run.stderr
    assert not [path for path in out.rglob("*") if path.is_file()]


def test_names_may_be_links_lead_upwards_and_hold_any_byte(tmp_path):
    video = write_video(tmp_path / "video.mp4", 6)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.mp4").symlink_to(video)
    os.rename(video, os.path.join(os.fsencode(tmp_path), b"caf\xe9 \xff.mp4"))
    odd = os.path.join(tmp_path, os.fsdecode(b"caf\xe9 \xff.mp4"))
    (tmp_path / "link.mp4").unlink()
    (tmp_path / "link.mp4").symlink_to(odd)
    for path in (odd, tmp_path / "link.mp4", tmp_path / "folder" / ".." / "link.mp4"):
        assert numbers(read_frames(path, [5, 0])) == [5, 0]
    (tmp_path / "nowhere.mp4").symlink_to(tmp_path / "gone.mp4")
    with pytest.raises(FileNotFoundError, match="does not exist: check the path"):
        read_frames(tmp_path / "nowhere.mp4", [0])


def test_labels_and_names_may_hold_anything(model, tmp_path, capsys):
    folder = os.path.join(os.fsencode(tmp_path), b"\xff $ 100%")
    os.mkdir(folder)
    video, labels, weights = (
        os.path.join(os.fsdecode(folder), name) for name in ("$x.mp4", "labels", "weights")
    )
    os.rename(write_video(tmp_path / "video.mp4", 4), video)
    torch.save(patch(model, direction="causal").state_dict(), weights)
    with open(labels, "wb") as file:
        file.write(b"_hidden\n$\\frac{\n../up\n\x1b[31mred\n\xc3\xbf\n")
    out = os.path.join(os.fsdecode(folder), "out", "..", "out")
    arguments = ["--weights", weights, "--direction", "causal", "--place", "blockres", "--shift-div", "8"]
    arguments += ["--model", "test_resnet", "--labels", labels]
    arguments += ["--out", out]
    assert main(["stream", video, *arguments]) == 0
    assert sorted(os.listdir(out)) == ["annotated.mp4", "timeline.png"]
    printed = capsys.readouterr()
    assert "\x1b[31m" not in printed.out + printed.err
    printed.out.encode()


def test_a_playlist_that_calls_itself_a_video_fetches_nothing(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(ValueError, match="expected a"):
        read_frames(path, [0])


def test_damaged_videos_are_read_or_refused():
    from .fuzz_videos import fuzz

    tally, failures, largest = fuzz(120)
    assert not failures
    assert tally["read | read"] > 20
    assert sum(count for outcome, count in tally.items() if outcome.startswith("refused")) > 20
    assert 0 < largest < 4096
