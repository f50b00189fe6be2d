"""One visible training loop, the state it carries, and the evaluation."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm.scheduler
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mtl import checkpoint, environment, report
from mtl.conflict import agreement_metrics, conflict_metrics, cosines
from mtl.data.loader import Shuffled, in_order, make_loader
from mtl.memory import PeakMemory
from mtl.model import MultiTaskModel, Task, count_labels, loss_modules, present_tasks
from mtl.strategies import AuditResult, StepResult, revisit
from mtl.tracking import Tracker

log = logging.getLogger(__name__)

# What torch's and timm's schedulers call the length of the run, in steps.
RUN_LENGTHS = ("t_initial", "T_max", "total_steps")


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
    step: int = 0
    best: float | None = None
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types only."""
        return {
            "model": self.model.state_dict(),
            "losses": loss_modules(self.tasks).state_dict(),
            "strategy": self.strategy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"name": type(self.scheduler).__name__, "state": self.scheduler.state_dict()},
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
            "best_metrics": self.best_metrics,
            "rng": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up another run's state; ValueError if it belongs to another model."""
        try:
            self.model.load_state_dict(state["model"])
            loss_modules(self.tasks).load_state_dict(state["losses"])
            self.strategy.load_state_dict(state["strategy"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._load_scheduler(**state["scheduler"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"The checkpoint is of another configuration: {str(error).splitlines()[0]}") from error
        self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]
        self.best_metrics = state["best_metrics"]
        torch.set_rng_state(state["rng"]["cpu"])
        if len(state["rng"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])

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


def fit(state: TrainState, parts: Parts, cfg: Any, tracker: Tracker) -> dict[str, float]:
    """Train to the end of the plan and return the best model's metrics on the test split.

    ``cfg`` is the whole configuration; what happens when is in ``cfg.trainer`` and ``cfg.conflict``.
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
    batches = iter(make_loader(data.train, sampler, cfg.seed, trainer.num_workers))
    val_loader = split_loader(data, "val", cfg)
    parameters = [q for group in state.optimizer.param_groups for q in group["params"]]
    clock, conflicts = Clock(data.batch_size, device), Conflicts([task.name for task in state.tasks])
    state.model.train()
    # disable=None: off where stderr is no terminal; plain lines come instead.
    with tqdm(total=p.steps, initial=state.step, disable=None, leave=False, ncols=100) as bar, logging_redirect_tqdm():
        while state.step < p.steps:
            # --- one training step
            with clock.waiting_for_data():
                inputs, targets = to_device(next(batches), device)
            step = state.step + 1
            measure = cfg.conflict.every is not None and _due(step, cfg.conflict.every, p.steps)
            audit = cfg.conflict.audit_every is not None and step % cfg.conflict.audit_every == 0
            logged = measure or audit or _due(step, trainer.log_every, p.steps)
            state.optimizer.zero_grad()
            with clock.one_step():
                result = state.strategy.step(state.model, state.tasks, inputs, targets, measure=measure, audit=audit)
                if trainer.grad_clip_norm is not None:
                    grad_norm = nn.utils.clip_grad_norm_(parameters, trainer.grad_clip_norm)
                elif logged:
                    grad_norm = nn.utils.get_total_norm([q.grad for q in parameters if q.grad is not None])
                state.optimizer.step()
            if state.strategy.weighting.revisits:
                revisit(state.strategy.weighting, state.model, state.tasks, inputs, targets)
            learning_rate = state.optimizer.param_groups[-1]["lr"]
            _step_scheduler(state.scheduler, step)
            state.step = step
            bar.update()

            # --- once in a while: the losses, and the conflict between the tasks where it was measured
            if logged:
                row = loss_metrics(result) | {"grad_norm": grad_norm.item(), "lr": learning_rate}
                if result.gram is not None:
                    row |= conflicts.update(result.gram, list(result.losses))
                if result.audit is not None:
                    row |= audit_metrics(result.audit)
                row |= clock.read()
                tracker.log("train", step, p.epoch(step), row)
                bar.set_postfix_str(f"loss {row['loss/total']:.4f}" if "loss/total" in row else "")
                if bar.disable and _due(step, 10 * trainer.log_every, p.steps):
                    log.info("step %d of %d: %s", step, p.steps, report.one_line(row))

            # --- once in a while: evaluation, the best model, early stopping
            stop = False
            if step % p.val_every == 0 or step == p.steps:
                metrics = evaluate(state.model, state.tasks, val_loader, device)
                tracker.log("val", step, p.epoch(step), metrics)
                value = metrics.get(trainer.monitor.removeprefix("val/"), math.nan)
                improved = _improves(value, state.best, trainer.mode)
                if improved:
                    state.best, state.best_step, state.best_metrics = value, step, metrics
                _step_plateau(state.scheduler, step // p.val_every, value)
                log.info("%s", report.task_table(f"step {step}: val", metrics))
                if (matrix := conflicts.mean()) is not None:
                    tracker.image("train/conflict/cos", step, report.heat_map(matrix))
                if improved:
                    save(state, cfg, tracker.folder / "checkpoints" / "best.pt", {"val": metrics})
                stop = trainer.patience is not None and step - state.best_step >= trainer.patience * p.val_every

            # --- once in a while: what a resumed run goes on from
            if step % p.checkpoint_every == 0 or step == p.steps or stop:
                save(state, cfg, tracker.folder / "checkpoints" / "last.pt", {})
            if stop:
                log.info("stopped at step %d: %s is best at step %d", step, trainer.monitor, state.best_step)
                break
            clock.resume()

    return _test_best(state, data, cfg, tracker, p, device)


def evaluate(
    model: MultiTaskModel, tasks: Sequence[Task], loader: DataLoader, device: torch.device
) -> dict[str, float]:
    """The loss and the metrics of every task over ``loader``; absent tasks are not in the result.

    A task's loss is the mean of its batches' losses by their numbers of labels; ``loss/total`` is the tasks' plain sum,
    whatever the weighting, so that it can be compared between strategies.
    """
    training = model.training
    model.eval()
    sums, counts = dict.fromkeys((t.name for t in tasks), 0.0), dict.fromkeys((t.name for t in tasks), 0)
    for task in tasks:
        for metric in task.metrics.values():
            metric.reset()
    with torch.inference_mode():
        for inputs, targets in (to_device(batch, device) for batch in loader):
            features = model.backbone(inputs)
            for task in present_tasks(tasks, targets):
                prediction, target = model.heads[task.name](features), targets[task.name]
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


def split_loader(data: Any, split: str, cfg: Any) -> DataLoader:
    """One pass over a split in its own order, as far as the trainer's limits go."""
    trainer = cfg.trainer
    dataset = data.train if trainer.overfit_batches and split == "val" else getattr(data, split)
    limit = 1 if trainer.fast_dev_run else trainer.overfit_batches or trainer.limit_val_batches
    keys = in_order(len(dataset), data.batch_size, limit)
    return make_loader(dataset, keys, cfg.seed, trainer.num_workers)


def save(state: TrainState, cfg: Any, path: Path, metrics: dict[str, Any]) -> None:
    """Write a checkpoint that a run can go on from, and that mtl-eval can rebuild the model from."""
    path.parent.mkdir(exist_ok=True)
    config = OmegaConf.to_container(cfg, resolve=True)
    checkpoint.save(path, {"config": config, "metrics": metrics, **state.state_dict()})


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

    def _clear(self) -> None:
        self._sum = torch.zeros(len(self.tasks), len(self.tasks), dtype=torch.float64)
        self._count = torch.zeros_like(self._sum)


class Clock:
    """Mean times of the steps since the last reading, and the peak memory of a step."""

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self._batch_size, self._device = batch_size, device
        self._peak: int | None = None
        self._ran = 0
        self.resume()

    def resume(self) -> None:
        """Start counting from now: what came before, as an evaluation, was no training."""
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Time spent here is ``time/data``."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """One step of training; on the CPU the second one's memory is measured, when the optimizer has its state."""
        self._ran += 1
        self._steps += 1
        if self._device.type == "cuda" or self._ran != 2:
            yield
            return
        with PeakMemory() as memory:
            yield
        self._peak = memory.peak

    def read(self) -> dict[str, float]:
        """Seconds a step and of it waiting for data, samples a second, bytes at the peak; then start anew."""
        seconds = (time.perf_counter() - self._start) / max(1, self._steps)
        row = {"time/step": seconds, "time/data": self._waited / max(1, self._steps)}
        row["samples_per_second"] = self._batch_size / seconds
        if self._device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self._device)
        if self._peak is not None:
            row["memory/peak"] = self._peak
        self.resume()
        return row


def summarise(state: TrainState, test: dict[str, float], folder: Path, seconds: float) -> dict[str, Any]:
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
        "seconds": {"total": seconds, "step": last.get("time/step"), "data": last.get("time/data")},
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


def _test_best(
    state: TrainState, data: Any, cfg: Any, tracker: Tracker, p: Plan, device: torch.device
) -> dict[str, float]:
    best = tracker.folder / "checkpoints" / "best.pt"
    if best.exists():  # not where the monitored metric was never a number
        content = checkpoint.load(best)
        state.model.load_state_dict(content["model"])
        loss_modules(state.tasks).load_state_dict(content["losses"])
    metrics = evaluate(state.model, state.tasks, split_loader(data, "test", cfg), device)
    tracker.log("test", state.best_step, p.epoch(state.best_step), metrics)
    log.info("%s", report.task_table(f"best model (step {state.best_step}): test", metrics))
    return metrics
