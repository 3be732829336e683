"""`tsm-triton classify --engine ray` on a local cluster: the numbers of one process, though a worker is killed."""

import json
import os
import signal
import threading
import time

import psutil
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


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of ray's own
def test_a_cluster_predicts_what_one_process_does_though_a_worker_is_killed(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.manual_seed(3)
    model = tsm_triton.patch(create_backbone("test_resnet", num_classes=4), 4)
    set_preparation(model, Preparation(32, 36))
    checkpoint = tmp_path / "best.pt"
    tsm_triton.save_checkpoint(model, checkpoint, ["a", "b", "c", "d"])
    videos = write_motions(tmp_path / "videos", 24)
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--workers", "0", "--batch-size", "4"]

    found = {}
    killed, ended = [], threading.Event()
    killer = threading.Thread(target=kill_a_predicting_worker, args=(killed, ended))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
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
        ray.shutdown()
    assert len(killed) == 1
    assert len(found["ray"]) == 24
    for one, other in zip(found["local"], found["ray"], strict=True):
        assert one["video"] == other["video"]
        assert [top["label"] for top in one["top"]] == [top["label"] for top in other["top"]]
        probabilities = [[top["probability"] for top in record["top"]] for record in (one, other)]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-5)
    assert parquet.read_table(tmp_path / "ray.parquet").num_rows == 24
