"""`torchrun -m tsm_triton train`: two processes do what one does at the same batch."""

import csv
import json
from pathlib import Path

import pytest
import torch

from tsm_triton.checkpoints import read_checkpoint
from tsm_triton.cli import main

from .motion_videos import write_motions
from .trainings import small, torchrun

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_motions(folder / "train", 10, size=24, frames=2)
    write_motions(folder / "val", 5, size=24, frames=2, seed=1)
    return folder


def command(videos: Path, out: Path, *more: str) -> list[str]:
    # batch statistics differ between one process and two: frozen, or those of no network
    options = "--batch-size 4 --epochs 2 --freeze-bn all --opt sgd --lr 0.02"
    data = ["train", str(videos / "train"), "--val", str(videos / "val"), "--out", str(out)]
    return [*data, *small(), *options.split(), *more]


@pytest.mark.parametrize(
    "more", [pytest.param([], id="ddp"), pytest.param(["--fsdp"], id="fsdp2", marks=pytest.mark.slow)]
)
def test_two_processes_train_the_weights_of_one(more, videos, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(command(videos, one)) == 0
    done = torchrun(command(videos, two, *more))
    for name in ("last.pt", "best.pt"):
        state, other = (read_checkpoint(folder / name).state for folder in (one, two))
        for key, value in state.items():
            torch.testing.assert_close(
                other[key], value, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}"
            )
    rows = []
    for folder in (one, two):
        with (folder / "metrics.csv").open() as file:
            rows.append(
                [{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
            )
    assert len(rows[0]) == 2
    for row, other in zip(*rows, strict=True):
        assert other == pytest.approx(row, rel=1e-4)
    # one process speaks for both
    assert done.stdout.count("Wrote best.pt") == done.stderr.count("epoch 2 of 2") == 1
    again = torchrun([*command(videos, two, *more), "--resume"])
    assert "Wrote best.pt" in again.stdout
    assert "epoch 2 of 2" not in again.stderr


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--ema", "0.5"], id="averaged"),
        pytest.param(["--fsdp"], id="fsdp2", marks=pytest.mark.slow),
    ],
)
def test_all_processes_test_the_batch_norms_that_are_kept(more, videos, tmp_path):
    out = tmp_path / "out"
    torchrun(command(videos, out, "--freeze-bn", "none", "--epochs", "1", *more))
    data = [
        "eval",
        str(videos / "val"),
        "--checkpoint",
        str(out / "last.pt"),
        "--out",
        str(tmp_path / "eval"),
    ]
    assert main([*data, "--workers", "0", "--device", "cpu"]) == 0
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    with (out / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["val_loss"]) == pytest.approx(results["loss"], rel=1e-5)
