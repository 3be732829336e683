"""The loop: epochs of steps, a test after each, and a state to go on from. What it is made of stands beside it."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from timm.layers import convert_sync_batchnorm  # pyright: ignore[reportPrivateImportUsage]
from timm.utils import ModelEmaV3  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..fusion.inductor import compile_graph
from ..progress import Bar
from .batch_norm import freeze_batch_norm
from .devices import accelerator_for, any_process, gathered_state, share_buffers
from .machine import placed
from .memory import checkpoint_activations
from .metrics import Scores
from .optimisation import make_loss, make_mixing, make_optimizer, make_scheduler, rate_of_step
from .order import EpochBatches, EvalBatches
from .parts import Part, completed, next_part
from .reading import loader, set_epoch
from .settings import Settings
from .state import Progress, Stopped, save_state
from .testing import test

__all__ = ["Trainer"]


class Trainer:
    """What `fit` runs; `states` and `results` are where it writes, if it does."""

    def __init__(
        self,
        model: nn.Module,
        train: Dataset[Any],
        val: Dataset[Any] | None,
        settings: Settings,
        num_classes: int,
        collate: Callable[[list[Any]], Any] | None,
        device: torch.device | None,
        stop: Callable[[], bool],
        title: str,
    ) -> None:
        self.settings, self.stop, self.title, self.collate = settings, stop, title, collate
        self.accelerator = accelerator = accelerator_for(settings, device)
        set_seed(settings.seed % 2**32, device_specific=True)
        self.train_data, self.val_data, self.num_classes = train, val, num_classes
        rank, world = accelerator.process_index, accelerator.num_processes
        lengths = [len(data) if data is not None else 0 for data in (train, val)]  # pyright: ignore[reportArgumentType]
        self.batches = EpochBatches(
            lengths[0], settings.batch_size, settings.seed, settings.accumulate, rank, world
        )
        self.val_batches = None if val is None else EvalBatches(lengths[1], settings.batch_size, rank, world)

        if settings.sync_bn:
            model = convert_sync_batchnorm(model)  # timm's: torch's drops the activation in its batch-norms
        if settings.checkpoint_activations:  # behind the conversion, which makes new modules
            checkpoint_activations(model)
        if settings.freeze_bn != "none":
            freeze_batch_norm(model, keep_first=settings.freeze_bn == "all_but_first")
        model.to(accelerator.device)
        if accelerator.device.type == "cuda":
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.whole = copy.deepcopy(model).cpu() if settings.fsdp else model
        self.ema = ModelEmaV3(model, settings.ema, use_warmup=True) if settings.ema else None
        self.inner, optimizer = model, make_optimizer(model, settings)
        if settings.compile:
            model.compile(backend=compile_graph)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.scheduler = make_scheduler(self.optimizer.optimizer, settings, self.batches.steps)
        self.mix, self.loss = make_mixing(settings, num_classes), make_loss(settings)
        self.scores = Scores(num_classes, accelerator.device)
        self.progress = Progress()
        accelerator.register_for_checkpointing(self.progress, *([self.ema] if self.ema else []))
        self.states: Path | None = None
        self.results: Any = None

    def run(self) -> None:
        settings, progress, steps = self.settings, self.progress, self.batches.steps
        quiet = not self.accelerator.is_main_process
        with Bar(settings.epochs * steps, self.title, "step", progress.step, quiet=quiet) as bar:
            while len(progress.rows) < settings.epochs:
                epoch = len(progress.rows) + 1
                self.train_epoch(epoch, bar)
                row = self.row(epoch)
                said = f"loss {row['train_loss']:.3f}"
                said += f", test accuracy {row['val_top1']:.1f} %" if "val_top1" in row else ""
                if lost := row["train_left_out"] + row.get("val_left_out", 0):
                    said += f", {lost} clips left out that cannot be read"
                bar.say(f"{self.title}, epoch {epoch} of {settings.epochs}: {said}")

    def train_epoch(self, epoch: int, bar: Bar) -> None:
        """The steps that are left of an epoch."""
        accelerator, progress, steps = self.accelerator, self.progress, self.batches.steps
        set_epoch(self.train_data, epoch)
        self.batches.start(epoch, progress.step - (epoch - 1) * steps)
        self.model.train()  # all of it: the outermost module may have been built around one that a checkpoint gave
        parts = iter(self.loader(self.train_data, self.batches, epoch))
        began, before = time.perf_counter(), progress.seconds
        while progress.step < epoch * steps:
            step = completed(accelerator, [next_part(parts) for _ in range(self.settings.accumulate)])
            losses = [loss for held in step if (loss := self.part(*held)) is not None]
            progress.step += 1
            if self.scheduler is not None:
                self.scheduler.step_update(progress.step)
            if self.ema is not None:
                self.ema.update(self.inner, progress.step)
            progress.seconds = before + time.perf_counter() - began
            shown = losses and accelerator.device.type != "cuda"  # where it would be waited for
            bar.update(f"loss {losses[-1]:.3f}" if shown else f"epoch {epoch}")
            asked = any_process(accelerator, self.stop())
            every = self.settings.save_every
            if asked or (every and progress.step % every == 0 and progress.step < epoch * steps):
                self.save()
            if asked:
                raise Stopped

    def part(self, held: Part | None, share: float) -> Tensor | None:
        """Forward and backward of a part of a step; behind the last part, the step."""
        accelerator = self.accelerator
        with accelerator.accumulate(self.model):
            loss = None if held is None else self.learn(*held, share)
            if accelerator.sync_gradients and self.settings.clip_grad:
                accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss

    def learn(self, inputs: Tensor, labels: Tensor, share: float) -> Tensor | None:
        inputs, labels = placed(inputs, self.accelerator.device), placed(labels, self.accelerator.device)
        mixed, targets = (inputs, labels) if self.mix is None or not share else self.mix(inputs, labels)
        if self.model.training != (share > 0):  # a blank clip moves no statistics
            self.model.train(share > 0)
        logits = self.model(mixed)
        loss = self.loss(logits, targets)
        self.accelerator.backward(loss * share)
        if not share:
            return None
        self.scores.update(logits, labels, loss)
        return loss.detach()

    def row(self, epoch: int) -> dict[str, Any]:
        """Test after an epoch, keep what is best, and save the state behind it."""
        progress = self.progress
        row: dict[str, Any] = {"epoch": epoch, "step": progress.step}
        row["lr"] = rate_of_step(self.optimizer, self.scheduler, progress.step)
        trained = self.scores.compute()
        row |= {"train_loss": trained["loss"], "train_top1": trained["top1"]}
        row["seconds"] = round(progress.seconds, 3)
        row["train_left_out"] = self.batches.steps * self.batches.batch_size - self.scores.seen()
        if not row["train_loss"] < float("inf"):
            raise ValueError(
                f"expected a loss, got {row['train_loss']} in epoch {epoch}: lower lr, or use precision='no'"
            )
        model, confusion = self.model if self.ema is None else self.ema.module, None
        share_buffers(self.accelerator, model)
        if self.val_data is not None and self.val_batches is not None:
            batches, real = self.loader(self.val_data, self.val_batches, 0), self.val_batches.real
            scores = test(model, batches, real, self.accelerator, self.num_classes, self.stop)
            if scores is None:  # the test is begun again, behind the epoch's last step
                self.save()
                raise Stopped
            row |= {f"val_{key}": value for key, value in scores.compute().items()}
            confusion = scores.confusion()
            row["val_left_out"] = len(self.val_data) - scores.seen()  # pyright: ignore[reportArgumentType]
        best = progress.best is None or row.get("val_top1", epoch) > progress.best.get("val_top1", 0)
        progress.rows.append(row)
        if best:
            progress.best, progress.confusion = row, confusion
        self.scores.reset()
        progress.seconds = 0.0
        if self.states is not None:
            weights = self.weights()
            if self.results is not None:
                self.results.save_weights(weights, best)
            self.save()
            if self.results is not None:
                self.results.epoch()
        return row

    def weights(self) -> nn.Module:
        """The model to keep: the averaged one, or a sharded one gathered; every process must call it."""
        state = gathered_state(self.accelerator, self.inner)
        if state:
            self.whole.load_state_dict(state)
        return self.whole if self.ema is None else self.ema.module

    def save(self) -> None:
        if self.states is not None:
            save_state(self.accelerator, self.states, {"scores": self.scores.state_dict()})

    def loader(self, data: Dataset[Any], batches: Any, epoch: int) -> Any:
        cuda, seed = self.accelerator.device.type == "cuda", (self.settings.seed, epoch)
        return loader(data, batches, self.settings.workers, self.collate, seed=seed, pin_memory=cuda)
