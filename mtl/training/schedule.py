"""How many steps a run has, which of them log, evaluate and save, and the learning rate's schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm.scheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

PLATEAU = (ReduceLROnPlateau, timm.scheduler.PlateauLRScheduler)  # the schedulers that follow a metric


@dataclass(frozen=True)
class Plan:
    """The numbers that follow from the data and the settings. They count optimizer steps, unless they say otherwise."""

    per_epoch: int
    steps: int
    log_every: int
    measure_every: int | None  # conflict between the tasks' gradients; None: never
    audit_every: int | None  # feature space against parameter space; None: never
    affinity_every: int  # what a step on one task does to the others; 0: never
    val_every: int
    checkpoint_every: int
    patience: int | None  # evaluations without a better model after which the run ends; None: never
    batch_size: int  # samples of a batch, over all ranks
    batches: int  # of an optimizer step
    draws: int = 1  # independent batches that the strategy takes a step, of which the last one trains
    left_out: int = 0  # samples of an epoch that are too few for another step
    is_dry_run: bool = False  # one step, to see whether everything runs

    @classmethod
    def from_data(cls, data: Any, trainer: Any, conflict: Any, draws: int = 1) -> Plan:
        """Plan a run over ``data`` from ``cfg.trainer`` and ``cfg.conflict``, with the strategy's ``draws``.

        ValueError where an epoch has too few batches for one optimizer step.
        """
        accumulated = trainer.accumulate_grad_batches
        if draws > 1 and accumulated > 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches={accumulated} must be 1: the strategy takes {draws} batches a step "
                "for purposes of its own."
            )
        per_epoch = _steps_per_epoch(data, trainer, accumulated * draws)
        limits = [trainer.max_steps, trainer.max_epochs and trainer.max_epochs * per_epoch]
        size = min(data.batch_size, len(data.train))
        limited = trainer.limit_train_batches or trainer.overfit_batches
        val_every = trainer.val_every or per_epoch
        exact = trainer.accumulate == "exact"  # one batch that is as large as all that are accumulated
        return cls(
            per_epoch=per_epoch,
            steps=1 if trainer.fast_dev_run else min(limit for limit in limits if limit is not None),
            log_every=trainer.log_every,
            measure_every=conflict.every,
            audit_every=conflict.audit_every,
            affinity_every=conflict.affinity_every,
            val_every=val_every,
            checkpoint_every=trainer.checkpoint_every or val_every,
            patience=trainer.patience,
            batch_size=size * accumulated if exact else size,
            batches=1 if exact and draws == 1 else accumulated * draws,
            draws=draws,
            left_out=0 if limited else len(data.train) - per_epoch * accumulated * draws * size,
            is_dry_run=trainer.fast_dev_run,
        )

    @property
    def samples_per_step(self) -> int:
        """The samples of an optimizer step, over all ranks."""
        return self.batch_size * self.batches

    def epoch(self, step: int) -> float:
        """How many passes over the training data ``step`` steps are."""
        return step / self.per_epoch

    def measures(self, step: int) -> bool:
        """Whether a step forms the Gram matrix of the tasks' gradients for what it logs."""
        return self.compares(step) or self.relates(step)

    def compares(self, step: int) -> bool:
        """Whether a step logs the conflict between the tasks' gradients."""
        return self.measure_every is not None and self._is_due(step, self.measure_every)

    def relates(self, step: int) -> bool:
        """Whether a step estimates the tasks' affinities."""
        return self.affinity_every > 0 and (self._is_due(step, self.affinity_every) or self.audits(step))

    def looks_ahead(self, step: int) -> bool:
        """Whether a step also takes a step on each task alone."""
        return self.affinity_every > 0 and self.audits(step)

    def audits(self, step: int) -> bool:
        """Whether a step compares feature space with parameter space."""
        return self.audit_every is not None and step % self.audit_every == 0

    def logs(self, step: int) -> bool:
        """Whether a step's metrics are logged."""
        return self.measures(step) or self.audits(step) or self._is_due(step, self.log_every)

    def reads(self, step: int) -> bool:
        """Whether a step's numbers are read at once: nothing unchecked is logged, evaluated or saved."""
        return self.logs(step) or self.validates(step) or self.saves(step)

    def prints(self, step: int) -> bool:
        """Whether a step's metrics are printed as a line, where there is no progress bar."""
        return self._is_due(step, 10 * self.log_every)

    def validates(self, step: int) -> bool:
        """Whether the model is evaluated after a step."""
        return step % self.val_every == 0 or step == self.steps

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after a step."""
        return step % self.checkpoint_every == 0

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step in (1, self.steps)


def _steps_per_epoch(data: Any, trainer: Any, each: int) -> int:
    samples = len(data.train)
    batches = max(1, samples // data.batch_size)  # the last, smaller batch of an epoch is dropped
    for limit in (trainer.limit_train_batches, trainer.overfit_batches):
        batches = min(batches, limit or batches)
    if batches < each:
        accumulated = trainer.accumulate_grad_batches
        taken = f"trainer.accumulate_grad_batches={accumulated}" if accumulated > 1 else f"The strategy's {each} a step"
        raise ValueError(
            f"{taken} must be at most {batches}, the batches of an epoch ({samples} samples in batches of "
            f"{data.batch_size})."
        )
    return batches // each  # the last batches are dropped as well, where they are too few for a step


def step_scheduler(scheduler: Any, step: int) -> None:
    """Move a schedule that counts steps on, after optimizer step ``step``."""
    if isinstance(scheduler, timm.scheduler.scheduler.Scheduler):
        scheduler.step_update(step)
    elif not isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step()


def step_plateau(scheduler: Any, evaluation: int, value: float | None) -> None:
    """Show a schedule that follows a metric its ``value``, after evaluation number ``evaluation``.

    An evaluation without a value (None) counts for nothing but timm's warm-up, which counts evaluations.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        if value is not None:
            scheduler.step(value)
    elif isinstance(scheduler, timm.scheduler.PlateauLRScheduler):
        scheduler.step(evaluation, value)
