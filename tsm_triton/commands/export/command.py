"""A checkpoint, or a model without weights, written by `tsm_triton.export`."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...arguments import as_count
from ...backbones import create_backbone
from ...checkpoints import load_checkpoint
from ...exporting import FORMATS, export, load_exported
from ...extras import check_installed
from ...fusion.fuse import fuse
from ...patching.hooks import clip_length_of, is_patched, set_num_segments
from ...patching.patch import patch
from ...preparation import frame_shape, preparation_of, sampling_of
from ...progress import Bar
from ...streaming.stream import Streaming
from ...video.classifier import VideoClassifier
from ...video.datasets import Listing, VideoDataset
from ...video.sampling import strategy_of
from ...video.transforms import transform_for
from ..common import pick_device
from ..data import read_data

__all__ = ["run"]

CALIBRATION_CLIPS = 128


def run(args: argparse.Namespace) -> int:
    if args.frames and args.streaming:
        raise ValueError("expected one of --frames and --streaming, got both: drop one")
    name = Path(args.model).stem if Path(args.model).exists() else args.model.rpartition("/")[2]
    path = args.path or Path(name + FORMATS[args.to])
    _check_path(path, args.model)
    device = pick_device(args.device)
    if args.int8 is not None and device.type != "cpu":
        raise ValueError(f"expected --device cpu with --int8, got {args.device!r}: drop one")
    with Bar(2, f"Exporting to {args.to}", "part") as bar:
        bar.say(f"Exporting {args.model} to {args.to}: this may take minutes")
        said, changed = _exported(args, path, bar)
    print(f"{path}: {', '.join(f'{key} {shape}' for key, shape in said['inputs'].items())}")
    print(f"  frames of a clip: {_length(said)}")
    print(f"  outputs: {', '.join(said['outputs'])}")
    if said["int8"]:
        print("  computes in int8" + (f": {changed}" if changed else ""))
    return 0


def _check_path(path: Path, model: str) -> None:
    """Raise now for a file that could not be written in the end, or that would replace what is read."""
    if path.resolve() == Path(model).resolve() or path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(
            f"expected --path to be a file of its own in a folder that exists, got {str(path)!r}: pass another one"
        )


def _exported(args: argparse.Namespace, path: Path, bar: Bar) -> tuple[dict[str, Any], str]:
    """What the file says of itself, and what int8 changed."""
    model = _model(args)
    bar.update("the model is made")
    channels, *sides = frame_shape(model)
    size = (channels, *(sides if args.size is None else 2 * [as_count(args.size, "size")]))
    num_segments = clip_length_of(model)
    clips = None if args.int8 is None else _calibration_clips(args.int8, model, num_segments, size[-1], bar)
    try:
        exported, leading = _as_asked(model, args, size, num_segments)
        example = torch.zeros(*leading, *size)
        options = dict(dynamic_size=args.dynamic_size, int8=clips)
        said = export(exported, args.to, path, example, args.native, **options)
        bar.update("written")
    except RuntimeError as error:  # a model that cannot be captured so is an error of the user's here
        raise ValueError(
            f"expected a model that can be exported so, got one that cannot: {error} Try another --size, or drop "
            "--dynamic-size."
        ) from error
    if clips is None or args.streaming:
        return said, ""
    bar.say("Comparing the file with the model")
    return said, _agreement(model, load_exported(path), clips)


def _calibration_clips(
    data: str, model: nn.Module, num_segments: int, size: int, bar: Bar
) -> list[torch.Tensor]:
    """Some of the videos, evenly, the clips of each that `tsm-triton eval` gives the file."""
    check_installed("--int8", "av")
    samples = read_data(data, None, None, default_split="train").samples
    chosen = samples[:: -(-len(samples) // CALIBRATION_CLIPS)]
    dataset = VideoDataset(
        Listing(tuple(chosen)),
        num_segments,
        transform=transform_for(model, size=size),
        sampling=strategy_of(sampling_of(model)),
        size=preparation_of(model, size=size).short_side,  # as in training and in eval: the same numbers
    )
    bar.say(f"Measuring ranges on {len(chosen)} of {len(samples)} videos")
    return [dataset[number][0] for number in range(len(chosen))]


@torch.no_grad()
def _agreement(model: nn.Module, written: Any, clips: list[torch.Tensor]) -> str:
    """What int8 changed, on the clips that it was measured on."""
    same, moved = 0, 0.0
    classifier = VideoClassifier(model, clips[0].shape[1])
    for clip in clips:
        plain, int8 = classifier(clip).softmax(-1), written(clip).softmax(-1).to(clip)
        same += int((plain.argmax(-1) == int8.argmax(-1)).sum())
        moved = max(moved, (plain - int8).abs().max().item())
    count = sum(len(clip) for clip in clips)
    return (
        f"of the {count} clips that its ranges were measured on, {same} ({same / count:.1%}) keep the float model's "
        f"first class, and probabilities move by at most {moved:.3f}\n"
        f"  what it costs on others: tsm-triton eval TEST --model {written.runtime.path}"
    )


def _length(said: dict[str, Any]) -> str:
    if said["num_segments"] is None:
        return "one frame at a time"
    free = "frames" in said["inputs"].get("video", ())
    return f"{said['num_segments']}{', or any other number' if free else ''}"


def _model(args: argparse.Namespace) -> nn.Module:
    if Path(args.model).exists():
        if args.direction:
            raise ValueError(
                "expected no --direction with a checkpoint, whose weights were trained with one, got "
                f"{args.direction!r}: drop it"
            )
        model = load_checkpoint(args.model)
        if not is_patched(model):
            raise ValueError(
                f"expected weights with a shift, got unshifted ones in {args.model!r}: call torch.onnx.export on them"
            )
    else:
        model = patch(create_backbone(args.model), direction=args.direction or "bidirectional")
    if args.num_segments is not None:
        set_num_segments(model, args.num_segments)
    return model.eval().to(args.device, getattr(torch, args.dtype))


def _as_asked(
    model: nn.Module, args: argparse.Namespace, size: tuple[int, ...], num_segments: int
) -> tuple[Any, tuple[int, ...]]:
    """What is exported, and the axes of its input before those of a frame."""
    if args.streaming:
        return Streaming(model, fused=args.fused), (1,)
    if args.fused:
        parameter = next(model.parameters())
        model = fuse(model, example_input=parameter.new_zeros(num_segments, *size))
    if args.frames:
        return model, (num_segments,)
    return VideoClassifier(model, num_segments).eval(), (1, num_segments)
