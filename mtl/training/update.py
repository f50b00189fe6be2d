"""One optimizer step, from its batches to the learning rate's schedule."""

from __future__ import annotations

import logging
from typing import Any

from mtl.engine.accumulation import accumulate
from mtl.engine.lookahead import look_ahead
from mtl.engine.setup import RecompileWarning, unfreeze
from mtl.engine.weighting import observe_after_update
from mtl.system.timer import StepTimer
from mtl.training.loaders import DeviceBatches
from mtl.training.nonfinite import GradientNorm, NotFinite, StepSnapshot, diagnose
from mtl.training.schedule import Plan, step_scheduler
from mtl.training.state import Parts, TrainState
from mtl.training.step_metrics import Outcome, StepValues, rate_of_shared
from mtl.training.task_weights import WeightWarnings

log = logging.getLogger(__name__)


class Update:
    """Takes optimizer steps: the strategy's gradients, a check that they are finite, clipping, optimizer, schedule.

    Nothing learns from a loss or a gradient that is not finite. With ``trainer.on_nan=skip`` the step is skipped, as
    if it had not been; else it is a NotFinite that names the task or the parameter. A step that overflows
    float16 is always skipped: this is how torch's GradScaler finds its scale. After ``trainer.unfreeze_at`` steps,
    what was frozen is trained too.
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
        self._recompile_warning = RecompileWarning(state.model)
        names = [task.name for task in state.tasks]
        self._weight_warnings = WeightWarnings(state.weights, state.strategy.weighting, names, plan.steps)

    def __call__(
        self, batches: DeviceBatches, measure: bool = False, audit: bool = False, ahead: bool = False
    ) -> Outcome:
        """Take the step after ``state.step``; ``measure`` the tasks' conflict in it, ``audit`` feature space.

        ``ahead``: take a step on each task alone before, from its first batch; no part of its time.
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
        with self._timer.paused():
            lookahead = look_ahead(state.engine, *batch, rate_of_shared(self._rates())) if ahead else None
        with self._timer.step():
            result, batch = accumulate(
                state, batch, lambda: next(batches), self._plan.batches, measure=measure, audit=audit
            )
            precision.unscale(state.optimizer)
            grad_norm = self._norm.total()
            values = StepValues.read(result, grad_norm)
            finite = values.is_finite
            if finite:
                if self._trainer.grad_clip_norm is not None:
                    self._norm.clip(self._trainer.grad_clip_norm, grad_norm)
                state.optimizer.step()
        outcome = Outcome(result, finite, values, self._rates(), lookahead)
        overflow = not finite and precision.is_overflow(result)
        state.labelled.update(result.losses)
        if finite:
            state.weights.update(values.losses, values.weights)
            self._weight_warnings.check(step, values.losses)
            self._after_update(*batch)
        elif overflow:
            self._restore()
            state.skips.overflow += 1
        else:
            self._skip_or_raise(f"step {step}: {diagnose(state.engine, *batch, result, batches.indices)}")
        if not overflow:  # the schedule does not count a step that float16 could not hold
            step_scheduler(state.scheduler, step - state.skips.overflow)
        self._recompile_warning.check(step)
        return outcome

    def _rates(self) -> dict[str, float]:
        return {group["name"]: float(group["lr"]) for group in self._state.optimizer.param_groups}

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

    def _skip_or_raise(self, cause: str) -> None:
        skips, trainer = self._state.skips, self._trainer
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
