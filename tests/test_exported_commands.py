"""What `tsm-triton export` writes, run by `classify`, `eval` and `stream`: the same as the checkpoint's."""

import json
import shutil

import onnx
import pytest
import timm
import torch
from torch import nn

import tsm_triton
from tsm_triton import Streaming, VideoClassifier
from tsm_triton.cli import main
from tsm_triton.exporting import load_exported

from .networks import with_statistics
from .video_files import write_video

T, SIZE = 4, 64
LABELS = list("abcde")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes? .* assigned during export"),
    pytest.mark.filterwarnings("ignore:The given buffer is not writable"),  # torch 2.11's load
]
# file -> the options of `tsm-triton export` that write it
FILES = {
    "clips.onnx": ("--to", "onnx"),
    "frames.onnx": ("--to", "onnx", "--frames", "--dynamic-size"),
    "stream.onnx": ("--to", "onnx", "--streaming"),
    "fused-stream.onnx": ("--to", "onnx", "--streaming", "--fused"),
    "native.pt2": ("--to", "pt2", "--native"),
    "fused.pt2": ("--to", "pt2", "--fused"),
    "fused-frames.pt2": ("--to", "pt2", "--fused", "--frames", "--num-segments", "2"),
    "fused-stream.pt2": ("--to", "pt2", "--streaming", "--fused"),
}
CLIPS = ("clips.onnx", pytest.param("frames.onnx", marks=pytest.mark.slow), "native.pt2", "fused.pt2")
STREAMS = ("stream.onnx", pytest.param("fused-stream.onnx", marks=pytest.mark.slow), "fused-stream.pt2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A causal checkpoint and two videos; exported files are written there when first asked for."""
    path = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    model = with_statistics(timm.create_model("test_resnet", num_classes=5))
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": LABELS, "input_size": (3, SIZE, SIZE)}
    tsm_triton.save_checkpoint(tsm_triton.patch(model.eval(), T, direction="causal"), path / "best.pt")
    for number in range(2):
        write_video(path / f"{number}.mp4", 10 + 3 * number)
    return path


@pytest.fixture
def at(folder, tmp_path, monkeypatch):
    """A folder of the test's own, and how files of the shared one are called."""
    monkeypatch.chdir(tmp_path)

    def path(name: str) -> str:
        if name in FILES and not (folder / name).exists():
            assert main(["export", str(folder / "best.pt"), "--path", str(folder / name), *FILES[name]]) == 0
        return str(folder / name)

    return path


def model_of(at) -> nn.Module:
    return tsm_triton.load_checkpoint(at("best.pt")).eval()


def close(found, expected) -> None:
    """Predictions as JSON has them: the same labels, probabilities to 1e-5."""
    assert [row.get("video") for row in found] == [row.get("video") for row in expected]
    for one, other in zip(found, expected, strict=True):
        shares = [
            {entry["label"]: entry.get("probability", entry.get("score")) for entry in row["top"]}
            for row in (one, other)
        ]
        assert shares[0] == pytest.approx(shares[1], abs=1e-5)


def run(capsys, *argv) -> str:
    """What a command that ends well prints."""
    capsys.readouterr()
    assert main(list(argv)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys, *argv) -> str:
    capsys.readouterr()
    assert main(list(argv)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", CLIPS)
def test_classify_of_a_file_is_that_of_its_checkpoint(name, at, capsys, tmp_path):
    videos = (
        "classify",
        at("0.mp4"),
        at("1.mp4"),
        "--workers",
        "0",
        "--json",
        "out.json",
        "--csv",
        "out.csv",
    )
    expected_text = run(capsys, *videos, "--checkpoint", at("best.pt"))
    expected = json.loads((tmp_path / "out.json").read_text())
    header = (tmp_path / "out.csv").read_text().splitlines()[0]
    assert run(capsys, *videos, "--model", at(name)) == expected_text
    close(json.loads((tmp_path / "out.json").read_text()), expected)
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == header


def test_a_files_number_of_frames_is_the_one_that_is_seen(at, capsys, tmp_path):
    # the checkpoint says 4, the file was written for 2
    videos = ("classify", at("0.mp4"), "--workers", "0", "--json", "out.json")
    run(capsys, *videos, "--checkpoint", at("best.pt"), "--num-segments", "2")
    expected = json.loads((tmp_path / "out.json").read_text())
    run(capsys, *videos, "--model", at("fused-frames.pt2"))
    close(json.loads((tmp_path / "out.json").read_text()), expected)
    assert "expected --num-segments 2" in refused(
        capsys, *videos, "--model", at("fused-frames.pt2"), "--num-segments", "4"
    )


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_views_of_a_video_are_averaged_as_asked(average, at, capsys, tmp_path):
    asked = (
        "--workers",
        "0",
        "--json",
        "out.json",
        "--views",
        "10",
        "--sampling",
        "twice",
        "--average",
        average,
    )
    videos = ("classify", at("0.mp4"), *asked)
    run(capsys, *videos, "--checkpoint", at("best.pt"))
    expected = json.loads((tmp_path / "out.json").read_text())
    run(capsys, *videos, "--model", at("clips.onnx"))
    close(json.loads((tmp_path / "out.json").read_text()), expected)


def test_eval_takes_a_file(at, capsys, tmp_path):
    (tmp_path / "list.csv").write_text(f"{at('0.mp4')},a\n{at('1.mp4')},b\n")
    asked = ("eval", "list.csv", "--workers", "0")
    printed = run(capsys, *asked, "--checkpoint", at("best.pt"))
    results = (tmp_path / "eval" / "results.json").read_text()
    assert run(capsys, *asked, "--model", at("clips.onnx")) == printed
    assert (
        json.loads((tmp_path / "eval" / "results.json").read_text())["confusion"]
        == json.loads(results)["confusion"]
    )


@torch.no_grad()
@pytest.mark.parametrize("name", STREAMS)
def test_a_streams_file_is_the_stream_frame_by_frame(name, at):
    step = load_exported(at(name))
    exported, stream = Streaming(step), Streaming(model_of(at))
    for streams in (2, 1):  # any number of them, beginning anew
        exported.reset()
        stream.reset()
        for frame in torch.randn(T + 1, streams, 3, SIZE, SIZE):
            expected = stream(frame)
            torch.testing.assert_close(
                exported(frame), expected, rtol=0, atol=1e-4 * expected.abs().max().item()
            )
        assert exported.cache_bytes == stream.cache_bytes
    saved = exported.state_dict()
    assert saved.keys() == stream.state_dict().keys()
    again = Streaming(step)
    again.load_state_dict(saved)
    assert torch.equal(again(frame), exported(frame))


@pytest.mark.parametrize("command", ["stream", "serve"])
def test_a_streams_file_of_features_is_no_classifiers(command, at, tmp_path, capsys):
    path, frame = tmp_path / "features.pt2", torch.zeros(1, 3, SIZE, SIZE)
    tsm_triton.export(Streaming(model_of(at), features=True), "pt2", path, frame)
    given = {"stream": [at("0.mp4"), "--model", path], "serve": [path, "--port", 0]}[command]
    assert main([command, *map(str, given)]) == 2
    assert "which gives features beside them" in capsys.readouterr().err


@torch.no_grad()
def test_a_streams_file_averages_and_skips_frames_as_a_stream_does(at):
    options = dict(consensus=3, every=2)
    exported, stream = (
        Streaming(load_exported(at("stream.onnx")), **options),
        Streaming(model_of(at), **options),
    )
    for number, frame in enumerate(torch.randn(6, 2, 3, SIZE, SIZE)):
        if number == 3:
            exported.reset([1])
            stream.reset([1])
        torch.testing.assert_close(exported(frame), stream(frame), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="frame must have the shape of the frames before it"):
        exported(frame[:1])
    with pytest.raises(ValueError, match="expected neither features nor fused with a step"):
        Streaming(load_exported(at("stream.onnx")), features=True)


@pytest.mark.parametrize("name", STREAMS)
def test_stream_of_a_file_is_that_of_its_checkpoint(name, at, capsys, tmp_path):
    asked = ("stream", at("0.mp4"), "--json", "out.json", "--csv", "out.csv")
    run(capsys, *asked, "--weights", at("best.pt"))
    expected = json.loads((tmp_path / "out.json").read_text())
    printed = run(capsys, *asked, "--model", at(name))
    found = json.loads((tmp_path / "out.json").read_text())
    assert [(row["frame"], row["time"]) for row in found] == [(row["frame"], row["time"]) for row in expected]
    close(found, expected)
    assert "Streamed 10 frames" in printed
    assert (tmp_path / "stream" / "annotated.mp4").stat().st_size > 0


@pytest.mark.slow
@torch.no_grad()
def test_a_size_that_is_free_stays_free(at):
    exported, model = load_exported(at("frames.onnx")), VideoClassifier(model_of(at), T).eval()
    video = torch.randn(2, T, 3, 64, 96)
    torch.testing.assert_close(exported(video), model(video), rtol=1e-4, atol=1e-4)
    for side in (32, 80):  # below the least, and no multiple
        with pytest.raises(ValueError, match="expected frames"):
            exported(torch.randn(1, T, 3, side, 64))


def test_the_wrong_kind_of_file_is_refused(at, capsys):
    video = at("0.mp4")
    assert "use tsm-triton stream" in refused(capsys, "classify", video, "--model", at("stream.onnx"))
    assert "use tsm-triton classify" in refused(capsys, "stream", video, "--model", at("clips.onnx"))
    assert "pass --model" in refused(capsys, "classify", video, "--checkpoint", at("clips.onnx"))
    assert "pass --model" in refused(capsys, "stream", video, "--weights", at("fused-stream.pt2"))
    both = ("--model", at("clips.onnx"), "--checkpoint", at("best.pt"))
    assert "expected one model" in refused(capsys, "classify", video, *both)
    turned = ("--model", at("clips.onnx"), "--direction", "bidirectional")
    assert "expected --direction causal" in refused(capsys, "classify", video, *turned)
    assert "check the path" in refused(capsys, "classify", video, "--model", "missing.onnx")
    assert "expected frames [3, 64, 64]" in refused(
        capsys, "classify", video, "--model", at("clips.onnx"), "--views", "3"
    )
    if not torch.cuda.is_available():
        assert "got --device cuda" in refused(
            capsys, "classify", video, "--model", at("clips.onnx"), "--device", "cuda"
        )


def with_metadata(path, target, change) -> None:
    """A copy of an ONNX file whose description is another."""
    model = onnx.load(path)
    (said,) = [entry for entry in model.metadata_props if entry.key == "tsm_triton"]
    said.value = change(json.loads(said.value))
    onnx.save(model, target)


def test_a_file_that_does_not_say_how_it_is_used_is_refused(at, capsys, tmp_path):
    def without(*keys):
        return lambda said: json.dumps({key: value for key, value in said.items() if key not in keys})

    asked = ("classify", at("0.mp4"), "--model", "other.onnx")
    for change, message in (
        (without("mean", "labels"), "without labels, mean in its metadata by the key 'tsm_triton'"),
        (lambda said: json.dumps({**said, "std": None}), "without std"),
        (lambda said: "not JSON", "expected JSON by the key"),
        (lambda said: json.dumps({**said, "outputs": ["scores"]}), "it was changed"),
    ):
        with_metadata(at("clips.onnx"), tmp_path / "other.onnx", change)
        assert message in refused(capsys, *asked)
    model = onnx.load(at("clips.onnx"))
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    error = refused(capsys, *asked)
    assert "mean, std in its metadata" in error
    assert "tsm_triton.export" in error


def test_a_file_of_others_is_refused(at, capsys, tmp_path):
    torch.export.save(torch.export.export(nn.Flatten(), (torch.zeros(1, 2),)), tmp_path / "theirs.pt2")
    assert "without inputs" in refused(capsys, "classify", at("0.mp4"), "--model", "theirs.pt2")
    for name in ("broken.onnx", "broken.pt2"):
        (tmp_path / name).write_bytes(b"no model")
        assert "write it with tsm_triton.export" in refused(capsys, "classify", at("0.mp4"), "--model", name)
    shutil.copy(at("clips.onnx"), tmp_path / "model.tflite")
    with pytest.raises(ValueError, match="ends in .onnx or .pt2"):
        load_exported(tmp_path / "model.tflite")


@pytest.mark.slow
def test_a_compiled_package_classifies(at, capsys, tmp_path):
    assert main(["export", at("best.pt"), "--to", "aoti", "--path", "packed.pt2", "--fused"]) == 0
    videos = ("classify", at("0.mp4"), "--workers", "0", "--json", "out.json")
    run(capsys, *videos, "--checkpoint", at("best.pt"))
    expected = json.loads((tmp_path / "out.json").read_text())
    run(capsys, *videos, "--model", "packed.pt2")
    close(json.loads((tmp_path / "out.json").read_text()), expected)


def test_a_models_own_size_is_asked_as_its_transform_asks(tmp_path, monkeypatch, capsys):
    examples = []

    def record(model, to, path, example, *args, **options):
        examples.append(tuple(example.shape))
        return {"inputs": {}, "outputs": [], "num_segments": None, "int8": False}

    monkeypatch.setattr("tsm_triton.commands.export.command.export", record)
    argv = ["export", "torchvision/efficientnet_b1", "--to", "onnx", "--path", str(tmp_path / "model.onnx")]
    run(capsys, *argv)
    run(capsys, *argv, "--frames", "--size", "64")
    assert examples == [(1, 8, 3, 240, 240), (8, 3, 64, 64)]


@pytest.mark.parametrize("path", ["{here}/model.pt2", "{here}/linked.pt2", "{here}/none/a.pt2", "{here}"])
def test_an_export_does_not_replace_its_checkpoint_and_says_at_once_where_it_cannot_write(
    path, tmp_path, capsys
):
    model = tsm_triton.patch(timm.create_model("test_resnet", num_classes=2), 2)
    tsm_triton.save_checkpoint(model, tmp_path / "model.pt")
    (tmp_path / "model.pt").rename(tmp_path / "model.pt2")
    (tmp_path / "linked.pt2").symlink_to(tmp_path / "model.pt2")
    before = (tmp_path / "model.pt2").read_bytes()
    argv = ["export", str(tmp_path / "model.pt2"), "--to", "pt2", "--path", path.format(here=tmp_path)]
    assert main(argv) == 2
    assert "expected --path to be a file of its own in a folder that exists" in capsys.readouterr().err
    assert (tmp_path / "model.pt2").read_bytes() == before
