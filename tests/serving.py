"""What `tsm-triton serve` is tested with: decided weights, a clip, and what must be seen in it."""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from tsm_triton import Streaming, patch, save_checkpoint
from tsm_triton.backbones import create_backbone
from tsm_triton.commands.demo.motion_clips import CLASSES, render, sample_textures, write_clip
from tsm_triton.commands.models import Said, load_trained_model
from tsm_triton.commands.serve import add_arguments
from tsm_triton.preparation import Preparation, set_preparation
from tsm_triton.video.transforms import transform_for

SIZE, NUM_SEGMENTS = 48, 4


def write_weights(path: Path, direction: str = "causal") -> Path:
    """Untrained, of wide opinions that change from frame to frame, with a preparation that is nobody's default."""
    torch.manual_seed(3)
    model = patch(create_backbone("test_resnet", num_classes=len(CLASSES)), NUM_SEGMENTS, direction=direction)
    set_preparation(model, Preparation(SIZE, SIZE, mean=(0.4, 0.5, 0.3), std=(0.1, 0.2, 0.3)))
    logits = model.eval()(transform_for(model)(motion(NUM_SEGMENTS)))
    head = model.get_classifier()
    with torch.no_grad():
        head.bias -= logits.mean(0)
        for parameter in (head.weight, head.bias):
            parameter *= 1 / logits.std(0).mean()
    save_checkpoint(model, path, CLASSES)
    return path


def motion(num_frames: int, kind: int = 0, size: int = 64) -> Tensor:
    """uint8 `[T, 3, size, size]`."""
    texture = sample_textures(1, torch.Generator().manual_seed(kind))
    return render(texture, torch.tensor([kind]), num_frames, size)[0]


def write_motion(path: Path, num_frames: int = 12, kind: int = 0, fps: int = 50) -> Path:
    write_clip(path, motion(num_frames, kind), fps)
    return path


def streamed(weights: Path, frames: Tensor) -> list[list[tuple[str, float]]]:
    """The five likeliest labels of each frame `[T, 3, H, W]`, by `Streaming` itself."""
    trained = load_trained_model(weights, Said(), streamed=True)
    stream, preprocess = Streaming(trained.model), transform_for(trained.model)
    found = []
    for frame in frames:
        shares, labels = stream(preprocess(frame[None]))[0].softmax(-1).topk(5)
        found.append([(CLASSES[label], share.item()) for label, share in zip(labels, shares, strict=True)])
    return found


def arguments(*argv: object) -> argparse.Namespace:
    """Of the command."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(argument) for argument in argv])


def part(message: dict, data: bytes) -> bytes:
    """What a server asks for."""
    begin, end = message["send"]
    return data[begin:end]


def asked(name: str, data: bytes) -> str:
    return json.dumps({"source": "file", "name": name, "bytes": len(data)})


@contextmanager
def serving(weights: Path, folder: Path, *options: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a server of its own process, whose temporary files are made in a folder."""
    command = [sys.executable, "-m", "tsm_triton", "serve", str(weights), "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, *map(str, options)], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            found = next(filter(None, (re.search(r"http://\S+(?=;)", line) for line in process.stdout)))
            yield found[0], process
        finally:
            process.kill()
