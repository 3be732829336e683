"""How a model is trained, as plain values. Imports no torch: `--help` lists them."""

import math
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["FREEZE_BN", "GROUPS", "PRECISIONS", "Settings"]

FREEZE_BN = ("none", "all_but_first", "all")
GROUPS = ("plain", "authors")
PRECISIONS = ("no", "bf16", "fp16")
# what may change from one start to the next: no weight knows it
FREE = ("workers", "save_every")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is trained.

    Attributes:
        epochs: passes over all clips.
        batch_size: clips for each step of the optimiser, of all processes and accumulated parts together.
        accumulate: parts that a process makes of its share of a batch, one after the other.
        opt: the name of an optimiser of timm's.
        lr, weight_decay, momentum: the optimiser's.
        groups: `"authors"` for `optimizer_groups`; `"plain"` decays weights alone, as timm does.
        freeze_bn: which batch-norms keep their statistics and weights: `"none"`, `"all_but_first"`, `"all"`.
        clip_grad: largest norm of the gradients; 0 for any.
        sched: `"cosine"`, `"multistep"`, `"poly"` (of the power 0.9) or `"tanh"`, timm's, or `"constant"`.
        milestones: epochs at which `"multistep"` divides the rate by ten.
        warmup_epochs: in which the rate rises; the last epoch is none of them, however many are asked for.
        label_smoothing: from 0 to 1.
        mixup, cutmix: timm's alphas; 0 for none. Mixed clips keep all their frames.
        ema: decay of the averaged weights, which are then those that are tested and kept; 0 for none.
        precision: `"no"` for float32, `"bf16"` or `"fp16"` for mixed precision.
        compile: train through `torch.compile(backend="tsm_triton")`.
        checkpoint_activations: compute blocks again in the backward, for less memory.
        fsdp: shard weights over the processes (FSDP2).
        sync_bn: statistics of batch-norm over all processes; GPUs only.
        seed: of the order of clips, of what is drawn of each, and of dropout.
        workers: processes that decode.
        save_every: steps between two states to go on from, beside those at the ends of epochs; 0 for these alone.

    Raises:
        ValueError: a value out of bounds; `fit` raises it for what also depends on data, processes and timm.

    Example:
        >>> Settings(epochs=2, opt="sgd", lr=0.01).batch_size
        32
    """

    epochs: int = 30
    batch_size: int = 32
    accumulate: int = 1
    opt: str = "adamw"
    lr: float = 5e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    groups: str = "plain"
    freeze_bn: str = "none"
    clip_grad: float = 0.0
    sched: str = "cosine"
    milestones: tuple[int, ...] = ()
    warmup_epochs: int = 1
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    precision: str = "no"
    compile: bool = False
    checkpoint_activations: bool = False
    fsdp: bool = False
    sync_bn: bool = False
    seed: int = 0
    workers: int = 0
    save_every: int = 0

    def __post_init__(self) -> None:
        for known in fields(self):
            value, kind = getattr(self, known.name), type(known.default)
            fits = type(value) is kind or (kind is float and type(value) is int)
            self._check(known.name, fits, f"of type {kind.__name__}")
        for name in ("epochs", "batch_size", "accumulate"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in (
            "warmup_epochs",
            "workers",
            "save_every",
            "clip_grad",
            "weight_decay",
            "mixup",
            "cutmix",
        ):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("momentum", "label_smoothing", "ema"):
            self._check(name, 0 <= getattr(self, name) < 1, "from 0 to less than 1")
        self._check("lr", 0 < self.lr < math.inf, "a positive number")
        self._check("weight_decay", self.weight_decay < math.inf, "a finite number")
        for name, known in (("groups", GROUPS), ("freeze_bn", FREEZE_BN), ("precision", PRECISIONS)):
            self._check(name, getattr(self, name) in known, f"one of {', '.join(map(repr, known))}")
        self._check("milestones", all(epoch >= 1 for epoch in self.milestones), "epochs of at least 1")
        if self.milestones and self.sched != "multistep":
            raise ValueError(
                f"expected sched='multistep' with milestones, got sched={self.sched!r} and milestones="
                f"{self.milestones!r}: drop one of them"
            )
        if self.fsdp and self.ema:
            raise ValueError(
                f"expected averaged weights or sharded ones, got ema={self.ema} with fsdp: drop one of them"
            )
        if (self.mixup or self.cutmix) and self.batch_size // self.accumulate % 2:
            raise ValueError(
                "expected batches of an even number of clips, which are mixed in pairs, got "
                f"batch_size={self.batch_size} in {self.accumulate} parts: choose another"
            )

    def _check(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {what}, got {name}={getattr(self, name)!r}: pass another")

    def kept(self) -> dict[str, Any]:
        """What a training that goes on must have been begun with, as JSON has it."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in FREE}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
