"""A training writes into a folder of its own: what others hold is neither replaced nor removed."""

import os

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tsm_triton.cli import main
from tsm_triton.training import Settings, fit
from tsm_triton.training.folder import check_apart

from .motion_videos import write_motions
from .trainings import small


def train(out, resume=False, epochs=1):
    data = TensorDataset(torch.eye(4), torch.arange(4))
    model = nn.Linear(4, 4)
    torch.manual_seed(0)
    return fit(
        model,
        data,
        settings=Settings(epochs=epochs),
        num_classes=4,
        out=out,
        resume=resume,
        device=torch.device("cpu"),
    )


@pytest.fixture
def weightless(monkeypatch):
    """Linear networks are no checkpoints of ours."""
    monkeypatch.setattr(
        "tsm_triton.training.results.save_checkpoint", lambda model, path, labels: path.write_text("weights")
    )


def below(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "held",
    ["best.pt", ".mine.tmp", "tensorboard/other_run/events", "state/california.csv", "state/state-1/a"],
)
def test_a_folder_of_other_things_is_refused(held, resume, tmp_path):
    path = tmp_path / "out" / held
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    before = below(tmp_path)
    with pytest.raises(ValueError, match="expected a new or empty folder, or a training's"):
        train(tmp_path / "out", resume)
    assert below(tmp_path) == before


@pytest.mark.usefixtures("weightless")
def test_a_training_that_goes_on_removes_its_own_files_alone(tmp_path):
    train(tmp_path)
    kept = [".mine.tmp", ".best.pt.tmp", "tensorboard/other_run/events.out.tfevents.1", "tensorboard/notes"]
    kept += ["state/state-mine/a", "state/notes"]
    for name in kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / ".last.pt.123.tmp").write_text("half")
    with pytest.raises(ValueError, match="a folder without a training, got .*pass resume=True"):
        train(tmp_path)
    events = {path.name for path in (tmp_path / "tensorboard").glob("events*")}
    train(tmp_path, resume=True)
    assert [name for name in kept if not (tmp_path / name).exists()] == []
    assert not (tmp_path / ".last.pt.123.tmp").exists()
    assert not events & {path.name for path in (tmp_path / "tensorboard").glob("events*")}


def test_a_training_that_was_killed_before_its_first_state_begins_anew(tmp_path, weightless):
    for number, resume in enumerate((False, True)):
        out = tmp_path / str(number)
        (out / "state" / "partial").mkdir(parents=True)
        (out / "tensorboard").mkdir()
        (out / ".best.pt.123.tmp").write_text("half")
        assert len(train(out, resume).rows) == 1
        assert not (out / ".best.pt.123.tmp").exists()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_motions(folder / "train", 4, size=24, frames=2)
    write_motions(folder / "val", 4, size=24, frames=2, seed=1)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--val", "val"],  # the default folder for results is the data
        ["."],  # is a part of it
        ["train", "--val", "val", "--resume"],
        ["val", "--val", "train"],
        ["train", "--out", "val", "--val", "val"],
        ["train", "--out", "train/new/folder"],
        ["train", "--out", "."],
        ["list.csv", "--out", "train"],
        ["list.csv", "--out", "linked"],
        ["train/../train", "--out", "{videos}/train/run"],
    ],
)
def test_results_among_the_data_are_refused_before_anything_is_written(
    arguments, videos, monkeypatch, capsys, tmp_path
):
    here = tmp_path / "here"
    here.mkdir()
    for part in ("train", "val"):
        (here / part).mkdir()
        for path in (videos / part).iterdir():
            (here / part / path.name).mkdir()
            for clip in path.iterdir():
                os.link(clip, here / part / path.name / clip.name)
    rows = [f"{path.relative_to(here)},{path.parent.name}" for path in sorted(here.rglob("train/*/*.mp4"))]
    (here / "list.csv").write_text("\n".join(["path,label", *rows]))
    (here / "linked").symlink_to(here / "train")
    monkeypatch.chdir(here)
    before = below(here)
    arguments = [word.format(videos=here) for word in arguments]
    assert main(["train", *arguments, *small()]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "expected results apart from the data" in said
    assert "pass another --out" in said
    assert below(here) == before


def test_results_beside_the_data_are_fine(tmp_path):
    frames = tmp_path / "frames" / "a"
    frames.mkdir(parents=True)
    check_apart(tmp_path / "run", [tmp_path / "frames", tmp_path / "list.csv"], [str(frames)])
    check_apart(tmp_path / "frames2", [tmp_path / "frames"], [str(tmp_path / "a.mp4")])
    with pytest.raises(ValueError, match="apart from the data"):
        check_apart(frames / "run", [], [str(frames)])


def test_a_folder_of_other_things_is_refused_by_the_command(videos, tmp_path, capsys):
    (tmp_path / "best.pt").write_text("mine")
    data = ["train", str(videos / "train"), "--val", str(videos / "val"), "--out", str(tmp_path)]
    assert main([*data, *small()]) == 2
    assert "'best.pt' in it: pass another out" in capsys.readouterr().err
    assert below(tmp_path) == {"best.pt": b"mine"}
