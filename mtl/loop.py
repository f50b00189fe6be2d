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
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils import _pytree as pytree
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mtl import checkpoint, distributed, environment, report
from mtl.accumulation import accumulate
from mtl.allocator import KeptMemory
from mtl.checkpoint import Saver
from mtl.clock import Clock
from mtl.data.loader import Batches, Shuffled, Slices, in_order, opened
from mtl.engine import Recompilations
from mtl.examples import write_examples
from mtl.finite import Skipping, all_finite, clip, total_norm, what_is_not_finite
from mtl.logged import Conflicts, audit_metrics, loss_metrics
from mtl.model import MultiTaskModel, Task, count_labels, loss_modules, present_tasks
from mtl.precision import is_overflow, loss_scale, unscale
from mtl.signals import Preempted
from mtl.strategies import revisit
from mtl.tracking import Silent, Tracker

log = logging.getLogger(__name__)

# What torch's and timm's schedulers call the length of the run, in steps.
RUN_LENGTHS = ("t_initial", "T_max", "total_steps")
# The plain numbers of a TrainState.
DEFAULT_SKIPS = {"total": 0, "in_a_row": 0, "overflow": 0}
COUNTED = ("step", "best", "best_step", "best_metrics", "skips", "unreadable", "peak_memory", "seconds")


@dataclass
class Parts:
    """What a configuration comes to before anything is trained: all that an evaluation needs."""

    data: Any
    model: MultiTaskModel
    tasks: list[Task]
    device: torch.device
    example: Any = None  # the inputs of two samples


