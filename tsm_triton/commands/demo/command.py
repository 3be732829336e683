"""`tsm-triton demo`: one backbone, trained with and without the shift, on clips where only motion tells."""

import argparse
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from ...backbones import create_backbone
from ...checkpoints import save_checkpoint
from ...extras import check_installed
from ...patching.patch import patch
from ...preparation import Preparation, set_preparation
from ...streaming.stream import Streaming
from ...training.settings import Settings
from ...video.classifier import VideoClassifier
from ...video.decoding import read_clip
from ...video.transforms import eval_transform
from ..common import few_threads, make_folder, pick_device, say
from ..tables import save_csv
from . import TRAINING
from .motion_clips import CLASSES, render, sample_textures, write_clip
from .report import check_folder, save_plot, save_results, versions

__all__ = ["Clips", "Training", "make_clips", "run", "train"]

NUM_SEGMENTS = 8
SIZE = 48  # of a frame, in pixels
TEST_PART = 5  # one clip in five
BATCH_SIZE = 32
# What the verdict asks for, in percent.
TSM_ABOVE, TSN_BELOW = 90, 25


@dataclass
class Clips(Dataset[tuple[Tensor, Tensor]]):
    """Decoded clips uint8 `[N, T, 3, H, W]` and their labels `[N]`, of which a training sees normalised ones."""

    frames: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return _prepared(self.frames[index]), self.labels[index]


@dataclass
class Training:
    """What came of one training: accuracies in percent, one entry an epoch."""

    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    predictions: list[int] = field(default_factory=list)  # of the test clips, after the last epoch
    seconds_per_step: float = 0.0  # the median epoch's


def run(args: argparse.Namespace) -> int:
    check_installed("the demo", "av", "matplotlib", "accelerate", "torchmetrics")
    started = time.perf_counter()
    device = pick_device(args.device)
    few_threads()
    clips, epochs = TRAINING[args.direction]
    args.clips = clips if args.clips is None else args.clips
    args.epochs = epochs if args.epochs is None else args.epochs
    if args.clips < 2 * TEST_PART or args.epochs < 1:
        raise ValueError(
            f"expected at least {2 * TEST_PART} clips and 1 epoch, "
            f"got --clips {args.clips} --epochs {args.epochs}: give more"
        )
    check_folder(args.out)
    _check_model(args.model, args.direction)

    train_clips, test_clips = make_clips(args.out / "clips", args.clips, args.seed)
    classifier, trainings = _train_both(args, train_clips, test_clips, device)
    accuracy = {name: training.test_accuracy[-1] for name, training in trainings.items()}
    chance = 100 / len(CLASSES)
    as_expected, verdict = _verdict(accuracy["TSN"], accuracy["TSM"], chance)
    results: dict[str, Any] = {
        "verdict": verdict,
        "as_expected": as_expected,
        "test_accuracy": accuracy,
        "chance": chance,
        "classes": CLASSES,
        "num_clips": {"train": len(train_clips.labels), "test": len(test_clips.labels)},
        "trainings": {name: asdict(training) for name, training in trainings.items()},
        "arguments": {**vars(args), "out": str(args.out), "device": str(device)},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    written = [args.out / "results.json", args.out / "demo.png"]
    if args.direction == "causal":
        results["streamed"] = compare_streamed(classifier, test_clips, device)
        written.append(args.out / "causal.pt")
        set_preparation(classifier.model, Preparation(SIZE, SIZE))
        save_checkpoint(classifier, written[-1], CLASSES)
    save_results(written[0], results)
    save_plot(written[1], results, test_clips.frames, test_clips.labels.tolist())
    _print_summary(results, written)
    return 0 if as_expected else 1


def _train_both(
    args: argparse.Namespace, train_clips: Clips, test_clips: Clips, device: torch.device
) -> tuple[VideoClassifier, dict[str, Training]]:
    """The shifted network, trained, and what came of both trainings: same clips, same seed."""
    trainings = {}
    for name in ("TSN", "TSM"):
        torch.manual_seed(args.seed)
        model = create_backbone(args.model, num_classes=len(CLASSES))
        if name == "TSM":
            patch(model, NUM_SEGMENTS, direction=args.direction)
        classifier = VideoClassifier(model, NUM_SEGMENTS)
        trainings[name] = train(classifier, train_clips, test_clips, args.epochs, args.seed, name, device)
    return classifier, trainings


def _print_summary(results: dict[str, Any], written: list[Path]) -> None:
    num_clips, chance = results["num_clips"]["test"], results["chance"]
    print(f"Test accuracy on {num_clips} clips of {len(CLASSES)} motions (chance {chance:.1f} %):")
    for name, training in results["trainings"].items():
        kind = "shifted" if name == "TSM" else "unshifted"
        accuracy, milliseconds = results["test_accuracy"][name], 1000 * training["seconds_per_step"]
        print(f"  {name}, {kind + ':':<11}{accuracy:5.1f} %  {milliseconds:6.1f} ms per training step")
    if "streamed" in results:
        offline, streamed = (results["streamed"][how] for how in ("offline", "frame by frame"))
        print(f"  TSM on whole clips {offline:.1f} %, streamed frame by frame {streamed:.1f} %")
    *others, last = map(str, written)
    print(f"{results['verdict']}\nWrote {', '.join(others)} and {last} in {results['seconds']:.0f} s.")


@torch.no_grad()
def _check_model(name: str, direction: str) -> None:
    """Raise `ValueError` now, and not after the clips are written, if the model cannot be shifted and run."""
    model = create_backbone(name, num_classes=len(CLASSES)).eval()
    try:
        patch(model, NUM_SEGMENTS, direction=direction)(torch.zeros(NUM_SEGMENTS, 3, SIZE, SIZE))
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"expected a model that patch takes and that runs on frames of {SIZE} x {SIZE} pixels, got "
            f"{name!r} ({type(error).__name__}: {reason}). Choose another --model."
        ) from error


