"""The losses and metrics of every task over a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mtl.data.loader import Batches, RankSampler, closing, sequential
from mtl.distributed.collectives import all_reduce, get_rank, get_world_size, is_distributed
from mtl.distributed.data_parallel import broadcast_buffers
from mtl.engine.engine import Engine
from mtl.tasks import Task, count_labels, present_tasks


def evaluate(engine: Engine, batches: Iterable, device: torch.device) -> dict[str, float]:
    """The loss and the metrics of every task over ``batches``; absent tasks are not in the result.

    A task's loss is the mean of its batches' losses by their numbers of labels; ``loss/total`` is the tasks' plain sum,
    whatever the weighting, so that it can be compared between strategies.
    """
    model, tasks = engine.model, engine.tasks
    training = model.training
    model.eval()
    broadcast_buffers(model)
    sums, counts = dict.fromkeys((t.name for t in tasks), 0.0), dict.fromkeys((t.name for t in tasks), 0.0)
    for task in tasks:
        for metric in task.metrics.values():
            metric.reset()
    with engine.eager_unsharded(), torch.inference_mode(), closing(batches) as iterator:
        for batch in iterator:
            inputs, targets = to_device(batch, device)
            features = engine.features(inputs)
            for task in present_tasks(tasks, targets):
                prediction, target = engine.predict(task.name, features), targets[task.name]
                count = count_labels(task, target)
                with engine.autocast():  # which has losses computed in float32
                    sums[task.name] += task.loss(prediction, target).item() * count
                counts[task.name] += count
                for metric in task.metrics.values():
                    metric.update(prediction, target)
    model.train(training)
    everywhere = all_reduce(torch.tensor([*sums.values(), *counts.values()], dtype=torch.float64)).tolist()
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
    keys = sequential(len(dataset), data.batch_size, limit) if keys is None else keys
    return Batches(
        dataset,
        RankSampler(keys, get_rank(), get_world_size()) if is_distributed() else keys,
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
