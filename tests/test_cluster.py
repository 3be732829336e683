"""`tsm-triton classify --engine ray` on a local cluster: the numbers of one process, though a worker is killed."""

import json
import os
import signal
import threading
import time
from contextlib import suppress

import psutil
import pyarrow
import pytest
import torch
from pyarrow import parquet

import tsm_triton
from tsm_triton.backbones import create_backbone
from tsm_triton.cli import main
from tsm_triton.preparation import Preparation, set_preparation

from .motion_videos import write_motions


def kill_a_predicting_worker(killed: list[int], ended: threading.Event) -> None:
    """One of this process's own: the first that holds the model."""
    while not ended.is_set() and not killed:
        for child in psutil.Process().children(recursive=True):
            try:
                words = " ".join(child.cmdline())
                if words.startswith("ray::") and "Classifying" in words:
                    os.kill(child.pid, signal.SIGKILL)
                    killed.append(child.pid)
                    break
            except (psutil.Error, ProcessLookupError):
                continue
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster():
    """Of this machine: two workers."""
    ray = pytest.importorskip("ray")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()
    os.environ |= {"OMP_NUM_THREADS": before} if before is not None else {}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    torch.manual_seed(3)
    model = tsm_triton.patch(create_backbone("test_resnet", num_classes=4), 4)
    set_preparation(model, Preparation(32, 36))
    checkpoint = tmp_path_factory.mktemp("weights") / "best.pt"
    tsm_triton.save_checkpoint(model, checkpoint, ["a", "b", "c", "d"])
    return ["--checkpoint", str(checkpoint), "--device", "cpu", "--workers", "0", "--batch-size", "4"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of ray's own
@pytest.mark.usefixtures("cluster")
def test_a_cluster_predicts_what_one_process_does_though_a_worker_is_killed(options, tmp_path, capsys):
    videos = write_motions(tmp_path / "videos", 24)
    found = {}
    killed, ended = [], threading.Event()
    killer = threading.Thread(target=kill_a_predicting_worker, args=(killed, ended))
    try:
        for engine in ("local", "ray"):
            if engine == "ray":
                killer.start()
            files = [
                "--json",
                str(tmp_path / f"{engine}.json"),
                "--parquet",
                str(tmp_path / f"{engine}.parquet"),
            ]
            assert main(["classify", str(videos), *options, *files, "--engine", engine]) == 0
            found[engine] = json.loads((tmp_path / f"{engine}.json").read_text())
    finally:
        ended.set()
    assert "Classifying 24 videos on no accelerators" in capsys.readouterr().err
    assert len(killed) == 1
    assert len(found["ray"]) == 24
    for one, other in zip(found["local"], found["ray"], strict=True):
        assert one["video"] == other["video"]
        assert [top["label"] for top in one["top"]] == [top["label"] for top in other["top"]]
        probabilities = [[top["probability"] for top in record["top"]] for record in (one, other)]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-5)
    assert parquet.read_table(tmp_path / "ray.parquet").num_rows == 24


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("cluster")
def test_a_cluster_leaves_out_or_refuses_what_cannot_be_read(options, tmp_path, capsys):
    videos = write_motions(tmp_path / "videos", 3)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(b"no video")
    table = ["--engine", "ray", "--parquet", str(tmp_path / "a.parquet")]
    assert main(["classify", str(videos), str(damaged), *options, *table]) == 2
    assert "damaged.mp4" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "a.parquet").exists()
    assert main(["classify", str(videos), str(damaged), *options, *table, "--on-error", "skip"]) == 1
    assert "Left out 1 videos" in capsys.readouterr().out
    assert parquet.read_table(tmp_path / "a.parquet").num_rows == 3
    assert main(["classify", str(damaged), *options, *table, "--on-error", "skip"]) == 2
    assert "expected videos that can be read, got none" in capsys.readouterr().err
    # the results of before stay, and nothing beside them
    assert parquet.read_table(tmp_path / "a.parquet").num_rows == 3
    # until there are new ones
    assert main(["classify", str(next(videos.rglob("*.mp4"))), *options, *table]) == 0
    assert parquet.read_table(tmp_path / "a.parquet").num_rows == 1
    assert {path.name for path in tmp_path.iterdir()} == {"videos", "damaged.mp4", "a.parquet"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("cluster", "signals_heard")
def test_a_signal_ends_a_cluster_with_the_files_of_before(number, options, tmp_path):
    videos = write_motions(tmp_path / "videos", 96)  # more than are done before a busy machine asks
    before = tmp_path / "a.parquet"
    before.mkdir()
    rows = [{"number": 0, "video": "a.mp4", "label_1": "a", "probability_1": 1.0}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), before / "kept.parquet")
    asked = threading.Event()

    def ask():  # as soon as something is predicted or written
        while not asked.wait(0.1):
            if any("Classifying" in " ".join(words) for words in workers()) or list(
                tmp_path.glob(".a.parquet.*")
            ):
                asked.set()
                os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        status = main(["classify", str(videos), *options, "--engine", "ray", "--parquet", str(before)])
    except SystemExit as error:
        status = error.code
    finally:
        ended = asked.is_set()
        asked.set()
        asking.join()
    assert ended
    assert status == 128 + number
    assert [path.name for path in before.iterdir()] == ["kept.parquet"]
    assert {path.name for path in tmp_path.iterdir()} == {"videos", "a.parquet"}


@pytest.fixture
def no_ray(monkeypatch):
    """A cluster that must not be started."""
    ray = pytest.importorskip("ray")

    def started(*_, **__):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", started)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("held", ["notes.txt", "other.parquet", "own.parquet", "folder", "link", "file"])
def test_a_folder_of_other_things_is_refused_before_a_cluster_starts(held, options, tmp_path, capsys):
    videos, out = write_motions(tmp_path / "videos", 1), tmp_path / "results"
    if held == "file":
        out.write_text("mine")
    else:
        (out / "folder").mkdir(parents=True)
        if held != "folder":
            (out / "folder").rmdir()
            (out / held).write_text("mine")
    if held == "own.parquet":  # a table, but of something else
        parquet.write_table(pyarrow.Table.from_pylist([{"video": "a.mp4", "label": "a"}]), out / held)
    if held == "link":
        (out / held).rename(tmp_path / "linked")
        (out / held).symlink_to(tmp_path / "linked")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert main(["classify", str(videos), *options, "--engine", "ray", "--parquet", str(out)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "expected --parquet to be a new folder" in said
    assert "pass another path" in said
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("path", [".", "..", "../here", ""])
def test_the_current_folder_is_not_replaced(path, options, tmp_path, monkeypatch, capsys):
    videos = write_motions(tmp_path / "videos", 1)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["classify", str(videos), *options, "--engine", "ray", "--parquet", path]) == 2
    assert "the current folder or one around it" in capsys.readouterr().err.splitlines()[-1]


def workers() -> list[list[str]]:
    """What this process's own are called."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found.append(child.cmdline())
    return found