@dataclass
class TrainState:
    """Everything that a resumed run needs. The place in the data follows from ``step``."""

    model: MultiTaskModel
    tasks: list[Task]
    strategy: Any
    optimizer: torch.optim.Optimizer
    scheduler: Any
    ema: ModelEmaV3 | None = None  # the running average of the model's weights, where there is one
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    step: int = 0
    best: float | None = None
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    skips: dict[str, int] = field(default_factory=DEFAULT_SKIPS.copy)  # steps that were not finite
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
            "scaler": self.scaler.state_dict(),
            "rng": distributed.everyones(environment.rng_state()),  # by rank
            **{name: getattr(self, name) for name in COUNTED},
            "unreadable": self.unreadable_anywhere(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up another run's state; ValueError if it belongs to another model."""
        try:
            self.model.load_whole(state["model"])
            if self.ema is not None:
                self.ema.module.load_whole(state["ema"] or state["model"])
            loss_modules(self.tasks).load_state_dict(state["losses"])
            self.strategy.load_state_dict(state["strategy"])
            self.optimizer.load_state_dict(state["optimizer"])
            distributed.spread_state(self.optimizer)
            self._load_scheduler(**state["scheduler"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"The checkpoint is of another configuration: {str(error).splitlines()[0]}") from error
        if state["conflicts"] is not None:
            self.conflicts.load_state_dict(state["conflicts"])
        for name in COUNTED:
            setattr(self, name, copy.deepcopy(state[name]))
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if distributed.rank() < len(state["rng"]):  # else it was made by fewer processes, and this one begins anew
            environment.set_rng_state(state["rng"][distributed.rank()])

    def unreadable_anywhere(self) -> dict[str, list[int]]:
        """By split, the samples that any rank has left out: each reads its own part."""
        found: dict[str, list[int]] = {}
        for split, indices in (item for own in distributed.everyones(self.unreadable) for item in own.items()):
            found[split] = [*found.get(split, []), *(index for index in indices if index not in found.get(split, []))]
        return found

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


def fit(
    state: TrainState, parts: Parts, cfg: Any, tracker: Tracker | Silent, stop: Callable[[], bool] = lambda: False
) -> dict[str, float]:
    """Train to the end of the plan and return the best model's metrics on the test split.

    ``cfg`` is the whole configuration; what happens when is in ``cfg.trainer`` and ``cfg.conflict``. After each step
    ``stop`` is asked whether the run must end now: then its state is saved and Preempted raised.
    """
    trainer, data, device = cfg.trainer, parts.data, parts.device
    p = plan(data, trainer)
    _announce(state, data, trainer, p)
    sampler = Shuffled(
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
    clock = Clock(p.batch_size * p.batches, device, state.peak_memory, state.seconds)
    saver = Saver(state, tracker, trainer.keep)
    skips = trainer.on_nan == "skip" or state.scaler.is_enabled()
    skipping = Skipping(state.model, state.tasks, state.strategy) if skips else None
    recompilations = Recompilations(state.model)
    kept = KeptMemory(trainer.keep_memory and device.type == "cpu")
    state.model.train()
    # disable=None: off where stderr is no terminal; plain lines come instead.
    bar = tqdm(total=p.steps, initial=state.step, disable=None, leave=False, ncols=100)
    with bar, logging_redirect_tqdm(), kept, opened(train) as batches:
        while state.step < p.steps and not _out_of_patience(state, trainer, p):
            # --- one training step
            def load() -> Any:
                with clock.waiting_for_data():
                    return to_device(next(batches), device, trainer.channels_last)

            batch, step = load(), state.step + 1
            measure = cfg.conflict.every is not None and _due(step, cfg.conflict.every, p.steps)
            audit = cfg.conflict.audit_every is not None and step % cfg.conflict.audit_every == 0
            logged = measure or audit or _due(step, trainer.log_every, p.steps)
            state.optimizer.zero_grad()
            if skipping is not None:
                skipping.remember()
            state.model.loss_scale = loss_scale(state.scaler, device)
            with clock.one_step():
                result, batch = accumulate(state, batch, load, p.batches, measure=measure, audit=audit)
                unscale(state.scaler, state.optimizer)
                grad_norm = total_norm(parameters)
                finite = all_finite(result, grad_norm)
                if finite:
                    if trainer.grad_clip_norm is not None:
                        clip(parameters, trainer.grad_clip_norm, grad_norm)
                    state.optimizer.step()
            overflow = state.scaler.is_enabled() and not finite and is_overflow(state.model.loss_scale, result)
            learning_rate = state.optimizer.param_groups[-1]["lr"]
            if finite:
                state.skips["in_a_row"] = 0
                if state.strategy.weighting.revisits:
                    revisit(state.strategy.weighting, state.model, state.tasks, *batch)
                if state.ema is not None:
                    state.ema.update(state.model)
            elif not overflow:
                words = what_is_not_finite(state.model, state.tasks, *batch, result, train.indices)
                _skip_or_raise(state, trainer, skipping, f"step {step}: {words}")
            elif skipping is not None:
                skipping.take_back()
                state.skips["overflow"] += 1
            if not overflow:  # a step that float16 could not hold is none for the schedule
                _step_scheduler(state.scheduler, step - state.skips["overflow"])
            state.step, state.peak_memory, state.seconds = step, clock.peak, clock.elapsed()
            recompilations.look(step)
            kept.look()
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
                if bar.disable and _due(step, 10 * trainer.log_every, p.steps):
                    log.info("step %d of %d: %s", step, p.steps, report.one_line(row))

            with clock.stopped():
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
                # The second step's memory belongs to the record.
                asked = distributed.any_rank(stop()) and not last and step > 1
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


def evaluate(model: MultiTaskModel, tasks: Sequence[Task], batches: Iterable, device: torch.device) -> dict[str, float]:
    """The loss and the metrics of every task over ``batches``; absent tasks are not in the result.

    A task's loss is the mean of its batches' losses by their numbers of labels; ``loss/total`` is the tasks' plain sum,
    whatever the weighting, so that it can be compared between strategies.
    """
    training = model.training
    model.eval()
    distributed.same_buffers(model)
    sums, counts = dict.fromkeys((t.name for t in tasks), 0.0), dict.fromkeys((t.name for t in tasks), 0.0)
    for task in tasks:
        for metric in task.metrics.values():
            metric.reset()
    with model.by_itself(), torch.inference_mode(), opened(batches) as iterator:
        for batch in iterator:
            inputs, targets = to_device(batch, device)
            features = model.features(inputs)
            for task in present_tasks(tasks, targets):
                prediction, target = model.predict(task.name, features), targets[task.name]
                count = count_labels(task, target)
                with model.autocast():  # which has losses computed in float32
                    sums[task.name] += task.loss(prediction, target).item() * count
                counts[task.name] += count
                for metric in task.metrics.values():
                    metric.update(prediction, target)
    model.train(training)
    everywhere = distributed.total(torch.tensor([*sums.values(), *counts.values()], dtype=torch.float64)).tolist()
    sums, counts = (dict(zip(sums, part, strict=True)) for part in (everywhere[: len(sums)], everywhere[len(sums) :]))
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
    keys = in_order(len(dataset), data.batch_size, limit) if keys is None else keys
    return Batches(
        dataset,
        Slices(keys, distributed.rank(), distributed.world_size()) if distributed.active() else keys,
        cfg.seed,
        trainer.num_workers,
        split=split,
        labels={task.name: task.labels for task in tasks if task.labels is not None},
        on_error=cfg.data.get("on_error", "raise"),
        unreadable=None if unreadable is None else unreadable.setdefault(split, []),
    )


def to_device(values: Any, device: torch.device, channels_last: bool = False) -> Any:
    """Every tensor of a nesting, on ``device``; images ``[B, C, H, W]`` with their channels last in memory if asked."""

    def move(tensor: Tensor) -> Tensor:
        order = torch.channels_last if channels_last and tensor.dim() == 4 else torch.preserve_format
        return tensor.to(device, non_blocking=True, memory_format=order)

    if device.type == "cpu" and not channels_last:
        return values
    return pytree.tree_map_only(Tensor, move, values)


def summarise(state: TrainState, test: dict[str, float], folder: Path) -> dict[str, Any]:
    """The content of summary.json."""
    unreadable = state.unreadable_anywhere()
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
        "higher_is_better": {
            f"{task.name}/{name}": metric.higher_is_better
            for task in state.tasks
            for name, metric in task.metrics.items()
        },
        "conflict": report.mean_conflict(train),
        "parameters": {
            "shared": sum(p.numel() for p in state.model.shared_parameters()),
            "heads": {name: sum(p.numel() for p in head.parameters()) for name, head in state.model.heads.items()},
        },
        "skipped": {
            "steps": state.skips["total"],
            "samples": {split: sorted(indices) for split, indices in unreadable.items() if indices},
        },
        "seconds": {"total": state.seconds, "step": last.get("time/step"), "data": last.get("time/data")},
        "threads": torch.get_num_threads(),
        "memory/peak": last.get("memory/peak"),
        "versions": environment.describe(),
    }


def _announce(state: TrainState, data: Any, trainer: Any, p: Plan) -> None:
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
    ranks = distributed.world_size()
    spread = f", over {ranks} processes of about {p.batch_size / ranks:g} each" if ranks > 1 else ""
    log.info(
        "%d samples / batches of %s = %d steps an epoch%s; %d steps = %.1f epochs; evaluation every %d steps",
        samples, batch, p.per_epoch, spread, p.steps, p.epoch(p.steps), p.val_every,
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
    if skipping is None or trainer.on_nan == "raise":
        raise FloatingPointError(f"{words}. Nothing was updated; trainer.on_nan=skip leaves such steps out.")
    skipping.take_back()
    state.skips["total"] += 1
    state.skips["in_a_row"] += 1
    if state.skips["in_a_row"] > trainer.max_skips:
        raise FloatingPointError(f"{words}; trainer.max_skips={trainer.max_skips} steps in a row were skipped before.")
    log.warning("SKIPPED: %s (%d skipped so far)", words, state.skips["total"])


def _test_best(
    state: TrainState, data: Any, cfg: Any, tracker: Tracker | Silent, p: Plan, device: torch.device
) -> dict[str, float]:
    best = tracker.folder / checkpoint.FOLDER / "best.pt"
    if state.best is not None and best.exists():  # not where the monitored metric was never a number
        content = checkpoint.load(best)
        state.evaluated.load_whole(content["ema"] or content["model"])
        loss_modules(state.tasks).load_state_dict(content["losses"])
    test = split_batches(data, "test", cfg, state.tasks, state.unreadable)
    metrics = evaluate(state.evaluated, state.tasks, test, device)
    tracker.log("test", state.best_step, p.epoch(state.best_step), metrics)
    log.info("%s", report.task_table(f"best model (step {state.best_step}): test", metrics))
    write_examples(tracker.folder, state.evaluated, state.tasks, data, device, cfg.trainer.examples)
    return metrics
