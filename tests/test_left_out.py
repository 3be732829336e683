"""Clips that cannot be read end no training: what is left is trained and tested on, and counted."""

import csv
import signal
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from tsm_triton.checkpoints import read_checkpoint
from tsm_triton.cli import main
from tsm_triton.progress import Bar
from tsm_triton.training import Settings, fit
from tsm_triton.training.order import EvalBatches
from tsm_triton.video.datasets import Unreadable, collate

from .motion_videos import write_motions
from .test_resume import assert_same_results
from .test_training import CPU, clips, frozen
from .trainings import small, torchrun

ROOT = Path(__file__).parent.parent


class Lost(Dataset):
    """Clips of which some cannot be read."""

    def __init__(self, count, lost):
        self.data, self.lost = clips(count), lost

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return Unreadable(f"{index}.mp4", "damaged") if index in self.lost else self.data[index]


def trained(lost, count=8, val=None, **settings):
    model = frozen()
    settings = Settings(**{"epochs": 2, "batch_size": 4, "opt": "sgd", "lr": 0.05, **settings})
    train = Lost(count, lost)
    progress = fit(model, train, val, settings, num_classes=3, collate=collate, device=CPU)
    return model.state_dict(), progress.rows


def test_a_batch_of_nothing_that_can_be_read_moves_no_weight_and_ends_nothing():
    before = frozen().state_dict()
    # every clip but one, which is in one batch of the two
    state, rows = trained(set(range(8)) - {3}, val=Lost(5, {0, 1, 2, 4}))
    assert [row["step"] for row in rows] == [2, 4]
    assert [(row["train_left_out"], row["val_left_out"]) for row in rows] == [(7, 4)] * 2
    assert any(not torch.equal(state[key], value) for key, value in before.items())
    with pytest.raises(ValueError, match="expected videos that can be read, got none"):
        trained(set(range(8)))
    with pytest.raises(ValueError, match="expected videos that can be read, got none"):
        trained(set(), val=Lost(3, {0, 1, 2}))


@pytest.mark.parametrize("settings", [{"accumulate": 2}, {"accumulate": 4}])
def test_parts_count_by_their_clips(settings):
    """Of four clips two or three are left, or one: the step's loss is their mean, however they are parted."""
    whole, rows = trained({0, 2, 5}, epochs=1)
    parted, other = trained({0, 2, 5}, epochs=1, **settings)
    for key, value in whole.items():
        torch.testing.assert_close(parted[key], value, msg=lambda m, key=key: f"{key}: {m}")
    assert rows[0]["train_loss"] == pytest.approx(other[0]["train_loss"], rel=1e-5)
    assert rows[0]["train_left_out"] == other[0]["train_left_out"] == 3


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_other_settings_go_on_too(precision):
    _, rows = trained(
        set(range(6)), accumulate=2, ema=0.9, mixup=0.4, clip_grad=1.0, precision=precision, batch_size=4
    )
    assert len(rows) == 2


def test_a_clip_that_fills_up_a_batch_is_counted_nowhere():
    for length in range(1, 9):
        for world in (1, 2, 3):
            orders = [EvalBatches(length, 2 * world, rank, world) for rank in range(world)]
            for order in orders:
                assert all(
                    len(batch) == real or real == 0 for batch, real in zip(order, order.real, strict=True)
                )
            assert len({len(order) for order in orders}) == 1


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, count in (("train", 12), ("val", 6)):
        write_motions(folder / name, count, size=24, frames=2, seed=len(name))
        for number, path in enumerate(sorted((folder / name).rglob("*.mp4"))):
            if number % 4 != 1:  # three of four
                path.write_bytes(b"no video")
    return folder


def command(videos, out, *more):
    fixed = "--batch-size 2 --epochs 3 --on-error skip"
    data = ["train", str(videos / "train"), "--val", str(videos / "val"), "--out", str(out)]
    return [*data, *small(), *fixed.split(), *more]


def test_each_process_says_what_it_left_out(videos, tmp_path):
    done = torchrun(command(videos, tmp_path, "--epochs", "1"))
    assert "Left out 13 videos that cannot be read: " in done.stdout
    with (tmp_path / "metrics.csv").open() as file:
        assert [(row["train_left_out"], row["val_left_out"]) for row in csv.DictReader(file)] == [("9", "4")]


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.usefixtures("signals_heard")
def test_an_interrupted_training_with_damaged_videos_ends_as_an_unbroken_one(
    videos, tmp_path, monkeypatch, capsys
):
    assert main([*command(videos, tmp_path / "whole")]) == 0
    printed, said = capsys.readouterr()
    assert "Left out 13 videos that cannot be read" in printed
    assert "top-5 of 2 videos." in printed
    assert "13 clips left out" in said
    steps = []

    def update(self, what="", count=1):
        steps.append(what)
        if len(steps) in (3, 8):
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Bar, "update", update)
        assert main([*command(videos, tmp_path / "cut")]) == 143
        assert main([*command(videos, tmp_path / "cut", "--resume")]) == 143
    assert main([*command(videos, tmp_path / "cut", "--resume")]) == 0
    assert_same_results(tmp_path / "whole", tmp_path / "cut")
    capsys.readouterr()
    assert main([*command(videos, tmp_path / "cut", "--resume")]) == 0  # nothing is read any more
    printed = capsys.readouterr().out
    assert "top-5 of 2 videos." in printed
    assert "Left out 13 videos that cannot be read\n" in printed
    with (tmp_path / "cut" / "metrics.csv").open() as file:
        assert [(row["train_left_out"], row["val_left_out"]) for row in csv.DictReader(file)] == [
            ("9", "4")
        ] * 3


@pytest.mark.filterwarnings("ignore:left out")
def test_two_processes_do_what_one_does_with_damaged_videos(videos, tmp_path):
    more = ["--freeze-bn", "all", "--opt", "sgd", "--lr", "0.02", "--batch-size", "4"]
    assert main(command(videos, tmp_path / "one", *more)) == 0
    torchrun(command(videos, tmp_path / "two", *more))
    one, two = (read_checkpoint(tmp_path / name / "last.pt").state for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(
            two[key], value, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}"
        )
    rows = []
    for name in ("one", "two"):
        with (tmp_path / name / "metrics.csv").open() as file:
            found = list(csv.DictReader(file))
        rows.append([{k: float(v) for k, v in row.items() if k != "seconds"} for row in found])
    for row, other in zip(*rows, strict=True):
        assert other == pytest.approx(row, rel=1e-4)
