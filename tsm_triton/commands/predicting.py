"""What a model makes of videos, whichever command asks."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..exporting.loading import ExportedClips
from ..preparation import preparation_of, sampling_of
from ..progress import Bar
from ..training.machine import default_workers, placed
from ..training.order import EvalBatches
from ..training.reading import loader
from ..video.classifier import VideoClassifier
from ..video.datasets import Listing, Sample, VideoDataset, collate
from ..video.datasets.reading import readable
from ..video.sampling import strategy_of
from ..video.transforms import transform_for
from .common import pick_device
from .interrupt import Interrupt
from .models import Trained

__all__ = ["Predictor"]

TINY = torch.finfo(torch.float32).tiny  # a probability that is too small for a logarithm


@dataclass(frozen=True)
class Predictor:
    """A model on its device, and which clips of a video it sees.

    Attributes:
        classifier: clips `[N, V, T, 3, H, W]` -> `[N, num_classes]`, averaged over V.
        averaged: `"logits"` or `"probabilities"`.
        num_segments: frames of a clip.
        device: of the model.
        options: of a `VideoDataset`.
        batch_size: videos at once.
        workers: processes that decode.
    """

    classifier: nn.Module
    averaged: str
    num_segments: int
    device: torch.device
    options: dict[str, Any]
    batch_size: int
    workers: int

    @classmethod
    def of(cls, trained: Trained, args: argparse.Namespace) -> "Predictor":
        """As the options of `add_prediction_options` say."""
        average = "softmax" if args.average == "probabilities" else "logits"
        if isinstance(trained.model, ExportedClips):
            classifier = trained.model.on(args.device)
            classifier.consensus, classifier.view_average = "avg", average
            device = classifier.runtime.device
        else:
            device = pick_device(args.device)
            classifier = VideoClassifier(trained.model, trained.num_segments, view_average=average)
            classifier.to(device)
            if device.type == "cuda":
                classifier.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        options = dict(
            transform=transform_for(trained.model, views=args.views),
            sampling=args.sampling or strategy_of(sampling_of(trained.model)),
            clips=args.clips,
            size=preparation_of(trained.model).short_side,  # as in training: the same numbers
            on_error=args.on_error,
        )
        workers = default_workers() if args.workers is None else args.workers
        return cls(
            classifier.eval(), args.average, trained.num_segments, device, options, args.batch_size, workers
        )

    @property
    def num_classes(self) -> int:
        """Of the model, by the shape of what it gives; every model gives a row a frame."""
        size = self.options["transform"](torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape[-1]
        clip = torch.zeros(1, self.num_segments, 3, size, size, device=self.device)
        with torch.inference_mode():
            return self.classifier(clip).shape[-1]

    def dataset(self, samples: Sequence[Sample]) -> VideoDataset:
        """Clips of the videos, each with its number for a label: which ones were read is seen from it."""
        numbered = tuple(Sample(sample.path, number) for number, sample in enumerate(samples))
        return VideoDataset(Listing(numbered), self.num_segments, **self.options)

    @torch.inference_mode()
    def log_probabilities(self, clips: Tensor) -> Tensor:
        """Clips `[N, V, T, 3, H, W]` -> logarithms `[N, num_classes]` of probabilities, on the CPU.

        Of averaged logits they have no smallest one.

        Raises:
            ValueError: they are no numbers.
        """
        scores = self.classifier(placed(clips, self.device)).float()
        averaged = self.averaged == "probabilities"
        logs = (scores.clamp_min(TINY).log() if averaged else scores.log_softmax(-1)).cpu()
        if logs.isnan().any():
            raise ValueError(
                f"expected finite scores, got {scores.flatten()[0].item()}: train the model again, its weights or "
                "activations are no numbers"
            )
        return logs

    def predictions(
        self, samples: Sequence[Sample], title: str, interrupt: Interrupt
    ) -> Iterator[tuple[int, Tensor]]:
        """The number of each video that can be read, and its log-probabilities `[num_classes]`, until interrupted."""
        batches = EvalBatches(len(samples), self.batch_size)
        with Bar(len(samples), title, "video") as bar:
            bar.say(f"{title} {len(samples)} videos")
            for clips, numbers in readable(loader(self.dataset(samples), batches, self.workers, collate)):
                yield from zip(numbers.tolist(), self.log_probabilities(clips), strict=True)
                bar.update(count=len(numbers))
                if interrupt.asked:
                    return
