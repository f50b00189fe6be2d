"""How large a model is: its parameters, and the multiply-adds of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mtl.architectures.read import readers
from mtl.engine.engine import Engine
from mtl.model import MultiTaskModel
from mtl.system.environment import forked_rng
from mtl.tasks import batch_size


def parameter_counts(model: MultiTaskModel) -> dict[str, Any]:
    """The numbers that are ``shared`` by the tasks, those in each task's ``readers`` and ``heads``, and in ``total``.

    A parameter that several heads hold counts in each of them, and once in the total.
    """
    own = {task: _count(reader) for task, reader in readers(model)}
    return {
        "shared": _count(model.backbone),
        "readers": own,
        "heads": {task: _count(head) - own.get(task, 0) for task, head in model.heads.items()},
        "total": _count(model),
    }


def multiply_adds(engine: Engine, inputs: Any) -> int:
    """Those of a sample's forward pass through the trunk and all heads, on the samples ``inputs``.

    Counted in matrix products, convolutions and attention, by torch; other operations are left out.
    """
    model, training = engine.model, engine.model.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), engine.eager_unsharded(), forked_rng([engine.device]), _untrained(model), counter:
        model.eval()
        features = engine.features(inputs)
        for task in model.heads:
            engine.predict(task, features)
    model.train(training)
    return counter.get_total_flops() // 2 // batch_size(inputs)


@contextmanager
def _untrained(model: nn.Module) -> Iterator[None]:
    """Parameters without a gradient: torch's counter wants the graph of every output that needs one.

    Under no_grad a view of a parameter, as an expanded one, needs a gradient and has no graph.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
