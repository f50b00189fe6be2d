"""Evaluations during a run, the best model among them, and its test at the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from mtl.distributed.collectives import any_rank
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
    """Evaluates the val split, compares with the best model so far, and says when training ends before its plan.

    ``prune``: told the step and the monitored value of an evaluation, whether a search ends the run there.
    """

    def __init__(
        self,
        state: TrainState,
        parts: Parts,
        plan: Plan,
        cfg: Any,
        tracker: Tracker | NullTracker,
        prune: Callable[[int, float], bool],
    ) -> None:
        self._state, self._plan, self._tracker, self._device = state, plan, tracker, parts.device
        limit = cfg.trainer.limit_val_batches
        self._limit = "" if limit is None else f" (trainer.limit_val_batches={limit})"
        self._no_value_said, self._prune = False, prune
        self._batches = eval_batches(parts.data, "val", cfg, state.tasks, state.unreadable)

    def run(self, step: int) -> tuple[float, dict[str, float]] | None:
        """Evaluate and log; the monitored value and all metrics if the model is the best so far, else None.

        A learning rate schedule that follows the monitored value sees it here.
        """
        state = self._state
        metrics = state.monitor.complete(evaluate(state.evaluated, self._batches, self._device))
        if step == min(self._plan.val_every, self._plan.steps):  # the first one
            warn_of_unmeasured("val", [task.name for task in state.tasks], metrics)
        self._tracker.log("val", step, self._plan.epoch(step), metrics)
        log.info("%s", task_table(f"step {step}: val", metrics))
        if (cosines := state.conflicts.mean()) is not None:
            self._tracker.image("train/conflict/cos", step, heat_map(cosines))
        value = state.monitor.value(metrics)
        self._warn_once(step, metrics)
        step_plateau(state.scheduler, step // self._plan.val_every, value)
        if value is None:
            return None
        if step < self._plan.steps:
            state.pruned = any_rank(self._prune(step, value))
        better = state.monitor.improves(value, state.best)
        state.waited = 0 if better else state.waited + 1
        return (value, metrics) if better else None

    def ends(self) -> bool:
        """Whether there has been no better model for ``trainer.patience`` evaluations, or the run is pruned."""
        impatient = self._plan.patience is not None and self._state.waited >= self._plan.patience
        return impatient or self._state.pruned

    def _warn_once(self, step: int, metrics: Mapping[str, float]) -> None:
        """Say that the monitored metric has no value."""
        monitor = self._state.monitor
        if monitor.value(metrics) is None and not self._no_value_said:
            self._no_value_said = True
            log.warning(
                "trainer.monitor=%s is %s at the evaluation of step %d: such an evaluation counts for nothing, neither "
                "for the best model nor for trainer.patience nor for the learning rate%s",
                monitor.name, metrics.get(monitor.name, "absent"), step, self._limit,
            )  # fmt: skip


def evaluate_best(
    state: TrainState, parts: Parts, plan: Plan, cfg: Any, tracker: Tracker | NullTracker
) -> dict[str, float]:
    """Load the best model, record and return its metrics on the test split, and draw its examples.

    The last model is taken, with a warning, if the monitored metric never had a value: then there is no best one.
    """
    best = tracker.folder / checkpoint.FOLDER / "best.pt"
    step = state.step
    if state.best is not None and best.exists():
        step = state.best_step
        content = checkpoint.load(best)
        load_full_state_dict(state.evaluated.model, content["ema"] or content["model"])
        loss_modules(state.tasks).load_state_dict(content["losses"])
    elif state.best is None:
        log.warning(
            "no evaluation had a value of trainer.monitor=%s: there is no best model, and the last one, of step %d, is "
            "tested", state.monitor.name, step,
        )  # fmt: skip
    batches = eval_batches(parts.data, "test", cfg, state.tasks, state.unreadable)
    metrics = evaluate(state.evaluated, batches, parts.device)
    warn_of_unmeasured("test", [task.name for task in state.tasks], metrics)
    metrics = without_untrained(state, metrics)
    tracker.log("test", step, plan.epoch(step), metrics)
    write_examples(tracker.folder, state.evaluated, parts.data, parts.device, cfg.trainer.examples)
    return metrics
