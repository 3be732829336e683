"""The README's Python runs as it stands, from top to bottom."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tsm_triton.cli import main
from tsm_triton.commands.demo.command import TSM_ABOVE

from .motion_videos import write_motions
from .video_files import write_video

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted(
    path for folder in (".", "docs", "examples", "examples/*") for path in ROOT.glob(f"{folder}/*.md")
)
# the same calls without a download, on a smaller model and smaller frames
SMALLER = {"pretrained=True": "pretrained=False", "resnet50": "test_resnet", "224, 224": "64, 64"}


def test_the_blocks_of_the_readme_run_in_order(tmp_path, monkeypatch):
    write_video(tmp_path / "video.mp4", 10)
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 10
    with torch.no_grad():
        for block in blocks:
            for ours, small in SMALLER.items():
                block = block.replace(ours, small)
            exec(block, names)


def test_the_first_block_predicts_as_a_user_would():
    text = README.read_text()
    first = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert first is not None
    assert ".eval()" in first[1]
    for words in ("## install", "fine-tune", "horizontal flip"):
        assert words in text.lower()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_relative_link_leads_to_a_file_and_a_heading_of_it(page):
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text())
    for name, heading in links:
        target = page.parent / name if name else page
        assert target.exists(), name
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if heading else []
        anchors = [re.sub(r"[^\w -]", "", words).lower().replace(" ", "-") for words in headings]
        assert not heading or heading in anchors, heading


def test_the_pages_that_the_readme_links_to_are_all_that_there_are():
    linked = set(re.findall(r"\]\((docs/[^)#]*\.md)", README.read_text()))
    more = re.findall(r"\]\(([^)#/]*\.md)\)", (ROOT / "docs" / "design.md").read_text())
    assert linked | {f"docs/{name}" for name in more} == {
        f"docs/{page.name}" for page in ROOT.glob("docs/*.md")
    }


def test_the_five_commands_lead_from_a_folder_to_a_stream(tmp_path, monkeypatch, capsys):
    """On clips whose classes no single frame tells apart, to the demo's accuracy; the first command is killed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_motions(Path("videos/train"), 480, num_classes=4, size=48, frames=8)
    write_motions(Path("videos/val"), 40, num_classes=4, size=48, frames=8, seed=1)
    taken = sorted(Path("videos/val").rglob("*.mp4"))[0]
    taken.rename("live.mp4")
    section = README.read_text().split("## Train on your own videos")[1]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    train, resume, evaluate, classify, stream = (shlex.split(line)[1:] for line in block[1].splitlines())
    own = ["--device", "cpu", "--workers", "0"]

    environment = {**os.environ, "PYTHONPATH": str(README.parent)}
    training = subprocess.Popen([sys.executable, "-m", "tsm_triton", *train, *own], env=environment)
    while not list(Path("run").glob("state/state-*")):
        assert training.poll() is None
        time.sleep(0.01)
    training.kill()
    assert training.wait() == -signal.SIGKILL
    capsys.readouterr()
    assert main([*resume, *own]) == 0
    assert "epoch 1 of 8" not in capsys.readouterr().err  # it went on
    assert main([*evaluate, *own]) == 0
    assert json.loads(Path("run/eval/results.json").read_text())["top1"] > TSM_ABOVE
    assert main([*classify, *own]) == 0
    with Path("run/labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = [row["video"].split("/")[-2] == row["label_1"] for row in rows]
    assert 100 * sum(right) > TSM_ABOVE * len(right) == TSM_ABOVE * 39
    assert len(list(Path("run/pictures").iterdir())) == 39
    capsys.readouterr()
    more = ["--device", "cpu", "--consensus", "8", "--csv", "run/stream.csv"]
    assert main([*stream, *more]) == 0
    assert "Streamed 8 frames" in capsys.readouterr().out
    with Path("run/stream.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert taken.parent.name in last.values()  # the mean over the clip's frames, which is what eval counts
