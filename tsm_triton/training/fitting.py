"""`fit`: a training, and the folder that it is kept in."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from .folder import check_folder
from .loop import Trainer
from .memory import checkpoint_activations
from .settings import Settings
from .state import Progress, Stopped, load_state

__all__ = ["Stopped", "fit"]


def fit(
    model: nn.Module,
    train: Dataset[Any],
    val: Dataset[Any] | None = None,
    settings: Settings | None = None,
    *,
    num_classes: int,
    labels: Sequence[str] | None = None,
    out: Path | None = None,
    resume: bool = False,
    about: Mapping[str, Any] | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    device: torch.device | None = None,
    stop: Callable[[], bool] = lambda: False,
    title: str = "Training",
) -> Progress:
    """Train a model in place, testing it after each epoch; what is random comes from the seed alone.

    A training that was killed at any moment and begun again with `resume` ends with the same weights, on a CPU bit for
    bit: the order of clips is a function of seed and epoch, and all else that moves is in the state.

    Args:
        model: inputs -> logits `[N, num_classes]`, a `VideoClassifier` for instance. All of it is put in training mode;
            `requires_grad_(False)` and `freeze_batch_norm` hold what shall stay.
        train, val: data sets of pairs, an input and a label, that have a length and give items by number. What items
            draw from torch's generator follows from seed, epoch and number, or of batches that are read at once
            (`__getitems__`) from all of their numbers; `set_epoch(epoch)` is called where there is one, also inside of
            torch's `Subset` and `ConcatDataset`. Without `val` the last epoch is the best one.
        settings: how.
        num_classes: C.
        labels: a name for each class, for checkpoints and pictures.
        out: a folder for checkpoints, metrics, pictures, and states to go on from; None writes nothing. Of several
            machines all must see it.
        resume: go on from the folder's state, where there is one.
        about: what else a training that goes on must have been begun with.
        collate: items -> a batch, as for a DataLoader.
        device: of this process; None for accelerate's choice.
        stop: asked after each step, and each batch of a test, whether to end there.
        title: of the progress shown.

    Returns:
        The rows of metrics.csv, the best of them and its confusion matrix.

    Raises:
        Stopped: `stop` said so; the state is saved.
        TypeError: data sets that give items in an order of their own.
        ValueError: settings that do not fit together or to the data; a folder that holds another training, or what is
            none; a loss that is no number.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.eye(4), torch.arange(4))
        >>> progress = fit(nn.Linear(4, 4), data, settings=Settings(epochs=3, lr=0.1), num_classes=4)
        >>> [row["step"] for row in progress.rows]
        [1, 2, 3]
    """
    settings = settings or Settings()
    _check_data(train, val)
    if labels is not None and len(labels) != num_classes:
        raise ValueError(
            f"expected {num_classes} labels, as many as num_classes, got {len(labels)}: pass one for each class"
        )
    with _given_back(model, settings):
        trainer = Trainer(model, train, val, settings, num_classes, collate, device, stop, title)
        try:
            with _kept(trainer, out, resume, labels, about or {}):
                trainer.run()
        finally:
            trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        if trainer.ema is not None:  # the weights that were tested
            trainer.inner.load_state_dict(trainer.ema.module.state_dict())
        return trainer.progress


@contextmanager
def _given_back(model: nn.Module, settings: Settings) -> Iterator[None]:
    """The caller's model in the end: without accelerate's wrapper of its forward, and without recomputed blocks."""
    try:
        yield
    finally:
        if getattr(vars(model).get("forward"), "__func__", None) is type(model).forward:
            del model.forward
        if settings.checkpoint_activations:
            with suppress(ValueError):  # of a model that has no such setting, which was refused
                checkpoint_activations(model, enable=False)


def _check_data(*given: Any) -> None:
    for data in given:
        if data is not None and (isinstance(data, IterableDataset) or not hasattr(data, "__len__")):
            raise TypeError(
                f"expected data sets that have a length and give items by number, got {type(data).__name__}, which has "
                "an order of its own: pass a VideoDataset, or go over a DataLoader in a loop of your own"
            )


@contextmanager
def _kept(
    trainer: Trainer, out: Path | None, resume: bool, labels: Sequence[str] | None, about: Mapping[str, Any]
) -> Iterator[None]:
    """Write into a folder, going on from what is there."""
    main = trainer.accelerator.is_main_process
    about = {**trainer.settings.kept(), **about, "processes": trainer.accelerator.num_processes}
    trainer.progress.about = about = json.loads(json.dumps(about))
    if out is None:
        yield
        return
    trainer.states = out / "state"
    state = check_folder(out, resume)
    if state is not None:
        of_this_process = load_state(trainer.accelerator, state)
        trainer.scores.load_state_dict(of_this_process["scores"])
        before = trainer.progress.about
        other = {key: (before.get(key), value) for key, value in about.items() if before.get(key) != value}
        if other:
            listed = "; ".join(f"{key} {now!r} for {was!r}" for key, (was, now) in sorted(other.items()))
            raise ValueError(
                f"expected to go on as {str(out)!r} was begun, got {listed}: pass the same, or another out"
            )
    if main:
        from .results import Results  # matplotlib and TensorBoard, for trainings that write

        trainer.states.mkdir(parents=True, exist_ok=True)  # the first thing: it says whose folder this is
        trainer.results = Results(out, labels, trainer.progress)
    try:
        yield
    finally:
        if main:
            trainer.results.close()
