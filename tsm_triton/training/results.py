"""What a training writes: checkpoints, metrics.csv, TensorBoard's events, curves and the confusion of the best."""

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ..checkpoints import save_checkpoint
from ..files import replacing
from .charts import save_confusion, save_curves
from .folder import left_files
from .state import Progress

__all__ = ["Results"]

PICTURES_EVERY = 30.0  # seconds: matplotlib takes half a second for both, which short epochs do not


class Results:
    """The files of a folder, each of them whole at any moment and the same however often the training was begun.

    Args:
        folder: for `best.pt`, `last.pt`, `metrics.csv`, `curves.png`, `confusion.png` and `tensorboard/`.
        labels: of the classes.
        progress: what was done before.
    """

    def __init__(self, folder: Path, labels: Sequence[str] | None, progress: Progress) -> None:
        self.folder, self.labels, self.progress = folder, labels, progress
        for left in left_files(folder):
            left.unlink(missing_ok=True)
        # written anew: events cannot be taken back, and some may be of an epoch that is not done
        for events in (folder / "tensorboard").glob("events.out.tfevents.*"):
            events.unlink(missing_ok=True)
        self.events = SummaryWriter(str(folder / "tensorboard"))
        for row in progress.rows:
            self._add_events(row)
        self.drawn = time.monotonic()
        if progress.rows:
            self._write()

    def save_weights(self, model: Any, best: bool) -> None:
        """Checkpoints of an epoch's weights, before its row stands anywhere."""
        for name in ("best.pt", "last.pt") if best else ("last.pt",):
            save_checkpoint(model, self.folder / name, self.labels)

    def epoch(self) -> None:
        """Write what the last row adds."""
        self._add_events(self.progress.rows[-1])
        self._write()
        if time.monotonic() - self.drawn > PICTURES_EVERY:
            self._draw()

    def close(self) -> None:
        self.events.close()
        if self.progress.rows:
            self._draw()

    def _add_events(self, row: dict[str, Any]) -> None:
        for key, value in row.items():
            if key not in ("epoch", "step"):
                self.events.add_scalar(key.replace("_", "/", 1), value, row["epoch"])
        self.events.flush()

    def _write(self) -> None:
        rows = self.progress.rows
        with (
            replacing(self.folder / "metrics.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def _draw(self) -> None:
        self.drawn = time.monotonic()
        save_curves(self.folder / "curves.png", self.progress.rows)
        if self.progress.confusion is not None:
            best = self.progress.best or {}
            title = f"epoch {best.get('epoch')}: {best.get('val_top1', 0):.1f} % top-1"
            save_confusion(self.folder / "confusion.png", self.progress.confusion, self.labels, title)
