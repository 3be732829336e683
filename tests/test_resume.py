"""A training that is killed, stopped or begun again ends as if nothing had happened."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tsm_triton.checkpoints import read_checkpoint
from tsm_triton.cli import main
from tsm_triton.progress import Bar
from tsm_triton.training import machine, testing

from .motion_videos import write_motions
from .trainings import small

ROOT = Path(__file__).parent.parent
# all that is random or remembered: the order, crops, dropout, mixed clips, averaged weights, momenta
RANDOM = ["--dropout", "0.2", "--mixup", "0.4", "--ema", "0.9", "--sched", "cosine"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_motions(folder / "train", 12, size=24, frames=2)
    write_motions(folder / "val", 4, size=24, frames=2, seed=1)
    return folder


def command(videos: Path, *more: str) -> list[str]:
    data = ["train", str(videos / "train"), "--val", str(videos / "val")]
    return [*data, *small(), "--batch-size", "4", "--epochs", "4", *more]


def rows(out: Path) -> list[dict[str, str]]:
    """metrics.csv, but for what the clock says."""
    with (out / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same_results(first: Path, second: Path) -> None:
    for name in ("last.pt", "best.pt"):
        one, other = (read_checkpoint(folder / name) for folder in (first, second))
        assert one.labels == other.labels
        assert one.state.keys() == other.state.keys()
        different = [key for key in one.state if not torch.equal(one.state[key], other.state[key])]
        assert not different, (name, different)
    assert rows(first) == rows(second)
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}


@pytest.mark.parametrize("times", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_training_killed_at_random_ends_with_the_same_weights(times, videos, tmp_path):
    arguments = command(videos, *RANDOM, "--save-every", "1", "--epochs", "8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = [sys.executable, "-m", "tests.killed_training", str(tmp_path), str(times), *arguments]
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"killed {times} times" in done.stdout
    assert_same_results(tmp_path / "whole", tmp_path / "killed")
    # and nothing is left of what was half written
    left = [
        path for path in (tmp_path / "killed").rglob("*") if ".tmp" in path.name or path.name == "partial"
    ]
    assert not left
    assert len(list((tmp_path / "killed" / "state").iterdir())) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("signals_heard")
def test_a_signal_ends_at_the_next_step_and_resume_goes_on_there(
    number, videos, tmp_path, monkeypatch, capsys
):
    assert main([*command(videos, *RANDOM), "--out", str(tmp_path / "whole")]) == 0
    steps = []

    def update(self, what="", count=1):
        steps.append(what)
        if len(steps) == 5:  # in the second epoch
            signal.raise_signal(number)

    with monkeypatch.context() as patched:
        patched.setattr(Bar, "update", update)
        assert main([*command(videos, *RANDOM), "--out", str(tmp_path / "cut")]) == 128 + number
    assert len(steps) == 5
    assert "--resume goes on there" in capsys.readouterr().out
    assert len(rows(tmp_path / "cut")) == 1
    assert main([*command(videos, *RANDOM), "--out", str(tmp_path / "cut"), "--resume"]) == 0
    assert "epoch 2 of 4" in capsys.readouterr().err
    assert_same_results(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.usefixtures("signals_heard")
def test_a_signal_in_a_test_ends_it_there_and_resume_tests_again(videos, tmp_path, monkeypatch, capsys):
    arguments = [*command(videos, *RANDOM), "--batch-size", "2"]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    tested = []

    def placed(x, device):
        tested.append(x)
        if len(tested) == 3:  # the first of two batches, after the second epoch
            signal.raise_signal(signal.SIGTERM)
        return machine.placed(x, device)

    with monkeypatch.context() as patched:
        patched.setattr(testing, "placed", placed)
        assert main([*arguments, "--out", str(tmp_path / "cut")]) == 128 + signal.SIGTERM
    assert len(tested) == 3
    assert "--resume goes on there" in capsys.readouterr().out
    assert len(rows(tmp_path / "cut")) == 1
    assert main([*arguments, "--out", str(tmp_path / "cut"), "--resume"]) == 0
    assert_same_results(tmp_path / "whole", tmp_path / "cut")


def test_a_folder_with_a_training_is_neither_overwritten_nor_gone_on_with_otherwise(
    videos, tmp_path, tmp_path_factory, capsys
):
    out = ["--out", str(tmp_path)]
    assert main([*command(videos, "--epochs", "1"), *out]) == 0
    before = (tmp_path / "best.pt").read_bytes()
    for more, said in (
        ([], "a folder without a training"),
        ([], "pass --resume to go on with it"),
        (["--resume", "--lr", "0.1"], "lr 0.1 for 0.005"),
        (["--resume", "--epochs", "2"], "epochs 2 for 1"),
        (["--resume", "--num-segments", "4"], "--num-segments 4 for 2"),
    ):
        assert main([*command(videos, "--epochs", "1"), *out, *more]) == 2
        assert said in capsys.readouterr().err
    pairs = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    mirrored = [
        *command(videos, "--epochs", "1"),
        "--flip-pairs",
        str(pairs),
        "--out",
        str(tmp_path / "mirrored"),
    ]
    pairs.write_text("left,right\n")
    assert main(mirrored) == 0
    pairs.write_text("up,down\n")
    assert main([*mirrored, "--resume"]) == 2
    assert "got --flip-pairs" in capsys.readouterr().err
    pairs.write_text("right;left\n")  # the same in other words
    assert main([*mirrored, "--resume"]) == 0
    folder = write_motions(tmp_path_factory.mktemp("other"), 8, size=24, frames=2)
    other = [str(folder) if word == str(videos / "train") else word for word in command(videos)]
    assert main([*other, "--epochs", "1", *out, "--resume"]) == 2
    assert "data" in capsys.readouterr().err
    assert (tmp_path / "best.pt").read_bytes() == before
    # what is done is done
    assert main([*command(videos, "--epochs", "1"), *out, "--resume"]) == 0
    assert (tmp_path / "best.pt").read_bytes() == before
