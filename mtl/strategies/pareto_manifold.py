from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtl.engine.engine import Engine
from mtl.engine.result import StepResult
from mtl.errors import require, require_positive
from mtl.members import Preference, preference_of
from mtl.model import MultiTaskModel
from mtl.strategies.base import require_equal
from mtl.strategies.detached import Detached
from mtl.weightings import Weighting
from mtl.weightings.task_weighting import TaskWeighting

log = logging.getLogger(__name__)


class Shares(TaskWeighting):
    """The losses by the preference of the moment: the weight [K] of each is set, and nothing is learned."""

    affine = True
    current: Tensor

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(tasks)
        self.register_buffer("current", torch.ones(len(tasks)), persistent=False)

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """The loss times its weight."""
        return self.current[self._index[task]] * loss

    def set(self, weights: Tensor) -> None:
        """Use these weights [K] from now on."""
        self.current.copy_(weights, non_blocking=True)


class ParetoManifold(Detached):
    """Pareto manifold learning: one model for the whole front, of which every preference is a mixture.

    The model has a member theta_k for each of the K tasks. A step draws W preferences (``preferences``). For each it
    runs the mixture on the batch, heads one at a time as in Detached, and the trunk backward once::

        l ~ Dirichlet(p, ..., p),   theta(l) = sum_k l_k theta_k,   d_k = 1/W sum over l of d/dtheta_k K sum_j l_j L_j

    with L_j the losses at theta(l), so that member k gets l_k of the gradient there. The factor K gives weights of one
    on average, those of the sum of the losses. ``concentration`` is p: 1 draws all preferences alike, less draws more
    at the corners. ``part``: submodules of the backbone, or patterns of its parameters' names, outside of which all
    preferences share the parameters; heads always have members. mtl.members says what else has none.

    Members of random weights are each drawn by themselves; those of pretrained ones begin as copies, with a little
    noise. Between steps, and so in validation, the shares are equal. ``mtl-eval RUN preference=[0.3,0.7]`` chooses
    others, as do ``mtl-predict --preference`` and ``mtl.load``. Losses in the log are means over the drawn preferences,
    and a measured conflict is that of the last one. All ranks draw the same.

    Batch normalisation is refused, unless it is frozen: its running mean and variance are of a mixture over all draws,
    and wrong at each preference. On the digits, a small residual network was at chance with them, and at accuracies of
    0.78 and 0.71 with those of the preference alone. Layer and group normalisation have none.

    Promises: every mixture of the members is trained, so that one model has a front, continuous in the preference.

    Fails for: fronts that bend more than a mixture of weights can; large models, as it has K times the parameters.

    Source: Dimitriadis et al. 2023, "Pareto Manifold Learning: Tackling multiple tasks via ensembles of single-task
    models", without its penalty on the order of the losses.
    """

    has_members = True

    def __init__(
        self,
        weighting: Weighting,
        tasks: Sequence[str],
        seed: int = 0,
        preferences: int = 1,
        concentration: float = 1.0,
        part: str | Sequence[str] | None = None,
        token_chunks: int = 1,
    ) -> None:
        require_equal(type(self).__name__, weighting)
        require_positive(preferences=preferences)
        require("concentration", concentration, "above 0", 0 < concentration < np.inf)
        super().__init__(Shares(tasks), token_chunks)
        self.preferences, self.alpha = preferences, np.full(len(tasks), float(concentration))
        self.random = np.random.default_rng(seed)

    def bind(self, model: MultiTaskModel) -> None:
        """ValueError for a model without members, and for a penalty that every preference would count again."""
        tasks = _found(model).tasks
        if self.preferences > 1 and any(callable(getattr(module, "penalty", None)) for module in model.heads.modules()):
            raise ValueError(
                f"strategy.preferences={self.preferences} must be 1: every preference would add a head's penalty anew."
            )
        log.info("a member for each of %s; validation and test are at equal shares of them", ", ".join(tasks))

    def run(
        self, engine: Engine, inputs: Any, targets: Mapping[str, Any], measure: bool = False, audit: bool = False
    ) -> StepResult:
        """As every strategy's, once for each preference that it draws; their gradients add up."""
        preference, results = _found(engine.model), []
        assert isinstance(self.weighting, Shares)
        for number in range(self.preferences):
            is_last = number == self.preferences - 1
            shares = self.draw()
            self.weighting.set(shares * (len(shares) / self.preferences))
            with preference.held(shares), nullcontext() if is_last else engine.no_sync():
                results.append(super().run(engine, inputs, targets, measure and is_last, audit and is_last))
        return _together(results)

    def draw(self) -> Tensor:
        """The next preference [K]."""
        return torch.from_numpy(self.random.dirichlet(self.alpha)).float()

    def get_extra_state(self) -> dict[str, Any]:
        """The generator's state."""
        return {"random": self.random.bit_generator.state}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from a generator's state."""
        self.random.bit_generator.state = state["random"]


def _found(model: MultiTaskModel) -> Preference:
    preference = preference_of(model)
    if preference is None:
        raise ValueError("strategy=pareto_manifold finds no members in the model: call mtl.members.add_members before.")
    return preference


def _together(results: Sequence[StepResult]) -> StepResult:
    """Losses: means over the preferences. Weights: their sums, as the gradients are."""
    *_, last = results
    if len(results) == 1:
        return last
    losses = {n: torch.stack([r.losses[n] for r in results]).mean() for n in last.losses}
    weights = {n: torch.stack([torch.as_tensor(r.weights[n]) for r in results]).sum() for n in last.weights}
    return replace(last, losses=losses, weights=weights)
