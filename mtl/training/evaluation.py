"""The losses and metrics of every task over a split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from mtl.data.loader import closing
from mtl.distributed.collectives import all_reduce
from mtl.distributed.data_parallel import broadcast_buffers
from mtl.engine.engine import Engine
from mtl.system.environment import forked_rng
from mtl.tasks import Task, count_labels, loss_modules, present_tasks
from mtl.training.loaders import to_device


def evaluate(engine: Engine, batches: Iterable, device: torch.device) -> dict[str, float]:
    """The loss and the metrics of every task over ``batches``; tasks without a label are not in the result.

    A task's loss is the mean of its batches' losses, weighted by their numbers of labels. ``loss/total`` is the sum of
    the tasks' losses whatever the weighting, so that it can be compared between strategies. Every rank evaluates its
    own batches; the result is that of all.
    """
    broadcast_buffers(engine.model)
    tasks = engine.tasks
    sums, counts, present = (dict.fromkeys((task.name for task in tasks), 0.0) for _ in range(3))
    for task in tasks:
        for metric in task.metrics.values():
            metric.reset()
    with inference(engine), closing(batches) as iterator:
        for batch in iterator:
            inputs, targets = to_device(batch, device)
            for task, prediction in predictions(engine, inputs, targets):
                target = targets[task.name]
                count = count_labels(task, target)
                if count:  # class weights of 0 alone leave a mean of nothing
                    with engine.autocast():  # it computes losses in float32
                        sums[task.name] += task.loss(prediction, target).item() * count
                counts[task.name] += count
                present[task.name] += 1
                task.update_metrics(prediction, target)
    own = torch.tensor([[*numbers.values()] for numbers in (sums, counts, present)], dtype=torch.float64)
    sums, counts, present = (dict(zip(sums, row, strict=True)) for row in all_reduce(own).tolist())
    results = {f"loss/{name}": sums[name] / count for name, count in counts.items() if count}
    if results:  # a sum of nothing would be the least of all losses
        results["loss/total"] = sum(results.values())
    for task in (task for task in tasks if present[task.name]):
        results |= {f"{task.name}/{name}": metric.compute().item() for name, metric in task.metrics.items()}
    return results


@contextmanager
def inference(engine: Engine) -> Iterator[None]:
    """Evaluation mode without gradients; the model runs eager and unsharded, so that mtl-eval gets the same numbers."""
    parts = [engine.model, *loss_modules(engine.tasks).values()]
    training = [part.training for part in parts]
    for part in parts:
        part.eval()
    devices = {p.device for p in engine.model.parameters()}
    try:
        # The training goes on with its own random numbers, also where a module draws some in evaluation.
        with engine.eager_unsharded(), torch.inference_mode(), forked_rng(devices):
            yield
    finally:
        for part, was in zip(parts, training, strict=True):
            part.train(was)


def predictions(engine: Engine, inputs: Any, targets: Mapping[str, Any]) -> Iterator[tuple[Task, Any]]:
    """One head after the other, each task that has a label in the batch, with its prediction."""
    features = engine.features(inputs)
    for task in present_tasks(engine.tasks, targets):
        yield task, engine.predict(task.name, features)
