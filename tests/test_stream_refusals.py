"""`tsm-triton stream` on odd and damaged sources, weights and labels: one clear line, and no half-written file."""

import math
import random
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tsm_triton import Streaming, patch, save_checkpoint
from tsm_triton.backbones import create_backbone
from tsm_triton.cli import main
from tsm_triton.commands.models import Said, load_trained_model
from tsm_triton.commands.stream.annotation import MAX_WIDTH, annotated_video
from tsm_triton.commands.stream.sources import open_source
from tsm_triton.preparation import Preparation, set_preparation
from tsm_triton.video import probe

from .damage import damaged

CLASSES = ("left", "right", "still")
SAID = Said("test_resnet", place="blockres", shift_div=8, direction="causal")
# the same, on the command line
OPTIONS = ["--model", "test_resnet", "--direction", "causal", "--place", "blockres", "--shift-div", "8"]


@pytest.fixture(scope="module")
def state():
    return create_backbone("test_resnet", num_classes=3).state_dict()


@pytest.fixture
def weights(state, tmp_path):
    model = patch(create_backbone("test_resnet", num_classes=3), direction="causal")
    set_preparation(model, Preparation(32, 32))
    save_checkpoint(model, tmp_path / "weights.pt", CLASSES)
    return tmp_path / "weights.pt"


@pytest.fixture
def picture(tmp_path):
    """A folder with one image."""
    (tmp_path / "picture").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "picture" / "a.png")
    return tmp_path / "picture"


@pytest.fixture
def refused(tmp_path, capsys):
    """The one line with which the command ends."""

    def refused(source, weights, *options):
        out = tmp_path / "out"
        assert main(["stream", str(source), "--weights", str(weights), "--out", str(out), *options]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("tsm-triton: error: expected ")
        assert error.isprintable()
        assert not (out.exists() and list(out.iterdir()))
        return error

    return refused


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *between):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(between) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [png(60000, 60000), png(8, 4, chunk(b"\xd1h\xc4b", b"")), png(8, 8)[:40], b"no image"],
    ids=["bomb", "unknown chunk", "truncated", "text"],
)
def test_an_image_that_cannot_be_read_is_refused(data, weights, tmp_path, refused):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(data)
    assert "which cannot be read" in refused(tmp_path / "images", weights)


@pytest.mark.parametrize("size", [(2000, 16), (9000, 30), (1, 3000), (4001, 3001)])
def test_a_picture_of_any_shape_fits_the_annotated_video(size, weights, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", size).save(tmp_path / "images" / "a.png")
    argv = ["stream", str(tmp_path / "images"), "--weights", str(weights), "--device", "cpu"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    info = probe(tmp_path / "out" / "annotated.mp4")
    assert info.width <= MAX_WIDTH
    assert info.height <= 1200


def test_frames_a_month_apart_are_refused(weights, tmp_path, refused):
    with av.open(tmp_path / "gap.mkv", "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in (0, 1000, 2000, 3 * 10**9):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "expected frames that FFmpeg writes" in refused(tmp_path / "gap.mkv", weights)


@pytest.mark.parametrize("fps", [1e-9, 1e12])
@pytest.mark.parametrize("time", [0.04, 1e17])
def test_times_and_rates_of_any_size_are_written_or_refused(time, fps, tmp_path):
    frame = torch.zeros(3, 48, 64, dtype=torch.uint8)

    def write():
        with annotated_video(tmp_path / "a.mp4", fps) as video:
            for at in (0.0, time):
                video.write(frame, at, "left", 0.5, 25.0)

    if time < 1e9:
        write()
        assert probe(tmp_path / "a.mp4").num_frames == 2
    else:
        with pytest.raises(ValueError, match="expected frames that FFmpeg writes"):
            write()
        assert list(tmp_path.iterdir()) == []


def test_scores_that_are_no_numbers_are_refused(state, picture, tmp_path, refused):
    torch.save(
        {key: value * torch.nan if value.is_floating_point() else value for key, value in state.items()},
        tmp_path / "nan.pt",
    )
    error = refused(picture, tmp_path / "nan.pt", *OPTIONS)
    assert "expected finite scores" in error
    assert "nan.pt" in error


def test_labels_that_are_not_there_or_too_few_are_refused(weights, picture, tmp_path, refused):
    assert "check the path" in refused(picture, weights, "--labels", str(tmp_path / "none.txt"))
    assert "expected a file of labels" in refused(picture, weights, "--labels", str(tmp_path))
    (tmp_path / "labels.txt").write_text("\n")
    assert "got 0 in" in refused(picture, weights, "--labels", str(tmp_path / "labels.txt"))


@pytest.mark.parametrize("name", ["annotated.mp4", "timeline.png"])
@pytest.mark.parametrize("given", ["source", "weights", "--labels", "--json", "--csv", "link"])
def test_results_do_not_replace_what_is_read_or_one_another(name, given, weights, picture, tmp_path, capsys):
    out = tmp_path / "stream"
    out.mkdir()
    source, options = picture, ["--weights", str(weights)]
    if given == "source":
        source = out / name
        source.write_bytes(b"frames")
    elif given == "weights":
        (out / name).write_bytes(weights.read_bytes())
        options = ["--weights", str(out / name)]
    elif given == "link":
        (out / name).write_bytes(b"frames")
        source = tmp_path / "link.png"
        source.symlink_to(out / name)
    else:
        options += [given, str(out / name)]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(["stream", str(source), *options, "--out", str(out)]) == 2
    assert "to be a file of its own" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_file_is_no_folder_for_results(weights, picture, capsys):
    argv = ["stream", str(picture), "--weights", str(weights), "--out", str(weights)]
    assert main(argv) == 2
    assert "expected a folder for results" in capsys.readouterr().err
    assert load_trained_model(weights, Said(), streamed=True).labels == list(CLASSES)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("version",), 2, "expected a checkpoint of version 1, got version 2"),
        (("patch", "direction"), "sideways", "expected direction to be one of 'bidirectional', 'causal'"),
        (("patch", "num_segments"), True, "expected num_segments to be a positive integer in"),
        (("patch", "sites"), [], "expected sites to be a list of dictionaries"),
        (("patch", "sites", 0, "name"), "nowhere", "expected a module of ResNet, got 'nowhere'"),
        (("patch", "sites", 0, "channel_dim"), 0, "expected channel_dim to be one of 1, -1"),
        (("model", "name"), 7, "expected name to be a string"),
        (("model", "name"), "\x1b[31mred", "expected \ufffd[31mred with {"),
        (("model", "library"), "os", "expected library to be one of 'timm', 'torchvision'"),
        (("model", "options"), {"odd": 1}, "expected test_resnet with {'odd': 1}, as "),
        (("frames", "size"), 10**6, "expected size to be from 1 to 4096 pixels in"),
        (("frames", "mean"), [0, math.nan, 0], "expected mean to be three numbers"),
        (("labels",), 5, "expected labels to be a list of strings"),
        (("labels",), ["a", 1, "c"], "expected labels to be a list of strings"),
        (("labels",), ["a", "b"], "expected 3 labels, one a class, got 2"),
        (("state_dict",), {}, "expected a state dict of dense tensors"),
    ],
)
def test_checkpoints_that_say_odd_things_of_themselves_are_refused(
    keys, value, message, weights, picture, refused
):
    held = inner = torch.load(weights, weights_only=True)
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    torch.save(held, weights)
    assert message in refused(picture, weights)


