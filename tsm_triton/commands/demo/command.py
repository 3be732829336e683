"""`tsm-triton demo`: one backbone, trained with and without the shift, on clips where only motion tells."""

import argparse
import os
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from timm.scheduler import create_scheduler_v2  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from ...checkpoints import save_checkpoint
from ...extras import check_installed
from ...patching.patch import patch
from ...preparation import Preparation, set_preparation
from ...streaming.stream import Streaming
from ...video.classifier import VideoClassifier
from ...video.decoding import read_clip
from ...video.transforms import eval_transform
from ..common import create_model, make_folder, pick_device, say
from . import TRAINING
from .motion_clips import CLASSES, render, sample_textures, write_clip
from .report import save_plot, save_results, versions

__all__ = ["Clips", "Training", "make_clips", "run", "train"]

NUM_SEGMENTS = 8
SIZE = 48  # of a frame, in pixels
TEST_PART = 5  # one clip in five
BATCH_SIZE = 32
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 0.05
# What the verdict asks for, in percent.
TSM_ABOVE, TSN_BELOW = 90, 25


@dataclass
class Clips:
    """Decoded clips uint8 `[N, T, 3, H, W]` and their labels `[N]`."""

    frames: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Clips":
        return Clips(self.frames.to(device), self.labels.to(device))


@dataclass
class Training:
    """What came of one training: accuracies in percent, one entry an epoch."""

    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    predictions: list[int] = field(default_factory=list)  # of the test clips, after the last epoch
    seconds_per_step: float = 0.0  # the median epoch's


def run(args: argparse.Namespace) -> int:
    check_installed("the demo", "av", "matplotlib")
    started = time.perf_counter()
    device = pick_device(args.device)
    # With a thread for each core, OpenMP's busy waiting makes the training ten times slower as soon as
    # anything else runs.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    clips, epochs = TRAINING[args.direction]
    args.clips = clips if args.clips is None else args.clips
    args.epochs = epochs if args.epochs is None else args.epochs
    if args.clips < 2 * TEST_PART or args.epochs < 1:
        raise ValueError(
            f"expected at least {2 * TEST_PART} clips and 1 epoch, "
            f"got --clips {args.clips} --epochs {args.epochs}: give more"
        )
    _check_model(args.model, args.direction)

    train_clips, test_clips = make_clips(args.out / "clips", args.clips, args.seed)
    trainings: dict[str, Training] = {}
    for name in ("TSN", "TSM"):
        torch.manual_seed(args.seed)
        model = create_model(args.model, num_classes=len(CLASSES))
        if name == "TSM":
            patch(model, NUM_SEGMENTS, direction=args.direction)
        classifier = VideoClassifier(model, NUM_SEGMENTS).to(device).to(memory_format=torch.channels_last)
        trainings[name] = train(
            classifier, train_clips.to(device), test_clips.to(device), args.epochs, args.seed, name
        )

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
        results["streamed"] = compare_streamed(classifier, test_clips.to(device))
        written.append(args.out / "causal.pt")
        set_preparation(classifier.model, Preparation(SIZE, SIZE))
        save_checkpoint(classifier, written[-1], CLASSES)
    save_results(written[0], results)
    save_plot(written[1], results, test_clips.frames, test_clips.labels.tolist())

    print(
        f"Test accuracy on {len(test_clips.labels)} clips of {len(CLASSES)} motions (chance {chance:.1f} %):"
    )
    for name, training in trainings.items():
        kind = "shifted" if name == "TSM" else "unshifted"
        milliseconds = 1000 * training.seconds_per_step
        print(f"  {name}, {kind + ':':<11}{accuracy[name]:5.1f} %  {milliseconds:6.1f} ms per training step")
    if "streamed" in results:
        offline, streamed = (results["streamed"][how] for how in ("offline", "frame by frame"))
        print(f"  TSM on whole clips {offline:.1f} %, streamed frame by frame {streamed:.1f} %")
    *others, last = map(str, written)
    print(f"{verdict}\nWrote {', '.join(others)} and {last} in {results['seconds']:.0f} s.")
    return 0 if as_expected else 1


