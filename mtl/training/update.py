"""One optimizer step, from its batches to the learning rate's schedule."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtl.engine.accumulation import Batch, accumulate
from mtl.engine.look import rate_of_shared
from mtl.engine.lookahead import Lookahead, look_ahead
from mtl.engine.result import StepResult
from mtl.engine.setup import RecompileWarning, unfreeze
from mtl.engine.weighting import observe_after_update
from mtl.system.timer import StepTimer
from mtl.training.loaders import DeviceBatches
from mtl.training.nonfinite import GradientNorm, NotFinite, StepSnapshot, diagnose
from mtl.training.schedule import Plan, step_scheduler
from mtl.training.state import Parts, TrainState
from mtl.training.step_metrics import Outcome, StepNumbers, StepValues
from mtl.training.task_weights import WeightWarnings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taken:
    """A step whose numbers are on their way to the host, and what it takes to name what is wrong with them."""

    step: int
    result: StepResult
    numbers: StepNumbers
    rates: dict[str, float]
    batch: Batch
    indices: list[int]
    not_finite: Callable[[], set[nn.Parameter]]
    lookahead: Lookahead | None


class Update:
    """Takes optimizer steps: the strategy's gradients, a check that they are finite, clipping, optimizer, schedule.

    Nothing learns from a loss or a gradient that is not finite. With ``trainer.on_nan=skip`` the step is skipped, as
    if it had not been; else it is a NotFinite that names the task or the parameter. A step that overflows
    float16 is always skipped: this is how torch's GradScaler finds its scale. After ``trainer.unfreeze_at`` steps,
    what was frozen is trained too.

    No step waits for the device where its optimizer takes the check's answer there (torch's fused ones do) and a step
    that is not finite ends the run: the device leaves such a step out by itself, and the host reads its numbers during
    the next step, before that one's update, or in ``settle``.
    """

    def __init__(self, state: TrainState, parts: Parts, plan: Plan, trainer: Any, timer: StepTimer) -> None:
        self._state, self._parts, self._plan, self._trainer, self._timer = state, parts, plan, trainer, timer
        self._device = parts.device
        self._norm = GradientNorm([p for group in state.optimizer.param_groups for p in group["params"]])
        skips = trainer.on_nan == "skip" or state.engine.precision.scaler is not None
        self._scheduled: list[Any] = [
            module for module in state.model.modules() if callable(getattr(module, "at", None))
        ]
        self._snapshot = StepSnapshot(state.model, state.tasks, state.strategy) if skips else None
        # The norm waits for sharded parameters, and on MPS.
        waits = bool(self._norm.sharded) or parts.device.type == "mps"
        self._runs_ahead = not (skips or waits) and _takes_found_inf(state.optimizer)
        self._unread: Taken | None = None
        self._recompile_warning = RecompileWarning(state.model)
        names = [task.name for task in state.tasks]
        self._weight_warnings = WeightWarnings(state.weights, state.strategy.weighting, names, plan.steps)

    def __call__(
        self,
        batches: DeviceBatches,
        measure: bool = False,
        audit: bool = False,
        ahead: bool = False,
        read: bool = True,
    ) -> Outcome | None:
        """Take the step after ``state.step``; ``measure`` the tasks' conflict in it, ``audit`` feature space.

        ``ahead``: take a step on each task alone before, from its first batch; no part of its time. Without ``read``
        the step's numbers may be on their way still: then the outcome is None.
        """
        state, step, precision = self._state, self._state.step + 1, self._state.engine.precision
        batch = next(batches)
        state.optimizer.zero_grad()
        if self._trainer.unfreeze_at is not None and step > self._trainer.unfreeze_at:
            self._unfreeze(step)
        if self._snapshot is not None:
            self._snapshot.save()
        precision.update_scale(self._device)
        for module in self._scheduled:
            module.at(step, self._plan.steps)
        rates = {group["name"]: float(group["lr"]) for group in state.optimizer.param_groups}
        if ahead:
            self.settle()  # what it waits for is the step before's time, and no step is looked at that was not checked
        with self._timer.paused():
            lookahead = look_ahead(state.engine, *batch, rate_of_shared(rates)) if ahead else None
        with self._timer.step("audited" if audit else "measured" if measure else "plain"):
            result, batch = self._accumulate(batches, batch, measure=measure, audit=audit)
            precision.unscale(state.optimizer)
            grad_norm = self._norm.total()
            numbers = StepNumbers(result, grad_norm)
            taken = Taken(step, result, numbers, rates, batch, batches.indices, self._norm.not_finite(), lookahead)
            self.settle()  # of the step before: the device has this one to do in the meantime
            values = None if self._runs_ahead else numbers.read()
            finite = values is None or values.is_finite
            if finite:
                self._step_optimizer(grad_norm, numbers.finite)
        overflow = not finite and precision.is_overflow(result)
        state.labelled.update(result.losses)
        if finite:
            self._after_update(*batch)
        elif overflow:
            self._restore()
            state.skips.overflow += 1
        else:
            self._skip_or_raise(taken)
        if not overflow:  # the schedule does not count a step that float16 could not hold
            step_scheduler(state.scheduler, step - state.skips.overflow)
        self._recompile_warning.check(step)
        if values is None:
            self._unread = taken
            return self.settle() if read else None
        return self._applied(taken, values) if finite else Outcome(result, False, values, rates, lookahead)

    def settle(self) -> Outcome | None:
        """Read the numbers of a step that are on their way; NotFinite where they are not finite. None without such."""
        taken, self._unread = self._unread, None
        if taken is None:
            return None
        values = taken.numbers.read()
        if not values.is_finite:
            self._skip_or_raise(taken)
        return self._applied(taken, values)

    def _accumulate(self, batches: DeviceBatches, batch: Batch, **asked: bool) -> tuple[StepResult, Batch]:
        try:
            return accumulate(self._state, batch, lambda: next(batches), self._plan.batches, **asked)
        except Exception:
            self.settle()  # a step before that was not finite may be why, and is what to say
            raise

    def _step_optimizer(self, grad_norm: Tensor, finite: Tensor) -> None:
        optimizer: Any = self._state.optimizer
        if self._trainer.grad_clip_norm is not None:
            self._norm.clip(self._trainer.grad_clip_norm, grad_norm)
        if not self._runs_ahead:
            optimizer.step()
            return
        optimizer.found_inf = finite.logical_not().float()  # as torch's GradScaler tells it: then nothing changes
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf

    def _applied(self, taken: Taken, values: StepValues) -> Outcome:
        self._state.weights.update(values.losses, values.weights)
        self._weight_warnings.check(taken.step, values.losses)
        return Outcome(taken.result, True, values, taken.rates, taken.lookahead)

    def _unfreeze(self, step: int) -> None:
        model = self._state.model
        if held := model.frozen_parameters():
            count = f"{sum(p.numel() for p in held):,}"
            log.info("step %d: %s parameters more are trained: trainer.unfreeze_at=%d", step, count,
                     self._trainer.unfreeze_at)  # fmt: skip
            unfreeze(self._parts, self._trainer)
            self._recompile_warning = RecompileWarning(model)

    def _after_update(self, inputs: Any, targets: Any) -> None:
        state = self._state
        state.skips.in_a_row = 0
        if state.strategy.weighting.needs_losses_after_update:
            observe_after_update(state.engine, state.strategy.weighting, inputs, targets)
        if state.ema is not None:
            state.ema.update(state.model)

    def _skip_or_raise(self, taken: Taken) -> None:
        state, trainer = self._state, self._trainer
        found = diagnose(state.engine, *taken.batch, taken.result, taken.indices, taken.not_finite())
        cause, skips = f"step {taken.step}: {found}", state.skips
        if trainer.on_nan == "raise":
            raise NotFinite(f"{cause}. Nothing was updated; trainer.on_nan=skip leaves such steps out.")
        self._restore()
        skips.total += 1
        skips.in_a_row += 1
        if skips.in_a_row > trainer.max_skips:
            raise NotFinite(f"{cause}; trainer.max_skips={trainer.max_skips} steps in a row were skipped before.")
        log.warning("SKIPPED: %s (%d skipped so far)", cause, skips.total)

    def _restore(self) -> None:
        assert self._snapshot is not None
        self._snapshot.restore()


def _takes_found_inf(optimizer: Any) -> bool:
    """Whether an optimizer leaves a step out by a number on the device, as torch's do in one kernel."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)
