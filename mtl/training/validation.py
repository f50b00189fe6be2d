"""Evaluations during a run, the best model among them, and its test at the end."""

from __future__ import annotations

import logging
import math
from typing import Any

from mtl.distributed.sharding import load_full_state_dict
from mtl.runs import checkpoint
from mtl.runs.figures import heat_map
from mtl.runs.terminal import task_table
from mtl.runs.tracker import NullTracker, Tracker
from mtl.tasks import loss_modules
from mtl.training.evaluation import evaluate
from mtl.training.examples import write_examples
from mtl.training.loaders import eval_batches
from mtl.training.schedule import Plan, step_plateau
from mtl.training.state import Parts, TrainState
from mtl.training.untrained import warn_of_unmeasured, without_untrained

log = logging.getLogger(__name__)


class Validation:
    """Evaluates the val split, compares with the best model so far, and says when patience is at its end."""

    def __init__(self, state: TrainState, parts: Parts, plan: Plan, cfg: Any, tracker: Tracker | NullTracker) -> None:
        self._state, self._plan, self._tracker, self._device = state, plan, tracker, parts.device
        self._monitor, self._mode = cfg.trainer.monitor.removeprefix("val/"), cfg.trainer.mode
        self._batches = eval_batches(parts.data, "val", cfg, state.tasks, state.unreadable)

    def run(self, step: int) -> tuple[float, dict[str, float]] | None:
        """Evaluate and log; the monitored value and all metrics if the model is the best so far, else None.

        A learning rate schedule that follows the monitored value sees it here.
        """
        state = self._state
        metrics = evaluate(state.evaluated, self._batches, self._device)
        if step == min(self._plan.val_every, self._plan.steps):  # the first one
            warn_of_unmeasured("val", [task.name for task in state.tasks], metrics)
        self._tracker.log("val", step, self._plan.epoch(step), metrics)
        log.info("%s", task_table(f"step {step}: val", metrics))
        if (cosines := state.conflicts.mean()) is not None:
            self._tracker.image("train/conflict/cos", step, heat_map(cosines))
        value = metrics.get(self._monitor, math.nan)
        step_plateau(state.scheduler, step // self._plan.val_every, value)
        return (value, metrics) if self._improves(value) else None

    def out_of_patience(self) -> bool:
        """Whether there has been no better model for ``trainer.patience`` evaluations."""
        patience = self._plan.patience
        return patience is not None and self._state.step - self._state.best_step >= patience

    def _improves(self, value: float) -> bool:
        best = self._state.best
        if math.isnan(value):
            return False
        return best is None or (value < best if self._mode == "min" else value > best)


def evaluate_best(
    state: TrainState, parts: Parts, plan: Plan, cfg: Any, tracker: Tracker | NullTracker
) -> dict[str, float]:
    """Load the best model, log and return its metrics on the test split, and draw its examples.

    The current model is taken if the monitored metric was never a number, for then there is no best one.
    """
    best = tracker.folder / checkpoint.FOLDER / "best.pt"
    if state.best is not None and best.exists():
        content = checkpoint.load(best)
        load_full_state_dict(state.evaluated.model, content["ema"] or content["model"])
        loss_modules(state.tasks).load_state_dict(content["losses"])
    batches = eval_batches(parts.data, "test", cfg, state.tasks, state.unreadable)
    metrics = evaluate(state.evaluated, batches, parts.device)
    warn_of_unmeasured("test", [task.name for task in state.tasks], metrics)
    metrics = without_untrained(state, metrics)
    tracker.log("test", state.best_step, plan.epoch(state.best_step), metrics)
    log.info("%s", task_table(f"best model (step {state.best_step}): test", metrics))
    write_examples(tracker.folder, state.evaluated, parts.data, parts.device, cfg.trainer.examples)
    return metrics