def test_keys_and_values_that_no_model_has_are_refused(state, picture, tmp_path, refused):
    last = next(key for key in reversed(state) if key.endswith(".weight"))
    for changed in (
        {1: torch.ones(1)},
        {"\x1b[31mred": torch.ones(1)},
        {last: torch.tensor(1.0)},
        {last: state[last].to("meta")},
        {last: state[last].to_sparse()},
    ):
        torch.save({**state, **changed}, tmp_path / "odd.pt")
        assert "odd.pt" in refused(picture, tmp_path / "odd.pt", *OPTIONS)


def test_classes_are_made_printable(weights):
    held = torch.load(weights, weights_only=True)
    torch.save({**held, "labels": ["a", "\x1b[31mred", "c"]}, weights)
    assert load_trained_model(weights, Said(), streamed=True).labels == [
        "a",
        "\N{REPLACEMENT CHARACTER}[31mred",
        "c",
    ]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_weights_are_refused(zipped, state, tmp_path):
    path, rng = tmp_path / "w.pt", random.Random(0)
    torch.save(dict(list(state.items())[:4]), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for _ in range(150):
        path.write_bytes(damaged(whole, rng, 800))
        with pytest.raises(ValueError, match="expected .*got"):
            load_trained_model(path, SAID, streamed=True)


@pytest.mark.parametrize("kind", ["bmp", "jpeg", "png", "ppm", "tiff", "webp"])
def test_damaged_images_are_read_or_refused(kind, tmp_path):
    path, rng, errors = tmp_path / f"a.{kind}", random.Random(0), []
    Image.effect_noise((40, 30), 50).convert("RGB").save(path)
    whole = path.read_bytes()
    for _ in range(100):
        path.write_bytes(damaged(whole, rng, 300))
        try:
            next(open_source(str(tmp_path)).frames)
        except ValueError as error:
            errors.append(str(error))
    assert errors
    assert all("which cannot be read" in error for error in errors)


def test_weights_of_a_changed_network_are_not_run_as_the_plain_one(tmp_path, capsys):
    model = timm.create_model("test_resnet", num_classes=3, act_layer=torch.nn.SiLU)
    save_checkpoint(patch(model, 4, direction="causal"), tmp_path / "a.pt")
    argv = ["stream", "none.mp4", "--weights", str(tmp_path / "a.pt"), "--model", "test_resnet"]
    assert main(argv) == 2
    assert "SiLU for ReLU" in capsys.readouterr().err


@pytest.mark.parametrize("cameras", [1, 3])
def test_grey_frames_are_not_taken_for_one_picture_of_several(cameras):
    stream = Streaming(patch(timm.create_model("test_resnet").eval(), direction="causal"))
    with pytest.raises(ValueError, match=r"must have 3 channels .*repeat a grey picture's"):
        stream(torch.randn(cameras, 1, 32, 32))
