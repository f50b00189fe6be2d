from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mtl.engine.engine import Engine
from mtl.engine.heads import Heads
from mtl.engine.look import Batch, parameter_gram
from mtl.engine.step import Step
from mtl.errors import require
from mtl.rules.sdmgrad import normalised_weights
from mtl.rules.solvers import project_onto_simplex
from mtl.strategies.base import Strategy, require_equal
from mtl.weightings import Weighting

log = logging.getLogger(__name__)


class MoDo(Strategy):
    """Weights that follow the shortest convex combination of the task gradients, by independent batches.

    A step draws three batches. The task gradients at the trunk's parameters of the first two, rows of G_1 and G_2, move
    the weights, and the third trains with them::

        l <- P(l - gamma (G_1 G_2' + rho I) l),   d = scale * sum_k l_k g_3k

    with P the projection onto the simplex; l starts at 1/K. So the step of l is unbiased. On one batch ``G_1 G_1'``
    would have the gradients' variance in its diagonal, and noisy tasks less weight. The step costs 2 K backwards of the
    trunk for the weights, and one. The first two batches train nothing, and leave running statistics alone: an epoch
    has a third of the steps.

    The weights of the tasks in both batches move and keep their sum. A task that is missing in one keeps its weight. A
    zero gradient attracts weight, as in MGDA. Heads get the gradient of their own loss, in the third batch. ``scale``
    ``tasks``: K, where the weights of one are those of the sum of the losses.

    Promises: that of MGDA, without the bias that the noise of one batch brings.

    Fails for: little data, as an epoch has a third of the steps; what MGDA fails for.

    Source: Chen et al. 2023, "Three-Way Trade-Off in Multi-Objective Learning", with the defaults of the official code,
    which has both this form and the journal's (2024, equation 2.9): the third batch is the mean of the first two.
    """

    draws = 3

    def __init__(
        self,
        weighting: Weighting,
        tasks: Sequence[str],
        gamma: float = 0.1,
        rho: float = 0.1,
        scale: float | str = "tasks",
        token_chunks: int = 1,
    ) -> None:
        super().__init__(weighting, "features", token_chunks)
        require_equal(type(self).__name__, weighting)
        require("gamma", gamma, "above 0", 0 < gamma < np.inf)
        require("rho", rho, "0 or more", 0 <= rho < np.inf)
        require("scale", scale, "a number, or the word 'tasks'", scale == "tasks" or not isinstance(scale, str))
        self.gamma, self.rho = gamma, rho
        self.scale = float(len(tasks)) if scale == "tasks" else float(scale)
        # Numbers that every step reads: no buffer, which would follow the model to its device.
        self.weights = dict.fromkeys(tasks, 1 / len(tasks))

    def look(self, engine: Engine, batches: Sequence[Batch], lr: float) -> None:
        """Move the weights by the first two batches."""
        names, gram = parameter_gram(engine, batches[:2])
        product = gram[: len(names), len(names) :].numpy()  # G_1 G_2'
        if not np.isfinite(product).all():
            log.warning("the task gradients of a batch are not finite: MoDo's weights stay as they are in this step")
        elif names:
            stored = np.array([self.weights[name] for name in names])
            weights, total = normalised_weights(stored, np.arange(len(names)))
            weights = project_onto_simplex(weights - self.gamma * (product @ weights + self.rho * weights))
            self.weights |= zip(names, (total * weights).tolist(), strict=True)
        self.looked = True

    def backward(self, step: Step) -> None:
        """As Detached, with each task's gradient times its weight on its way into the trunk."""
        factors = {name: self.scale * self.weights[name] for name in step.names}
        cut = step.cut()
        heads = Heads(step, cut, factors=factors)
        for head in heads:
            head.backward()
        heads.release()
        step.rule_weights = factors
        step.measure_conflict(cut)
        cut.backward(weights=torch.tensor(list(factors.values()), dtype=torch.float64))

    def get_extra_state(self) -> dict[str, Any]:
        """Each task's weight."""
        return {"weights": dict(self.weights)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from another run's; ValueError if it had other tasks."""
        if list(state["weights"]) != list(self.weights):
            saved = ", ".join(state["weights"])
            raise ValueError(f"The strategy was saved with the tasks {saved}; it has {', '.join(self.weights)}.")
        self.weights = dict(state["weights"])
