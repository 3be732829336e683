"""A picture of a video: frames of it in a row, and a bar for each of its likeliest labels."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ...video.datasets import Listing, Sample, VideoDataset
from ..common import printable, replacing

__all__ = ["save_picture"]

MAX_FRAMES = 8
HEIGHT = 120  # of a frame in pixels


def save_picture(path: Path, video: str, top: Sequence[tuple[str, float]], num_segments: int) -> None:
    """Draw what was seen.

    Args:
        path: of the PNG.
        video: a file, or a folder of frames.
        top: the likeliest labels with their probabilities.
        num_segments: how many frames the model saw; at most eight are drawn.
    """
    from matplotlib.figure import Figure

    listing = Listing((Sample(video),))
    (frames,), _ = VideoDataset(listing, min(num_segments, MAX_FRAMES), size=HEIGHT)[0]
    strip = torch.cat(list(frames), dim=-1).permute(1, 2, 0)  # [H, T * W, 3]
    width = min(12.0, max(5.0, 1.2 * strip.shape[1] / strip.shape[0]))
    bars = 0.3 * len(top) + 0.3
    figure = Figure(figsize=(width, 1.6 + bars), layout="constrained", facecolor="white")
    above, below = figure.subplots(2, 1, height_ratios=[1.3, bars])
    above.imshow(strip.numpy(), interpolation="bilinear")
    above.set_axis_off()
    above.set_title(printable(os.path.basename(video)), fontsize=9, loc="left", parse_math=False)
    names, shares = [printable(label) for label, _ in reversed(top)], [share for _, share in reversed(top)]
    below.barh(range(len(top)), shares, color="#0072b2")
    below.set_yticks(range(len(top)), names, fontsize=8, parse_math=False)
    below.set_xlim(0, 1)
    for row, share in enumerate(shares):
        below.text(min(share + 0.01, 0.9), row, f"{share:.1%}", va="center", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
