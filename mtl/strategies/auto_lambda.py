from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from mtl.engine.engine import Engine
from mtl.engine.look import Batch, losses_at
from mtl.errors import require, suggestion
from mtl.strategies.base import require_equal
from mtl.strategies.detached import Detached
from mtl.weightings import Weighting
from mtl.weightings.adam import Adam
from mtl.weightings.task_weighting import TaskWeighting

log = logging.getLogger(__name__)

Parameters: TypeAlias = Mapping[str, Tensor]  # by their names in the model
RADIUS = 0.01  # of the finite difference, in all parameters together


class Lambdas(TaskWeighting):
    """The weights ``lambdas`` [K] of the losses, which Adam moves along gradients that it is given."""

    affine = True
    lambdas: Tensor

    def __init__(self, tasks: Sequence[str], lr: float, initial: float) -> None:
        super().__init__(tasks)
        self.register_buffer("lambdas", torch.full((len(tasks),), float(initial)))
        self.adam = Adam(len(tasks), lr)

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """The loss times its weight."""
        return self.lambdas[self._index[task]] * loss

    def move(self, gradients: Mapping[str, Tensor]) -> None:
        """A step along the gradients of the tasks that have one."""
        gradient = self.vector(gradients)
        self.adam.step(self.lambdas, gradient.to(self.lambdas), gradient.isfinite())


class AutoLambda(Detached):
    """Auto-lambda: the weights whose training step lowers the losses of the ``primary`` tasks on another batch.

    A step draws two batches. With theta all parameters of the model, alpha the backbone's learning rate, where it has
    several the highest, and L_k the losses on the batch that trains::

        theta' = theta - alpha sum_k l_k dL_k/dtheta
        v = d/dtheta' of the sum of the primary tasks' losses on the other batch
        dl_k = -alpha (L_k(theta + e v) - L_k(theta - e v)) / (2 e),    e = 0.01 / |v|

    Adam, of rate ``lr``, moves the weights l, ``initial`` at first, along dl; then the batch trains with them. The
    other batch is of the training split too, in the paper's code in another order of it. It trains nothing, so that an
    epoch has half of the steps. Looking costs two forward and backward passes and two forward passes more, and keeps
    every head's graph and three copies of the parameters.

    ``primary``: tasks whose losses count, all of them by default; the other ones are trained as far as they help these.
    A weight may become negative. Its scale is what it is: with ``initial`` 0.1, the gradient is a tenth of the sum's.
    The weight of a task without labels in the batch that trains stays as it is, and every weight where the other batch
    has no label of a primary task. Both sides of the difference have the same dropout masks,
    and are computed without mixed precision, which would round the difference away.

    Promises: the weights lower the losses of the primary tasks on another batch, as far as one step of training tells.

    Fails for: noisy small batches, where the difference of two losses is noise; short runs, as ``lr`` is small and the
    weights move slowly.

    Source: Liu et al. 2022, "Auto-Lambda: Disentangling Dynamic Task Relationships". Its code adds the optimizer's
    momentum and weight decay to theta'.
    """

    draws = 2

    def __init__(
        self,
        weighting: Weighting,
        tasks: Sequence[str],
        primary: Sequence[str] | None = None,
        lr: float = 1e-4,
        initial: float = 0.1,
        token_chunks: int = 1,
    ) -> None:
        require_equal(type(self).__name__, weighting)
        require("initial", initial, "a finite number", math.isfinite(initial))
        super().__init__(Lambdas(tasks, lr, initial), token_chunks)
        self.primary = list(tasks if primary is None else [primary] if isinstance(primary, str) else primary)
        for task in self.primary:
            if task not in tasks:
                raise ValueError(f"primary={task} names no task; {suggestion(task, tasks)}.")
        if not self.primary:
            raise ValueError("primary=[] must name at least one task, or be null for all of them.")

    def look(self, engine: Engine, batches: Sequence[Batch], lr: float) -> None:
        """Move the weights by the first batch, and the one that trains."""
        other, training = batches
        own: Parameters = {name: p for name, p in engine.model.named_parameters() if p.requires_grad}
        primary = self._primary_gradient(engine, other, self._after_a_step(engine, training, own, lr))
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in primary.values()]))
        if not torch.isfinite(norm):
            log.warning("the gradient of the primary losses is not finite: Auto-lambda's weights stay in this step")
        elif norm > 0:
            assert isinstance(self.weighting, Lambdas)
            radius = RADIUS / norm
            above, below = (
                self._losses(
                    engine, training, {name: p.detach() + side * radius * primary[name] for name, p in own.items()}
                )
                for side in (1, -1)
            )
            self.weighting.move({task: -lr * (above[task] - below[task]) / (2 * radius) for task in above})
        self.looked = True

    def _after_a_step(self, engine: Engine, batch: Batch, parameters: Parameters, lr: float) -> Parameters:
        """The parameters after a plain gradient step on the weighted losses."""
        losses = [self.weighting(task, loss) for task, loss in losses_at(engine, batch).items()]
        gradients = _gradients(losses, parameters, engine.precision.scale)
        return {name: (p.detach() - lr * gradients[name]).requires_grad_() for name, p in parameters.items()}

    def _primary_gradient(self, engine: Engine, batch: Batch, parameters: Parameters) -> Parameters:
        losses = losses_at(engine, batch, parameters)
        primary = [loss for task, loss in losses.items() if task in self.primary]
        return _gradients(primary, parameters, engine.precision.scale)

    def _losses(self, engine: Engine, batch: Batch, parameters: Parameters) -> Parameters:
        """The losses without a graph, each time with the same random numbers.

        Not in mixed precision: e v is less than what bfloat16 and float16 can tell of a parameter.
        """
        devices = [engine.device] if engine.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            return losses_at(engine, batch, parameters, precise=True)


def _gradients(losses: Sequence[Tensor], parameters: Parameters, loss_scale: float) -> dict[str, Tensor]:
    """The gradient of the sum of ``losses``; zeros where they do not depend on a parameter."""
    learnable = [loss for loss in losses if loss.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(parameters)
    if learnable:
        vectors = [torch.full_like(loss, loss_scale) for loss in learnable]
        found = torch.autograd.grad(learnable, list(parameters.values()), vectors, allow_unused=True)
    pairs = zip(parameters.items(), found, strict=True)
    return {name: torch.zeros_like(p) if g is None else g / loss_scale for (name, p), g in pairs}
