"""timm's optimisers, schedules, averaged weights and mixed clips, as settings ask for them."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.data import Mixup  # pyright: ignore[reportPrivateImportUsage]
from timm.optim import (
    create_optimizer_v2,  # pyright: ignore[reportPrivateImportUsage]
    list_optimizers,  # pyright: ignore[reportPrivateImportUsage]
    param_groups_weight_decay,  # pyright: ignore[reportPrivateImportUsage]
)
from timm.scheduler import create_scheduler_v2  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.optim import Optimizer

from .groups import optimizer_groups
from .settings import Settings

__all__ = ["make_loss", "make_mixing", "make_optimizer", "make_scheduler", "rate_of_step"]

# no "plateau", which needs a metric, and no "step": "multistep" says at which epochs
SCHEDULES = ("constant", "cosine", "multistep", "poly", "tanh")


def make_optimizer(model: nn.Module, settings: Settings) -> Optimizer:
    """timm's optimiser of that name.

    Raises:
        ValueError: an unknown name, or one that needs what is not there.
    """
    if settings.opt not in list_optimizers():
        raise ValueError(
            f"opt must be one of timm.optim.list_optimizers(), got {settings.opt!r}: pass 'sgd' or 'adamw'"
        )
    try:
        optimizer = _optimizer(model, settings)
    except (AssertionError, ImportError) as error:
        raise ValueError(
            f"expected an optimiser that runs here, got opt={settings.opt!r} ({error}): pass 'sgd' or 'adamw'"
        ) from error
    if getattr(optimizer, "is_second_order", False):
        raise ValueError(
            f"expected an optimiser of first derivatives, got opt={settings.opt!r}, which takes the second: pass 'sgd' "
            "or 'adamw'"
        )
    return optimizer


def _optimizer(model: nn.Module, settings: Settings) -> Optimizer:
    if settings.groups == "authors":
        return create_optimizer_v2(
            optimizer_groups(model, settings.lr, settings.weight_decay),
            opt=settings.opt,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
        )
    return create_optimizer_v2(
        param_groups_weight_decay(
            model, settings.weight_decay, no_weight_decay_list=list(_not_decayed(model))
        ),
        opt=settings.opt,
        lr=settings.lr,
        weight_decay=0.0,
        momentum=settings.momentum,
    )


def _not_decayed(model: nn.Module, prefix: str = "") -> Iterator[str]:
    """The names of what models of timm do not decay beside biases and norms, in whatever wrapper."""
    named: Any = getattr(model, "no_weight_decay", None)
    if callable(named):  # of timm's models the outermost speaks for its parts, as for timm itself
        names: Any = named()
        yield from (f"{prefix}{name}" for name in names)
        return
    for name, child in model.named_children():
        yield from _not_decayed(child, f"{prefix}{name}.")


def make_scheduler(optimizer: Optimizer, settings: Settings, steps_per_epoch: int) -> Any:
    """timm's schedule of that name, moved on after each step; None for a constant rate.

    Raises:
        ValueError: an unknown name, or `"multistep"` without milestones.
    """
    if settings.sched not in SCHEDULES:
        raise ValueError(
            f"sched must be one of {', '.join(map(repr, SCHEDULES))}, got {settings.sched!r}: pass another"
        )
    if settings.sched == "multistep" and not settings.milestones:
        raise ValueError(
            "sched='multistep' must have milestones, got none: pass the epochs at which it steps"
        )
    warmup = min(settings.warmup_epochs, settings.epochs - 1)
    if settings.sched == "constant" and not warmup:
        return None
    scheduler: Any
    scheduler, _ = create_scheduler_v2(
        optimizer,
        # a constant rate after its warm-up is a step that never comes
        sched="multistep" if settings.sched == "constant" else settings.sched,
        num_epochs=settings.epochs,
        # of "poly" the power, usually 0.9; timm's factory would leave half of the rate at the end
        decay_rate=0.9 if settings.sched == "poly" else 0.1,
        decay_milestones=list(settings.milestones) or [settings.epochs + 1],
        warmup_epochs=warmup,
        warmup_lr=settings.lr / 20,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    if (
        settings.sched == "multistep"
    ):  # timm's milestone m holds from m - 1 on, a whole epoch where it counts those
        scheduler.decay_t = [epoch * steps_per_epoch + 1 for epoch in sorted(settings.milestones)]
    return scheduler


def rate_of_step(optimizer: Optimizer, scheduler: Any, step: int) -> float:
    """The rate that a step went by, counted from 1, of what is trained at `lr` itself and no multiple of it."""
    if scheduler is not None:
        scheduler.step_update(step - 1)
    rate = min(group["lr"] for group in optimizer.param_groups)
    if scheduler is not None:
        scheduler.step_update(step)
    return rate


def make_mixing(
    settings: Settings, num_classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """timm's mixup and cutmix on clips `[N, T, 3, H, W]`: one mixture, and one box, for all frames of a clip."""
    if not (settings.mixup or settings.cutmix):
        return None
    mixup = Mixup(
        mixup_alpha=settings.mixup,
        cutmix_alpha=settings.cutmix,
        label_smoothing=settings.label_smoothing,
        num_classes=num_classes,
    )

    def mix(video: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        even = len(video) // 2 * 2  # it mixes pairs: the last clip of an odd batch stays as it is
        smoothing = settings.label_smoothing
        targets = one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes
        if not even:
            return video, targets
        frames, mixed = mixup(video[:even].flatten(1, -3), labels[:even])  # frames as channels
        clips = torch.cat([frames.view(even, *video.shape[1:]), video[even:]])
        return clips, torch.cat([mixed, targets[even:]])

    return mix


def make_loss(settings: Settings) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy, of labels or of mixed targets, which are smoothed already."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        smoothing = 0.0 if targets.is_floating_point() else settings.label_smoothing
        return cross_entropy(logits, targets, label_smoothing=smoothing)

    return loss
