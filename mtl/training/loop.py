"""The training loop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from mtl.distributed.collectives import any_rank, get_world_size
from mtl.runs.saver import Saver
from mtl.runs.tracker import NullTracker, Tracker
from mtl.system.allocator import RetainedHeap
from mtl.system.signals import Preempted
from mtl.system.timer import StepTimer
from mtl.training.architecture_metrics import architecture_metrics
from mtl.training.loaders import DeviceBatches, train_batches
from mtl.training.progress import ProgressBar
from mtl.training.schedule import Plan
from mtl.training.state import Parts, TrainState
from mtl.training.step_metrics import affinity_metrics, step_metrics
from mtl.training.untrained import warn_of_untrained
from mtl.training.update import Update
from mtl.training.validation import Validation, evaluate_best

log = logging.getLogger(__name__)


def fit(
    state: TrainState,
    parts: Parts,
    cfg: Any,
    tracker: Tracker | NullTracker,
    stop: Callable[[], bool] = lambda: False,
    prune: Callable[[int, float], bool] = lambda step, value: False,
) -> dict[str, float]:
    """Train to the end of the plan and return the best model's metrics on the test split.

    ``cfg`` is the whole configuration. After each step ``stop`` is asked whether the run must end now: then its state
    is saved and Preempted raised. After each evaluation ``prune`` is asked, with its step and its monitored value,
    whether a search has seen enough of this run: then training ends there.
    """
    trainer, device = cfg.trainer, parts.device
    plan = Plan.from_data(parts.data, trainer, cfg.conflict, state.strategy.draws)
    log_plan(state, parts.data, plan)
    warn_of_plan(state, parts.data, plan, trainer.unfreeze_at)
    timer = StepTimer(plan.samples_per_step, device, state.peak_memory, state.seconds, state.peaks)
    read = train_batches(parts.data, cfg, state, plan)
    train = DeviceBatches(read, timer, device, state.tasks, trainer.channels_last)
    update = Update(state, parts, plan, trainer, timer)
    validation = Validation(state, parts, plan, cfg, tracker, prune)
    saver = Saver(state, tracker, trainer.keep, parts.description)
    heap = RetainedHeap(trainer.keep_memory and device.type == "cpu")
    state.model.train()
    with ProgressBar(plan, state.step) as bar, logging_redirect_tqdm(), heap, train as batches:
        while state.step < plan.steps and not validation.ends():
            # --- one training step
            step = state.step + 1
            outcome = update(
                batches, plan.measures(step), plan.audits(step), ahead=plan.looks_ahead(step), read=plan.reads(step)
            )
            state.step, state.seconds, state.peak_memory, state.peaks = step, timer.elapsed(), timer.peak, timer.peaks
            heap.check()
            bar.update()
            warn_of_untrained(state, plan)

            # --- once in a while: a line of metrics.jsonl
            if plan.logs(step) and outcome is not None and outcome.applied:
                conflicts = state.conflicts if plan.compares(step) else None
                metrics = step_metrics(outcome, conflicts, timer, cfg.conflict.tolerance)
                metrics |= affinity_metrics(outcome) if plan.relates(step) and state.engine.trains_shared else {}
                metrics |= architecture_metrics(state.model, outcome.result)
                tracker.log("train", step, plan.epoch(step), metrics)
                bar.show(step, metrics)

            with timer.paused():
                # --- once in a while: evaluation
                best = validation.run(step) if plan.validates(step) else None

                # --- once in a while: a checkpoint to resume from
                last = step == plan.steps or validation.ends()
                # Not after the first step: memory is measured in the second, and belongs to the record.
                asked = any_rank(stop()) and not last and step > 1
                if best is not None or last or asked or plan.saves(step):
                    update.settle()  # nothing is saved that has not been checked
                    saver.save(best, must=last or asked)
                if asked:
                    log.warning("stopped at step %d as asked; resume=%s goes on from there", step, tracker.folder)
                    raise Preempted
                if last and step < plan.steps:
                    how = "pruned" if state.pruned else "stopped"
                    log.info("%s at step %d: %s is best at step %d", how, step, state.monitor.name, state.best_step)
    return evaluate_best(state, parts, plan, cfg, tracker)


def log_plan(state: TrainState, data: Any, plan: Plan) -> None:
    """Log the tasks, the parameters, and how the number of steps comes about."""
    shared = sum(p.numel() for p in state.model.shared_parameters())
    heads = sum(p.numel() for p in state.model.head_parameters())
    names = ", ".join(task.name for task in state.tasks)
    log.info("tasks %s; parameters: %s shared, %s in heads", names, f"{shared:,}", f"{heads:,}")
    size = min(data.batch_size, len(data.train))
    accumulated = plan.samples_per_step // size
    batch = f"{size} × {accumulated} accumulated = {plan.samples_per_step}" if accumulated > 1 else str(size)
    if plan.draws > 1:
        batch = f"{size} × {plan.draws} draws, of which one trains, = {plan.samples_per_step}"
    whole = max(1, len(data.train) // plan.samples_per_step)
    limited = f" (limited to {plan.per_epoch})" if plan.per_epoch < whole else ""
    ranks = get_world_size()
    each = f", over {ranks} processes of about {plan.batch_size / ranks:g} each" if ranks > 1 else ""
    log.info(
        "%d samples / batches of %s = %d steps an epoch%s%s; %d steps = %.1f epochs; evaluation every %d steps",
        len(data.train), batch, whole, limited, each, plan.steps, plan.epoch(plan.steps), plan.val_every,
    )  # fmt: skip


def warn_of_plan(state: TrainState, data: Any, plan: Plan, unfreeze_at: int | None = None) -> None:
    """Say before the first step what a run will not do as its settings seem to say."""
    samples = len(data.train)
    if unfreeze_at is not None and unfreeze_at >= plan.steps and not plan.is_dry_run:
        log.warning(
            "trainer.unfreeze_at=%d: the run ends at step %d, and what freeze names is never trained",
            unfreeze_at, plan.steps,
        )  # fmt: skip
    if plan.left_out > 0.1 * samples:
        log.warning(
            "%d of the %d training samples are left out of every epoch, others each time: they are too few for another "
            "step of %d", plan.left_out, samples, plan.samples_per_step,
        )  # fmt: skip
    warmup, meanwhile = state.strategy.weighting.warmup
    if warmup >= plan.steps and not plan.is_dry_run:
        name = type(state.strategy.weighting).__name__
        log.warning("in its first %d steps the weighting %s is %s; the run ends at step %d",
                    warmup, name, meanwhile, plan.steps)  # fmt: skip
    if state.ema is not None and not plan.is_dry_run:
        initial = state.ema.decay**plan.steps
        if initial > 0.1:
            log.warning(
                "trainer.ema=%g averages over about %d steps and the run has %d: at its end the model that is "
                "evaluated is still %.0f %% the initial one; use a smaller decay, or train longer",
                state.ema.decay, round(1 / (1 - state.ema.decay)), plan.steps, 100 * initial,
            )  # fmt: skip
