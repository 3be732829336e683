"""The README's Python runs as it stands, from top to bottom."""

import re
from pathlib import Path

import torch

from .video_files import write_video

README = Path(__file__).parent.parent / "README.md"
# the same calls without a download, on a smaller model and smaller frames
SMALLER = {"pretrained=True": "pretrained=False", "resnet50": "test_resnet", "224, 224": "64, 64"}


def test_the_blocks_of_the_readme_run_in_order(tmp_path, monkeypatch):
    write_video(tmp_path / "video.mp4", 10)
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 9
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
