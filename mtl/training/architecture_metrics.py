"""What an architecture says of its last forward pass: its gates, what they select, its penalties."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mtl.architectures.multi_input import Concatenated
from mtl.architectures.read import readers
from mtl.distributed.collectives import all_gather_object
from mtl.model import MultiTaskModel
from mtl.strategies import StepResult

PENALTY = "architecture/penalty/"


def architecture_metrics(model: MultiTaskModel, result: StepResult) -> dict[str, float]:
    """By their logged names, as ``architecture/gate/<task>/<expert>``, for the tasks of a step.

    Over several ranks the mean of what each had in its last batch with the task; a penalty is the whole batch's.
    """
    said = [module for _, module in _parts(model, result) if hasattr(module, "logged")]
    if not (said or result.penalties):
        return {}
    named = dict(_logged(model, result)) | {f"{PENALTY}{task}": value for task, value in result.penalties.items()}
    numbers = torch.stack([value.double() for value in named.values()]).tolist() if named else []
    ranks = all_gather_object(dict(zip(named, numbers, strict=True)))
    metrics = {}
    for name in dict.fromkeys(name for own in ranks for name in own):
        values = [own[name] for own in ranks if name in own]
        metrics[name] = sum(values) / (1 if name.startswith(PENALTY) else len(values))
    return metrics


def _parts(model: MultiTaskModel, result: StepResult) -> Iterator[tuple[str, nn.Module]]:
    """The trunk and the readers that speak for themselves, with the ending of their metrics' names."""
    trunk = model.backbone
    yield "", trunk.backbone if isinstance(trunk, Concatenated) else trunk
    yield from ((f"/{task}", reader) for task, reader in readers(model) if task in result.losses)


def _logged(model: MultiTaskModel, result: StepResult) -> Iterator[tuple[str, Tensor]]:
    for ending, module in _parts(model, result):
        values: dict[str, Tensor] = module.logged() if hasattr(module, "logged") else {}  # type: ignore[operator]
        for name, value in values.items():
            entries = [("", value)] if not value.dim() else [(f"/{i}", entry) for i, entry in enumerate(value)]
            yield from ((f"architecture/{name}{ending}{number}", entry) for number, entry in entries)
