"""Spot the frame at which a motion turns round: per-frame features, a small temporal head, a few minutes.

Action spotting asks when, not what: every frame gets a score. The backbone is any timm model patched by
tsm_triton, as E2E-Spot does by hand for RegNet-Y; its features keep their frame axis, and a recurrent head
reads them in both directions. Each clip here moves one way and, from a random frame on, back again.

    python examples/action_spotting.py --steps 150
"""

import argparse

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import tsm_triton
from tsm_triton.commands.demo.motion_clips import render, sample_textures
from tsm_triton.training import Settings, fit
from tsm_triton.video.features import VideoFeatures

NUM_SEGMENTS = 16
SIZE = 48
BATCH_SIZE = 8


class TurningClips(Dataset[tuple[Tensor, Tensor]]):
    """So many clips, each of them a function of its number."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        clips, turns = turning_clips(1, torch.Generator().manual_seed(index))
        return clips[0], turns[0]


class Spotter(nn.Module):
    """Clips `[N, T, 3, H, W]` -> one logit a frame, `[N, T]`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        backbone = timm.create_model(name, features_only=True, out_indices=(-1,))
        self.features = VideoFeatures(tsm_triton.patch(backbone, NUM_SEGMENTS), NUM_SEGMENTS)
        width = self.features.channels[-1]
        self.recurrent = nn.GRU(width, 32, batch_first=True, bidirectional=True)
        self.score = nn.Linear(64, 1)

    def forward(self, video: Tensor) -> Tensor:
        (maps,) = self.features(video)
        hidden, _ = self.recurrent(maps.mean((-2, -1)))
        return self.score(hidden).squeeze(-1)


def turning_clips(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips float `[N, T, 3, H, W]` and the frame `[N]` after which each runs backwards."""
    textures = sample_textures(count, generator)
    motions = torch.randint(0, 4, (count,), generator=generator)
    frames = render(textures, motions, 2 * NUM_SEGMENTS, SIZE).float() / 255 - 0.5
    turns = torch.randint(3, NUM_SEGMENTS - 3, (count,), generator=generator)
    t = torch.arange(NUM_SEGMENTS)
    # there, and back again
    order = NUM_SEGMENTS + torch.where(t <= turns[:, None], t, 2 * turns[:, None] - t)
    return torch.stack([clip[index] for clip, index in zip(frames, order, strict=True)]), turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = Spotter(args.model)
    # the frame is the class
    settings = Settings(epochs=1, batch_size=BATCH_SIZE, lr=3e-3, weight_decay=0.01, sched="constant")
    clips = TurningClips(args.steps * BATCH_SIZE)
    fit(model, clips, settings=settings, num_classes=NUM_SEGMENTS, device=torch.device("cpu"))

    clips, turns = turning_clips(64, torch.Generator().manual_seed(len(clips)))
    with torch.inference_mode():
        off_by = (model.eval()(clips).argmax(1) - turns).abs()
    print(f"Within one frame of the turn: {100 * (off_by <= 1).float().mean():.0f} % of 64 clips", end=", ")
    print(f"by chance {300 / (NUM_SEGMENTS - 6):.0f} %.")


if __name__ == "__main__":
    main()
