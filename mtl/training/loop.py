"""The training loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mtl import report
from mtl.data.loader import EndlessSampler, closing
from mtl.distributed.collectives import any_rank, get_world_size
from mtl.distributed.sharding import load_full_state_dict
from mtl.engine.accumulation import accumulate
from mtl.engine.setup import RecompileWarning
from mtl.engine.weighting import observe_after_update
from mtl.runs import checkpoint
from mtl.runs.saver import Saver
from mtl.runs.tracker import NullTracker, Tracker
from mtl.system.allocator import RetainedHeap
from mtl.system.signals import Preempted
from mtl.system.timer import StepTimer
from mtl.tasks import loss_modules
from mtl.training.evaluation import evaluate, split_batches, to_device
from mtl.training.examples import write_examples
from mtl.training.nonfinite import StepSnapshot, all_finite, clip, diagnose, total_norm
from mtl.training.schedule import Plan, is_due, plan, step_plateau, step_scheduler
from mtl.training.state import Parts, TrainState
from mtl.training.step_metrics import audit_metrics, loss_metrics

log = logging.getLogger(__name__)


def fit(
    state: TrainState, parts: Parts, cfg: Any, tracker: Tracker | NullTracker, stop: Callable[[], bool] = lambda: False
) -> dict[str, float]:
    """Train to the end of the plan and return the best model's metrics on the test split.

    ``cfg`` is the whole configuration; what happens when is in ``cfg.trainer`` and ``cfg.conflict``. After each step
    ``stop`` is asked whether the run must end now: then its state is saved and Preempted raised.
    """
    trainer, data, device = cfg.trainer, parts.data, parts.device
    p = plan(data, trainer)
    log_plan(state, data, trainer, p)
    sampler = EndlessSampler(
        len(data.train),
        p.batch_size,
        p.per_epoch * p.batches,
        cfg.seed,
        state.step * p.batches,
        shuffle=not trainer.overfit_batches,
    )
    train = split_batches(data, "train", cfg, state.tasks, state.unreadable, sampler)
    val = split_batches(data, "val", cfg, state.tasks, state.unreadable)
    parameters = [q for group in state.optimizer.param_groups for q in group["params"]]
    clock = StepTimer(p.batch_size * p.batches, device, state.peak_memory, state.seconds)
    saver = Saver(state, tracker, trainer.keep)
    precision = state.engine.precision
    skips = trainer.on_nan == "skip" or precision.scaler is not None
    skipping = StepSnapshot(state.model, state.tasks, state.strategy) if skips else None
    recompilations = RecompileWarning(state.model)
    kept = RetainedHeap(trainer.keep_memory and device.type == "cpu")
    state.model.train()
    # disable=None: off where stderr is no terminal; plain lines come instead.
    bar = tqdm(total=p.steps, initial=state.step, disable=None, leave=False, ncols=100)
    with bar, logging_redirect_tqdm(), kept, closing(train) as batches:
        while state.step < p.steps and not _out_of_patience(state, trainer, p):
            # --- one training step
            def load() -> Any:
                with clock.loading():
                    return to_device(next(batches), device, trainer.channels_last)

            batch, step = load(), state.step + 1
            measure = cfg.conflict.every is not None and is_due(step, cfg.conflict.every, p.steps)
            audit = cfg.conflict.audit_every is not None and step % cfg.conflict.audit_every == 0
            logged = measure or audit or is_due(step, trainer.log_every, p.steps)
            state.optimizer.zero_grad()
            if skipping is not None:
                skipping.save()
            precision.update_scale(device)
            with clock.step():
                result, batch = accumulate(state, batch, load, p.batches, measure=measure, audit=audit)
                precision.unscale(state.optimizer)
                grad_norm = total_norm(parameters)
                finite = all_finite(result, grad_norm)
                if finite:
                    if trainer.grad_clip_norm is not None:
                        clip(parameters, trainer.grad_clip_norm, grad_norm)
                    state.optimizer.step()
            overflow = not finite and precision.is_overflow(result)
            learning_rate = state.optimizer.param_groups[-1]["lr"]
            if finite:
                state.skips["in_a_row"] = 0
                if state.strategy.weighting.needs_losses_after_update:
                    observe_after_update(state.engine, state.strategy.weighting, *batch)
                if state.ema is not None:
                    state.ema.update(state.model)
            elif not overflow:
                words = diagnose(state.engine, *batch, result, train.indices)
                _skip_or_raise(state, trainer, skipping, f"step {step}: {words}")
            elif skipping is not None:
                skipping.restore()
                state.skips["overflow"] += 1
            if not overflow:  # a step that float16 could not hold is none for the schedule
                step_scheduler(state.scheduler, step - state.skips["overflow"])
            state.step, state.peak_memory, state.seconds = step, clock.peak, clock.elapsed()
            recompilations.check(step)
            kept.check()
            bar.update()

            # --- once in a while: the losses, and the conflict between the tasks where it was measured
            if logged and finite:
                row = loss_metrics(result) | {"grad_norm": grad_norm.item(), "lr": learning_rate}
                if result.gram is not None:
                    row |= state.conflicts.update(result.gram, result.measured or list(result.losses))
                if result.audit is not None:
                    row |= audit_metrics(result.audit)
                row |= clock.read()
                tracker.log("train", step, p.epoch(step), row)
                bar.set_postfix_str(f"loss {row['loss/total']:.4f}" if "loss/total" in row else "")
                if bar.disable and is_due(step, 10 * trainer.log_every, p.steps):
                    log.info("step %d of %d: %s", step, p.steps, report.one_line(row))

            with clock.paused():
                # --- once in a while: evaluation and the best model
                improved, value, metrics = False, math.nan, {}
                if step % p.val_every == 0 or step == p.steps:
                    metrics = evaluate(state.evaluated, val, device)
                    tracker.log("val", step, p.epoch(step), metrics)
                    value = metrics.get(trainer.monitor.removeprefix("val/"), math.nan)
                    improved = _improves(value, state.best, trainer.mode)
                    step_plateau(state.scheduler, step // p.val_every, value)
                    log.info("%s", report.task_table(f"step {step}: val", metrics))
                    if (matrix := state.conflicts.mean()) is not None:
                        tracker.image("train/conflict/cos", step, report.heat_map(matrix))

                # --- once in a while: what a resumed run goes on from
                last = step == p.steps or (not improved and _out_of_patience(state, trainer, p))
                # The second step's memory belongs to the record.
                asked = any_rank(stop()) and not last and step > 1
                if improved:
                    saver.save_best(value, metrics, must=last or asked)
                elif step % p.checkpoint_every == 0 or last or asked:
                    saver.save(must=last or asked)
                if asked:
                    log.warning("stopped at step %d as asked; resume=%s goes on from there", step, tracker.folder)
                    raise Preempted
                if last and step < p.steps:
                    log.info("stopped at step %d: %s is best at step %d", step, trainer.monitor, state.best_step)

    return _test_best(state, data, cfg, tracker, p, device)


def log_plan(state: TrainState, data: Any, trainer: Any, p: Plan) -> None:
    """Say what will be trained, and how the numbers of steps come about."""
    shared = sum(q.numel() for q in state.model.shared_parameters())
    heads = sum(q.numel() for q in state.model.head_parameters())
    log.info(
        "tasks %s; parameters: %s shared, %s in heads",
        ", ".join(t.name for t in state.tasks),
        f"{shared:,}",
        f"{heads:,}",
    )
    samples, batch = len(data.train), str(data.batch_size)
    if (accumulated := trainer.accumulate_grad_batches) > 1:
        batch = f"{data.batch_size} × {accumulated} accumulated = {data.batch_size * accumulated}"
    ranks = get_world_size()
    spread = f", over {ranks} processes of about {p.batch_size / ranks:g} each" if ranks > 1 else ""
    log.info(
        "%d samples / batches of %s = %d steps an epoch%s; %d steps = %.1f epochs; evaluation every %d steps",
        samples, batch, p.per_epoch, spread, p.steps, p.epoch(p.steps), p.val_every,
    )  # fmt: skip


def _improves(value: float, best: float | None, mode: str) -> bool:
    if math.isnan(value):
        return False
    return best is None or (value < best if mode == "min" else value > best)


def _out_of_patience(state: TrainState, trainer: Any, p: Plan) -> bool:
    return trainer.patience is not None and state.step - state.best_step >= trainer.patience * p.val_every


def _skip_or_raise(state: TrainState, trainer: Any, skipping: StepSnapshot | None, words: str) -> None:
    """Take the step back, or end the run where the steps that are not finite may not be skipped (any more)."""
    if skipping is None or trainer.on_nan == "raise":
        raise FloatingPointError(f"{words}. Nothing was updated; trainer.on_nan=skip leaves such steps out.")
    skipping.restore()
    state.skips["total"] += 1
    state.skips["in_a_row"] += 1
    if state.skips["in_a_row"] > trainer.max_skips:
        raise FloatingPointError(f"{words}; trainer.max_skips={trainer.max_skips} steps in a row were skipped before.")
    log.warning("SKIPPED: %s (%d skipped so far)", words, state.skips["total"])


def _test_best(
    state: TrainState, data: Any, cfg: Any, tracker: Tracker | NullTracker, p: Plan, device: torch.device
) -> dict[str, float]:
    best = tracker.folder / checkpoint.FOLDER / "best.pt"
    if state.best is not None and best.exists():  # not where the monitored metric was never a number
        content = checkpoint.load(best)
        load_full_state_dict(state.evaluated.model, content["ema"] or content["model"])
        loss_modules(state.tasks).load_state_dict(content["losses"])
    test = split_batches(data, "test", cfg, state.tasks, state.unreadable)
    metrics = evaluate(state.evaluated, test, device)
    tracker.log("test", state.best_step, p.epoch(state.best_step), metrics)
    log.info("%s", report.task_table(f"best model (step {state.best_step}): test", metrics))
    write_examples(tracker.folder, state.evaluated, data, device, cfg.trainer.examples)
    return metrics