def make_clips(folder: Path, num_clips: int, seed: int) -> tuple[Clips, Clips]:
    """Write MP4 files and read them back; the training clips and the test clips."""
    generator = torch.Generator().manual_seed(seed)
    num_test = num_clips // TEST_PART
    say(f"Writing {num_clips} clips to {str(folder)!r}")
    files: dict[str, list[Path]] = {"train": [], "test": []}
    labels = {"train": torch.arange(num_clips - num_test), "test": torch.arange(num_test)}
    with tqdm(total=num_clips, desc="Writing clips", unit="clip", disable=None) as progress:
        for split in files:
            make_folder(folder / split)
            labels[split] %= len(CLASSES)
            for chunk in labels[split].split(BATCH_SIZE):
                textures = sample_textures(len(chunk), generator)
                for label, frames in zip(chunk, render(textures, chunk, NUM_SEGMENTS, SIZE), strict=True):
                    name = CLASSES[label].replace(" ", "-")
                    files[split].append(folder / split / f"{len(files[split]):04d}-{name}.mp4")
                    write_clip(files[split][-1], frames)
                    progress.update()
            rows = zip(files[split], labels[split].tolist(), strict=True)
            table = [
                {"path": path.relative_to(folder).as_posix(), "label": CLASSES[label]} for path, label in rows
            ]
            save_csv(folder / f"{split}.csv", table)

    say(f"Reading {num_clips} clips")
    paths = files["train"] + files["test"]
    read = partial(read_clip, num_segments=NUM_SEGMENTS)
    frames = torch.cat(
        thread_map(read, paths, max_workers=4, desc="Reading clips", unit="clip", disable=None)
    )
    train_frames, test_frames = frames.split([num_clips - num_test, num_test])
    return Clips(train_frames, labels["train"]), Clips(test_frames, labels["test"])


def train(
    classifier: nn.Module,
    train_clips: Clips,
    test_clips: Clips,
    epochs: int,
    seed: int,
    name: str,
    device: torch.device,
) -> Training:
    """Train in place, testing after each epoch; all that is random comes from `seed`."""
    from ...training.fitting import fit

    settings = Settings(epochs=epochs, batch_size=BATCH_SIZE, seed=seed)
    progress = fit(
        classifier,
        train_clips,
        test_clips,
        settings,
        num_classes=len(CLASSES),
        device=device,
        title=f"Training {name}",
    )
    column = {key: [row[key] for row in progress.rows] for key in progress.rows[0]}
    steps = column["step"][0]
    with torch.inference_mode():
        chunks = [_prepared(chunk, device) for chunk in test_clips.frames.split(BATCH_SIZE)]
        predictions = torch.cat([classifier(chunk).argmax(1) for chunk in chunks])
    return Training(
        train_loss=column["train_loss"],
        train_accuracy=column["train_top1"],
        test_accuracy=column["val_top1"],
        predictions=predictions.tolist(),
        seconds_per_step=sorted(column["seconds"])[epochs // 2] / steps,
    )


@torch.inference_mode()
def compare_streamed(classifier: VideoClassifier, clips: Clips, device: torch.device) -> dict[str, float]:
    """Accuracies, in percent, of a causal model on whole clips and fed one frame at a time.

    Each clip of a batch is a stream of its own, and its prediction the mean of its frames' logits.
    """
    classifier.eval()
    stream = Streaming(classifier.model, consensus=NUM_SEGMENTS)
    offline, streamed = [], []
    for chunk in clips.frames.split(BATCH_SIZE):
        video = _prepared(chunk, device)
        offline.append(classifier(video))
        stream.reset()
        streamed.append([stream(frame) for frame in video.unbind(1)][-1])
    offline, streamed = torch.cat(offline).cpu(), torch.cat(streamed).cpu()
    return {
        "offline": _percent(offline.argmax(1) == clips.labels),
        "frame by frame": _percent(streamed.argmax(1) == clips.labels),
        "largest difference of logits": (offline - streamed).abs().max().item(),
    }


def _verdict(tsn: float, tsm: float, chance: float) -> tuple[bool, str]:
    """Whether the demo came out as expected, and what came."""
    if tsm > TSM_ABOVE and tsn <= TSN_BELOW:
        seen = f"TSM sees the motion ({tsm:.1f} %); without the shift it cannot be seen ({tsn:.1f} %)"
        return True, f"Verdict: {seen}."
    failed = []
    if tsm <= TSM_ABOVE:
        failed.append(f"TSM reached {tsm:.1f} %, not above {TSM_ABOVE} %")
    if tsn > TSN_BELOW:
        failed.append(f"TSN reached {tsn:.1f} %, far from chance ({chance:.1f} %)")
    return False, f"Verdict: NOT as expected: {' and '.join(failed)}. More --clips or --epochs may help."


def _percent(correct: Tensor) -> float:
    return 100 * correct.float().mean().item()


def _prepared(frames: Tensor, device: torch.device | None = None) -> Tensor:
    """Decoded frames as the model takes them."""
    return eval_transform(SIZE, short_side=SIZE)(frames).to(device)