@torch.no_grad()
def _check_model(name: str, direction: str) -> None:
    """Raise `ValueError` now, and not after the clips are written, if the model cannot be shifted and run."""
    model = create_model(name, num_classes=len(CLASSES)).eval()
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

    say(f"Reading {num_clips} clips")
    paths = files["train"] + files["test"]
    read = partial(read_clip, num_segments=NUM_SEGMENTS)
    frames = torch.cat(
        thread_map(read, paths, max_workers=4, desc="Reading clips", unit="clip", disable=None)
    )
    train_frames, test_frames = frames.split([num_clips - num_test, num_test])
    return Clips(train_frames, labels["train"]), Clips(test_frames, labels["test"])


def train(
    classifier: nn.Module, train_clips: Clips, test_clips: Clips, epochs: int, seed: int, name: str
) -> Training:
    """Train in place, testing after each epoch; all that is random comes from `seed`."""
    device = train_clips.frames.device
    preprocess = eval_transform(SIZE, short_side=SIZE)
    batches = -(-len(train_clips.labels) // BATCH_SIZE)
    optimizer = create_optimizer_v2(classifier, opt="adamw", lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs,
        warmup_epochs=1,
        warmup_lr=LEARNING_RATE / 20,
        step_on_epochs=False,
        updates_per_epoch=batches,
    )
    assert scheduler is not None
    torch.manual_seed(seed)  # dropout
    order = torch.Generator().manual_seed(seed)
    training, seconds, step = Training(), [], 0
    with tqdm(total=epochs * batches, desc=f"Training {name}", unit="step", disable=None) as progress:
        for epoch in range(1, epochs + 1):
            classifier.train()
            _synchronize(device)
            began = time.perf_counter()
            losses, correct = [], []
            for chosen in torch.randperm(len(train_clips.labels), generator=order).split(BATCH_SIZE):
                chosen = chosen.to(device)
                labels = train_clips.labels[chosen]
                logits = classifier(preprocess(train_clips.frames[chosen]))
                loss = cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                scheduler.step_update(step)
                losses.append(loss.detach())
                correct.append(logits.argmax(1) == labels)
                progress.update()
            _synchronize(device)
            seconds.append((time.perf_counter() - began) / batches)

            classifier.eval()
            with torch.inference_mode():
                predictions = torch.cat(
                    [classifier(preprocess(chunk)).argmax(1) for chunk in test_clips.frames.split(BATCH_SIZE)]
                )
            training.train_loss.append(torch.stack(losses).mean().item())
            training.train_accuracy.append(_percent(torch.cat(correct)))
            training.test_accuracy.append(_percent(predictions == test_clips.labels))
            training.predictions = predictions.tolist()
            tested = f"test accuracy {training.test_accuracy[-1]:.1f} %"
            progress.set_postfix_str(tested)
            say(f"Training {name}, epoch {epoch} of {epochs}: loss {training.train_loss[-1]:.3f}, {tested}")
    training.seconds_per_step = sorted(seconds)[len(seconds) // 2]
    return training


@torch.inference_mode()
def compare_streamed(classifier: VideoClassifier, clips: Clips) -> dict[str, float]:
    """Accuracies, in percent, of a causal model on whole clips and fed one frame at a time.

    Each clip of a batch is a stream of its own, and its prediction the mean of its frames' logits.
    """
    classifier.eval()
    preprocess = eval_transform(SIZE, short_side=SIZE)
    stream = Streaming(classifier.model, consensus=NUM_SEGMENTS)
    offline, streamed = [], []
    for chunk in clips.frames.split(BATCH_SIZE):
        video = preprocess(chunk)
        offline.append(classifier(video))
        stream.reset()
        streamed.append([stream(frame) for frame in video.unbind(1)][-1])
    offline, streamed = torch.cat(offline), torch.cat(streamed)
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


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
