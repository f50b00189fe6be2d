"""What a training step would fail on, or do otherwise than its user thinks, said before the first one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from mtl.config.dry_run import two_samples
from mtl.config.in_place import innermost_module
from mtl.config.loss_means import NotTold, is_known_mean, is_mean
from mtl.config.restored import restored
from mtl.data.own_inputs import OwnInputs
from mtl.distributed.collectives import get_world_size
from mtl.errors import ConfigError, reason_of
from mtl.tasks import Task

log = logging.getLogger(__name__)

RARE = 1e-6  # the chance of a batch that is not worth refusing a run


def rehearse(parts: Any, trainer: Any, targets: Callable[[], Mapping[str, Any]]) -> None:
    """Run the model as in training, on the smallest batch that it gets, and compare the losses with means.

    ``targets``: gives those of several training samples; asked only where a loss is not known to be a mean. ConfigError
    for a module that cannot train on one sample, and for a loss that several processes cannot compute in parts.
    """
    ranks = 1 if trainer.sync_batchnorm else get_world_size()  # statistics are those of all processes
    _try_lone_samples(parts, ranks)
    pieces = trainer.accumulate_grad_batches if trainer.accumulate == "exact" else 1
    together = min(len(parts.data.train), parts.data.batch_size * pieces)
    tried = [task for task in parts.tasks if not is_known_mean(task.loss)]
    if together // ranks == 0 or (together // ranks // pieces > 1 and not tried):
        return  # without a sample for each process, their preparation says so
    predictions = _predict(parts, together // ranks, ranks, pieces)
    labels = targets() if tried else {}
    for task in tried:
        if task.name in labels:
            _check_loss(task, predictions[task.name], labels[task.name], parts.data.batch_size, trainer)


def _check_loss(task: Task, prediction: Any, target: Any, batch_size: int, trainer: Any) -> None:
    """Refuse a loss that is no mean where processes have parts of a batch, and say what it sees elsewhere."""
    ranks, accumulated = get_world_size(), trainer.accumulate_grad_batches
    name = f"losses.{task.name} ({getattr(task.loss, '__name__', type(task.loss).__name__)})"
    try:
        if is_mean(task, prediction, target):
            return
    except NotTold as reason:
        if ranks > 1:
            log.warning(
                "%s: %s, so that nobody has checked that it is the mean over its labels; each process has a part of "
                "the batch, and only for such a mean they train as one process does.", name, reason,
            )  # fmt: skip
        return
    if ranks > 1 and getattr(task.loss, "reduction", None) == "sum":
        raise ConfigError(
            f"losses.{task.name}.reduction=sum: with several processes a loss must be the mean over its labels, "
            "because each process has a part of them; use reduction=mean."
        )
    if ranks > 1:
        raise ConfigError(
            f"{name} is not the mean over its labels: with several processes (trainer.devices={ranks}) each has a part "
            "of the batch, and the losses of parts do not add up to it; use one process, or a loss that is one. A mean "
            "over some of its targets tells which by a method labelled(target) -> mask."
        )
    if trainer.accumulate == "micro" and accumulated > 1:
        log.warning(
            "%s is not the mean over its labels: of %d accumulated batches it sees one at a time; with "
            "trainer.accumulate=exact it sees all their samples.", name, accumulated,
        )  # fmt: skip
    log.info(
        "%s is not the mean over its labels: val and test have the mean of its values on batches of %d, and depend on "
        "data.batch_size; a loss that leaves labels out says which by ignore_index or labelled(target)",
        name, batch_size,
    )  # fmt: skip


def _try_lone_samples(parts: Any, ranks: int) -> None:
    """Run the heads on one sample, where every task has inputs of its own and a batch may have one of it alone."""
    data = parts.data
    if not isinstance(data.train, OwnInputs):
        return
    lone = [t.name for t in parts.tasks if data.train.chance_of_one(t.name, data.batch_size // ranks) > RARE]
    if not lone:
        return
    said = f"data.sampling leaves one sample of {', '.join(lone)} in some batches (equal does not)"
    with restored(parts.model), torch.no_grad(), parts.engine.autocast():
        parts.model.train()
        features = _run("backbone", parts.model.backbone, _first(two_samples(parts.example), 1), said)
        for task in lone:
            _run(f"heads.{task}", parts.model.heads[task], features, said)


def _predict(parts: Any, few: int, ranks: int, pieces: int) -> dict[str, Any]:
    """Every task's prediction, as in training, for one sample or two; ``few``: the samples of a process."""
    model, fewest = parts.model, few // pieces
    said = _few_samples(parts.data.batch_size, ranks, pieces)
    with restored(model), torch.no_grad(), parts.engine.autocast():
        model.train()
        example = two_samples(parts.example)
        if fewest < 2 <= few:
            _run("backbone", model.backbone, _first(example, 1), said)
        features = _run("backbone", model.backbone, _first(example, 1) if few < 2 else example, said)
        return {name: _run(f"heads.{name}", head, features, said) for name, head in model.heads.items()}


def _run(name: str, module: nn.Module, values: Any, few_samples: str) -> Any:
    try:
        return module(values)
    except Exception as error:
        path, inner = innermost_module(module, values)
        named = f"{name}{path and '.'}{path} ({type(inner).__name__})"
        if isinstance(inner, _BatchNorm) and "more than 1 value" in str(error):
            raise ConfigError(
                f"{few_samples}, and {named} needs more than one value per channel in training; use a larger "
                "data.batch_size, or a normalisation without statistics of the batch."
            ) from error
        raise ConfigError(f"{named} cannot run in training: {reason_of(error)}") from error


def _few_samples(batch_size: int, ranks: int, pieces: int) -> str:
    among = [f"{ranks} processes"] * (ranks > 1) + [f"{pieces} pieces (trainer.accumulate=exact)"] * (pieces > 1)
    each = " and ".join(among)
    return f"data.batch_size={batch_size} leaves one sample" + (f" for each of {each}" if each else " a batch")


def _first(values: Any, count: int) -> Any:
    return pytree.tree_map_only(Tensor, lambda leaf: leaf[:count] if leaf.dim() else leaf, values)
