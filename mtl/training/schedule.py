"""How many steps a run has, what is due when, and the learning rate's schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm.scheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau


@dataclass(frozen=True)
class Plan:
    """The numbers that follow from the data and the trainer's settings. All but the last two are counts of steps."""

    per_epoch: int
    steps: int
    val_every: int
    checkpoint_every: int
    batch_size: int  # samples of a batch, over all processes
    batches: int  # of an optimizer step

    def epoch(self, step: int) -> float:
        """How many passes over the training data ``step`` steps are."""
        return step / self.per_epoch


def plan(data: Any, trainer: Any) -> Plan:
    """Work out how many steps there are, and between what. ValueError where an epoch has too few batches for a step."""
    samples, accumulated = len(data.train), trainer.accumulate_grad_batches
    batches = max(1, samples // data.batch_size)  # the last, smaller batch of an epoch is dropped
    for limit in (trainer.limit_train_batches, trainer.overfit_batches):
        batches = min(batches, limit or batches)
    per_epoch = batches // accumulated  # and so are the last batches, where they are too few for a step
    if not per_epoch:
        raise ValueError(
            f"trainer.accumulate_grad_batches={accumulated} must be at most {batches}, the batches of an epoch "
            f"({samples} samples in batches of {data.batch_size})."
        )
    limits = [trainer.max_steps, trainer.max_epochs and trainer.max_epochs * per_epoch]
    steps = 1 if trainer.fast_dev_run else min(limit for limit in limits if limit is not None)
    val_every = trainer.val_every or per_epoch
    batch_size, batches = data.batch_size, accumulated
    if trainer.accumulate == "exact":
        batch_size, batches = data.batch_size * accumulated, 1
    return Plan(per_epoch, steps, val_every, trainer.checkpoint_every or val_every, batch_size, batches)


def is_due(step: int, every: int, last: int) -> bool:
    """Whether it is time for what happens every so many steps, and at the first and the last one."""
    return step % every == 0 or step in (1, last)


def step_scheduler(scheduler: Any, step: int) -> None:
    """After an optimizer step: a schedule of steps moves on."""
    if isinstance(scheduler, timm.scheduler.scheduler.Scheduler):
        scheduler.step_update(step)
    elif not isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step()


def step_plateau(scheduler: Any, evaluation: int, value: float) -> None:
    """After an evaluation: a schedule that follows a metric sees its ``value``."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(value)
    elif isinstance(scheduler, timm.scheduler.PlateauLRScheduler):
        scheduler.step(evaluation, value)
