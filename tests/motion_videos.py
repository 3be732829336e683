"""Folders of small videos of the demo's motions, a folder a class."""

from pathlib import Path

import torch

from tsm_triton.commands.demo.motion_clips import CLASSES, render, sample_textures, write_clip


def write_motions(
    folder: Path, num_clips: int, *, num_classes: int = 4, size: int = 32, frames: int = 4, seed: int = 0
) -> Path:
    """So many MP4 files, the classes in turn."""
    labels = torch.arange(num_clips) % num_classes
    textures = sample_textures(num_clips, torch.Generator().manual_seed(seed))
    for number, (label, clip) in enumerate(zip(labels, render(textures, labels, frames, size), strict=True)):
        path = folder / CLASSES[label].replace(" ", "-") / f"{number:04d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, clip)
    return folder
