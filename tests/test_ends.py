"""Every command that takes long says how far it is, and leaves whole files when it is asked to end."""

import io
import os
import signal
import sys

import pytest
import torch

import tsm_triton
from tsm_triton.backbones import create_backbone
from tsm_triton.cli import main
from tsm_triton.preparation import Preparation, set_preparation

from .motion_videos import write_motions
from .servers import http_server


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_motions(tmp_path_factory.mktemp("videos"), 8, size=32, frames=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, videos):
    model = tsm_triton.patch(create_backbone("test_resnet", num_classes=4), 2, direction="causal")
    set_preparation(model, Preparation(32, 36))
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    tsm_triton.save_checkpoint(model, path, sorted(folder.name for folder in videos.iterdir()))
    return path


def command(name, videos, checkpoint, out):
    """Its arguments, and the title of its progress."""
    fixed = ["--checkpoint", str(checkpoint), "--workers", "0", "--device", "cpu"]
    clip = str(next(videos.rglob("*.mp4")))
    small = ["--model", "test_resnet", "--num-segments", "2", "--size", "32", "--epochs", "1"]
    return {
        "train": (["train", str(videos), "--out", str(out), *small, *fixed[2:]], "Training"),
        "eval": (["eval", str(videos), "--out", str(out), *fixed], "Testing"),
        "classify": (["classify", str(videos), "--csv", f"{out}.csv", *fixed], "Classifying"),
        "export": (["export", str(checkpoint), "--to", "pt2", "--path", f"{out}.pt2"], "Exporting"),
        "stream": (["stream", clip, "--weights", str(checkpoint), "--out", str(out)], "Streaming"),
    }[name]


@pytest.mark.parametrize("name", ["train", "eval", "classify", "export", "stream"])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    name, videos, checkpoint, tmp_path, monkeypatch, capsys
):
    arguments, title = command(name, videos, checkpoint, tmp_path / "lines")
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert said.startswith(title)
    assert "%|" not in said
    monkeypatch.setattr(sys, "stderr", Terminal())
    arguments, _ = command(name, videos, checkpoint, tmp_path / "bar")
    assert main(arguments) == 0
    drawn = sys.stderr.getvalue()
    assert title in drawn
    assert "100%|" in drawn


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("signals_heard")
def test_a_signal_while_a_model_is_exported_leaves_the_file_of_before(
    number, videos, checkpoint, tmp_path, monkeypatch
):
    arguments, _ = command("export", videos, checkpoint, tmp_path / "model")
    before = tmp_path / "model.pt2"
    before.write_bytes(b"the one of before")

    def half(program, file, **_):
        file.write(b"half")
        signal.raise_signal(number)

    monkeypatch.setattr(torch.export, "save", half)
    assert ended(arguments) == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert before.read_bytes() == b"the one of before"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("signals_heard")
def test_a_signal_while_weights_are_downloaded_leaves_no_part_of_them(
    number, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    data, ends = checkpoint.read_bytes(), []

    def serve(request, _):
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data[: len(data) // 2])
        if not ends:
            ends.append(number)
            os.kill(os.getpid(), number)  # and the rest never comes
        else:
            request.wfile.write(data[len(data) // 2 :])

    with http_server(serve) as address:
        assert ended(["inspect", f"{address}/best.pt"]) == 128 + number
        assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]
        assert main(["inspect", f"{address}/best.pt"]) == 0


def ended(arguments):
    """The status that the process would end with."""
    try:
        return main(arguments)
    except SystemExit as error:
        return error.code
