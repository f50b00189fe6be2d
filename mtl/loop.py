"""One visible training loop, the state it carries, and the evaluation."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm.scheduler
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils import _pytree as pytree
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mtl import checkpoint, environment, report
from mtl.checkpoint import Saver
from mtl.clock import Clock
from mtl.conflict import agreement_metrics, conflict_metrics, cosines
from mtl.data.loader import Batches, Shuffled, in_order, opened
from mtl.examples import write_examples
from mtl.finite import Skipping, all_finite, total_norm, what_is_not_finite
from mtl.model import MultiTaskModel, Task, count_labels, loss_modules, present_tasks
from mtl.signals import Preempted
from mtl.strategies import AuditResult, StepResult, revisit
from mtl.tracking import Tracker

log = logging.getLogger(__name__)

# What torch's and timm's schedulers call the length of the run, in steps.
RUN_LENGTHS = ("t_initial", "T_max", "total_steps")
# The plain numbers of a TrainState.
COUNTED = ("step", "best", "best_step", "best_metrics", "skips", "unreadable", "peak_memory", "seconds")


@dataclass
class Parts:
    """What a configuration comes to before anything is trained: all that an evaluation needs."""

    data: Any
    model: MultiTaskModel
    tasks: list[Task]
    device: torch.device


@dataclass
class TrainState:
    """Everything that a resumed run needs. The place in the data follows from ``step``."""

    model: MultiTaskModel
    tasks: list[Task]
    strategy: Any
    optimizer: torch.optim.Optimizer
    scheduler: Any
    ema: ModelEmaV3 | None = None  # the running average of the model's weights, where there is one
    step: int = 0
    best: float | None = None
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    skips: dict[str, int] = field(default_factory=lambda: {"total": 0, "in_a_row": 0})  # steps that were not finite
    unreadable: dict[str, list[int]] = field(default_factory=dict)  # by split, the samples that were left out
    peak_memory: int | None = None  # bytes above the parameters in a step on the CPU
    seconds: float = 0.0  # of training, over all the processes it took

    def __post_init__(self) -> None:
        self.conflicts = Conflicts([task.name for task in self.tasks])

    @property
    def evaluated(self) -> MultiTaskModel:
        """The model whose metrics count: the averaged one, where there is one."""
        return self.model if self.ema is None else self.ema.module

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types only."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "losses": loss_modules(self.tasks).state_dict(),
            "strategy": self.strategy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"name": type(self.scheduler).__name__, "state": self.scheduler.state_dict()},
            "conflicts": self.conflicts.state_dict(),
            "rng": environment.rng_state(),
            **{name: getattr(self, name) for name in COUNTED},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up another run's state; ValueError if it belongs to another model."""
        try:
            self.model.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state["ema"] or state["model"])
            loss_modules(self.tasks).load_state_dict(state["losses"])
            self.strategy.load_state_dict(state["strategy"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._load_scheduler(**state["scheduler"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"The checkpoint is of another configuration: {str(error).splitlines()[0]}") from error
        if state["conflicts"] is not None:
            self.conflicts.load_state_dict(state["conflicts"])
        for name in COUNTED:
            setattr(self, name, copy.deepcopy(state[name]))
        environment.set_rng_state(state["rng"])

    def _load_scheduler(self, name: str, state: dict[str, Any]) -> None:
        if name != type(self.scheduler).__name__:
            raise ValueError(f"its scheduler is {name}, not {type(self.scheduler).__name__}.")
        # The run may have been made longer: its length is the new plan's, and not what was saved. timm's schedules are
        # functions of the step; torch's go on from the last learning rate, which may be zero by now.
        lengths = {key: value for key, value in vars(self.scheduler).items() if key in RUN_LENGTHS}
        changed = [f"{key} from {state[key]} to {value}" for key, value in lengths.items() if state.get(key) != value]
        if changed and not isinstance(self.scheduler, timm.scheduler.scheduler.Scheduler):
            raise ValueError(f"torch's {name} cannot change {changed[0]}; timm's, as scheduler=cosine, can.")
        self.scheduler.load_state_dict(state)
        vars(self.scheduler).update(lengths)


@dataclass(frozen=True)
class Plan:
    """The numbers that follow from the data and the trainer's settings. All are counts of steps."""

    per_epoch: int
    steps: int
    val_every: int
    checkpoint_every: int

    def epoch(self, step: int) -> float:
        """How many passes over the training data ``step`` steps are."""
        return step / self.per_epoch


def plan(data: Any, trainer: Any) -> Plan:
    """Work out how many steps there are, and between what."""
    samples = len(data.train)
    per_epoch = max(1, samples // data.batch_size)  # the last, smaller batch of an epoch is dropped
    for limit in (trainer.limit_train_batches, trainer.overfit_batches):
        per_epoch = min(per_epoch, limit or per_epoch)
    limits = [trainer.max_steps, trainer.max_epochs and trainer.max_epochs * per_epoch]
    steps = 1 if trainer.fast_dev_run else min(limit for limit in limits if limit is not None)
    val_every = trainer.val_every or per_epoch
    return Plan(per_epoch, steps, val_every, trainer.checkpoint_every or val_every)


def fit(
    state: TrainState, parts: Parts, cfg: Any, tracker: Tracker, stop: Callable[[], bool] = lambda: False
) -> dict[str, float]:
    """Train to the end of the plan and return the best model's metrics on the test split.

    ``cfg`` is the whole configuration; what happens when is in ``cfg.trainer`` and ``cfg.conflict``. After each step
    ``stop`` is asked whether the run must end now: then its state is saved and Preempted raised.
    """
    trainer, data, device = cfg.trainer, parts.data, parts.device
    p = plan(data, trainer)
    _announce(state, data, p)
    sampler = Shuffled(
        len(data.train),
        data.batch_size,
        p.per_epoch,
        cfg.seed,
        state.step,
        shuffle=not trainer.overfit_batches,
    )
    train = split_batches(data, "train", cfg, state.tasks, state.unreadable, sampler)
    val = split_batches(data, "val", cfg, state.tasks, state.unreadable)
    parameters = [q for group in state.optimizer.param_groups for q in group["params"]]
    clock = Clock(data.batch_size, device, state.peak_memory, state.seconds)
    saver = Saver(state, tracker, trainer.keep)
    skipping = Skipping(state.model, state.tasks, state.strategy) if trainer.on_nan == "skip" else None
    state.model.train()
    # disable=None: off where stderr is no terminal; plain lines come instead.
    bar = tqdm(total=p.steps, initial=state.step, disable=None, leave=False, ncols=100)
    with bar, logging_redirect_tqdm(), opened(train) as batches:
        while state.step < p.steps and not _out_of_patience(state, trainer, p):
            # --- one training step
            with clock.waiting_for_data():
                inputs, targets = to_device(next(batches), device)
            step = state.step + 1
            measure = cfg.conflict.every is not None and _due(step, cfg.conflict.every, p.steps)
            audit = cfg.conflict.audit_every is not None and step % cfg.conflict.audit_every == 0
            logged = measure or audit or _due(step, trainer.log_every, p.steps)
            state.optimizer.zero_grad()
            if skipping is not None:
                skipping.remember()
            with clock.one_step():
                result = state.strategy.step(state.model, state.tasks, inputs, targets, measure=measure, audit=audit)
                grad_norm = total_norm(parameters)
                finite = all_finite(result, grad_norm)
                if finite:
                    if trainer.grad_clip_norm is not None:
                        nn.utils.clip_grads_with_norm_(parameters, trainer.grad_clip_norm, grad_norm)
                    state.optimizer.step()
            if finite:
                state.skips["in_a_row"] = 0
                if state.strategy.weighting.revisits:
                    revisit(state.strategy.weighting, state.model, state.tasks, inputs, targets)
                if state.ema is not None:
                    state.ema.update(state.model)
            else:
                words = what_is_not_finite(state.model, state.tasks, inputs, targets, result, train.indices)
                _skip_or_raise(state, trainer, skipping, f"step {step}: {words}")
            learning_rate = state.optimizer.param_groups[-1]["lr"]
            _step_scheduler(state.scheduler, step)
            state.step, state.peak_memory, state.seconds = step, clock.peak, clock.elapsed()
            bar.update()

            # --- once in a while: the losses, and the conflict between the tasks where it was measured
            if logged and finite:
                row = loss_metrics(result) | {"grad_norm": grad_norm.item(), "lr": learning_rate}
                if result.gram is not None:
                    row |= state.conflicts.update(result.gram, list(result.losses))
                if result.audit is not None:
                    row |= audit_metrics(result.audit)
                row |= clock.read()
                tracker.log("train", step, p.epoch(step), row)
                bar.set_postfix_str(f"loss {row['loss/total']:.4f}" if "loss/total" in row else "")
                if bar.disable and _due(step, 10 * trainer.log_every, p.steps):
                    log.info("step %d of %d: %s", step, p.steps, report.one_line(row))

            # --- once in a while: evaluation and the best model
            improved, value, metrics = False, math.nan, {}
            if step % p.val_every == 0 or step == p.steps:
                metrics = evaluate(state.evaluated, state.tasks, val, device)
                tracker.log("val", step, p.epoch(step), metrics)
                value = metrics.get(trainer.monitor.removeprefix("val/"), math.nan)
                improved = _improves(value, state.best, trainer.mode)
                _step_plateau(state.scheduler, step // p.val_every, value)
                log.info("%s", report.task_table(f"step {step}: val", metrics))
                if (matrix := state.conflicts.mean()) is not None:
                    tracker.image("train/conflict/cos", step, report.heat_map(matrix))

            # --- once in a while: what a resumed run goes on from
            last = step == p.steps or (not improved and _out_of_patience(state, trainer, p))
            asked = stop() and not last and step > 1  # the second step's memory belongs to the record
            if improved:
                saver.save_best(value, metrics, must=last or asked)
            elif step % p.checkpoint_every == 0 or last or asked:
                saver.save(must=last or asked)
            if asked:
                log.warning("stopped at step %d as asked; resume=%s goes on from there", step, tracker.folder)
                raise Preempted
            if last and step < p.steps:
                log.info("stopped at step %d: %s is best at step %d", step, trainer.monitor, state.best_step)
            clock.resume()

    return _test_best(state, data, cfg, tracker, p, device)


def evaluate(model: MultiTaskModel, tasks: Sequence[Task], batches: Iterable, device: torch.device) -> dict[str, float]:
    """The loss and the metrics of every task over ``batches``; absent tasks are not in the result.

    A task's loss is the mean of its batches' losses by their numbers of labels; ``loss/total`` is the tasks' plain sum,
    whatever the weighting, so that it can be compared between strategies.
    """
    training = model.training
    model.eval()
    sums, counts = dict.fromkeys((t.name for t in tasks), 0.0), dict.fromkeys((t.name for t in tasks), 0)
    for task in tasks:
        for metric in task.metrics.values():
            metric.reset()
    with torch.inference_mode(), opened(batches) as iterator:
        for batch in iterator:
            inputs, targets = to_device(batch, device)
            features = model.features(inputs)
            for task in present_tasks(tasks, targets):
                prediction, target = model.predict(task.name, features), targets[task.name]
                count = count_labels(task, target)
                sums[task.name] += task.loss(prediction, target).item() * count
                counts[task.name] += count
                for metric in task.metrics.values():
                    metric.update(prediction, target)
    model.train(training)
    seen = [task for task in tasks if counts[task.name]]
    results = {f"loss/{task.name}": sums[task.name] / counts[task.name] for task in seen}
    results["loss/total"] = sum(results.values())
    for task in seen:
        results |= {f"{task.name}/{name}": metric.compute().item() for name, metric in task.metrics.items()}
    return results


def split_batches(
    data: Any,
    split: str,
    cfg: Any,
    tasks: Sequence[Task],
    unreadable: dict[str, list[int]] | None = None,
    keys: Any = None,
) -> Batches:
    """The batches of a split: those of ``keys``, or one pass in its own order as far as the trainer's limits go.

    Samples that are left out are noted in ``unreadable``, by split.
    """
    trainer = cfg.trainer
    dataset = data.train if trainer.overfit_batches and split == "val" else getattr(data, split)
    limit = 1 if trainer.fast_dev_run else trainer.overfit_batches or trainer.limit_val_batches
    return Batches(
        dataset,
        in_order(len(dataset), data.batch_size, limit) if keys is None else keys,
        cfg.seed,
        trainer.num_workers,
        split=split,
        labels={task.name: task.labels for task in tasks if task.labels is not None},
        on_error=cfg.data.get("on_error", "raise"),
        unreadable=None if unreadable is None else unreadable.setdefault(split, []),
    )


def to_device(values: Any, device: torch.device) -> Any:
    """Every tensor of a nesting, on ``device``."""
    if device.type == "cpu":
        return values
    return pytree.tree_map_only(Tensor, lambda t: t.to(device, non_blocking=True), values)


def loss_metrics(result: StepResult) -> dict[str, float]:
    """The losses and weights of a step by their logged names, fetched from the device at once."""
    names = list(result.losses)
    if not names:
        return {}
    values = torch.stack([*result.losses.values(), *result.weights.values()]).tolist()
    losses, weights = values[: len(names)], values[len(names) :]
    row = {f"loss/{name}": loss for name, loss in zip(names, losses, strict=True)}
    row["loss/total"] = sum(losses)
    return row | {f"weight/{name}": weight for name, weight in zip(names, weights, strict=True)}


def audit_metrics(audit: AuditResult) -> dict[str, float]:
    """What a parameter-space check found, by the logged names."""
    assert audit.features is not None and audit.parameters is not None
    return agreement_metrics(audit.features, audit.parameters, audit.tasks, audit.weights)


class Conflicts:
    """The tasks' cosines, averaged since they were last asked for."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = list(tasks)
        self._clear()

    def update(self, gram: Tensor, present: Sequence[str]) -> dict[str, float]:
        """Add one Gram matrix over the tasks in ``present`` and return its conflict metrics."""
        matrix = cosines(gram)
        index = torch.tensor([self.tasks.index(task) for task in present])
        known = torch.isfinite(matrix)
        self._sum[index[:, None], index] += matrix.where(known, 0)
        self._count[index[:, None], index] += known
        return conflict_metrics(gram, present)

    def mean(self) -> Tensor | None:
        """The mean cosine of every pair ``[K, K]``, NaN where there is none; None if nothing was measured."""
        matrix = self._sum / self._count if self._count.any() else None
        self._clear()
        return matrix

    def state_dict(self) -> dict[str, Tensor]:
        """The cosines since they were last asked for: their sums and their numbers."""
        return {"sum": self._sum.clone(), "count": self._count.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from another run's."""
        self._sum, self._count = state["sum"].clone(), state["count"].clone()

    def _clear(self) -> None:
        self._sum = torch.zeros(len(self.tasks), len(self.tasks), dtype=torch.float64)
        self._count = torch.zeros_like(self._sum)


def summarise(state: TrainState, test: dict[str, float], folder: Path) -> dict[str, Any]:
    """The content of summary.json."""
    train, val = report.read_metrics(folder, "train"), report.read_metrics(folder, "val")
    last = train[-1] if train else {}
    return {
        "steps": state.step,
        "test": test,
        "best": {
            "step": state.best_step,
            "monitor": state.best,
            "val": state.best_metrics,
        },
        "last": {"val": report.only_metrics(val[-1]) if val else {}},
        "conflict": report.mean_conflict(train),
        "parameters": {
            "shared": sum(p.numel() for p in state.model.shared_parameters()),
            "heads": {name: sum(p.numel() for p in head.parameters()) for name, head in state.model.heads.items()},
        },
        "skipped": {
            "steps": state.skips["total"],
            "samples": {split: sorted(indices) for split, indices in state.unreadable.items() if indices},
        },
        "seconds": {"total": state.seconds, "step": last.get("time/step"), "data": last.get("time/data")},
        "memory/peak": last.get("memory/peak"),
        "versions": environment.describe(),
    }


def _announce(state: TrainState, data: Any, p: Plan) -> None:
    shared = sum(q.numel() for q in state.model.shared_parameters())
    heads = sum(q.numel() for q in state.model.head_parameters())
    log.info(
        "tasks %s; parameters: %s shared, %s in heads",
        ", ".join(t.name for t in state.tasks),
        f"{shared:,}",
        f"{heads:,}",
    )
    log.info(
        "%d samples / batches of %d = %d steps an epoch; %d steps = %.1f epochs; evaluation every %d steps",
        len(data.train), data.batch_size, p.per_epoch, p.steps, p.epoch(p.steps), p.val_every,
    )  # fmt: skip


def _due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step in (1, last)


def _improves(value: float, best: float | None, mode: str) -> bool:
    if math.isnan(value):
        return False
    return best is None or (value < best if mode == "min" else value > best)


def _step_scheduler(scheduler: Any, step: int) -> None:
    if isinstance(scheduler, timm.scheduler.scheduler.Scheduler):
        scheduler.step_update(step)
    elif not isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step()


def _step_plateau(scheduler: Any, evaluation: int, value: float) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(value)
    elif isinstance(scheduler, timm.scheduler.PlateauLRScheduler):
        scheduler.step(evaluation, value)


def _out_of_patience(state: TrainState, trainer: Any, p: Plan) -> bool:
    return trainer.patience is not None and state.step - state.best_step >= trainer.patience * p.val_every


def _skip_or_raise(state: TrainState, trainer: Any, skipping: Skipping | None, words: str) -> None:
    """Take the step back, or end the run where the steps that are not finite may not be skipped (any more)."""
    if skipping is None:
        raise FloatingPointError(f"{words}. Nothing was updated; trainer.on_nan=skip leaves such steps out.")
    skipping.take_back()
    state.skips["total"] += 1
    state.skips["in_a_row"] += 1
    if state.skips["in_a_row"] > trainer.max_skips:
        raise FloatingPointError(f"{words}; trainer.max_skips={trainer.max_skips} steps in a row were skipped before.")
    log.warning("SKIPPED: %s (%d skipped so far)", words, state.skips["total"])


def _test_best(
    state: TrainState, data: Any, cfg: Any, tracker: Tracker, p: Plan, device: torch.device
) -> dict[str, float]:
    best = tracker.folder / checkpoint.FOLDER / "best.pt"
    if state.best is not None and best.exists():  # not where the monitored metric was never a number
        content = checkpoint.load(best)
        state.evaluated.load_state_dict(content["ema"] or content["model"])
        loss_modules(state.tasks).load_state_dict(content["losses"])
    test = split_batches(data, "test", cfg, state.tasks, state.unreadable)
    metrics = evaluate(state.evaluated, state.tasks, test, device)
    tracker.log("test", state.best_step, p.epoch(state.best_step), metrics)
    log.info("%s", report.task_table(f"best model (step {state.best_step}): test", metrics))
    write_examples(tracker.folder, state.evaluated, state.tasks, data, device, cfg.trainer.examples)
    return metrics
