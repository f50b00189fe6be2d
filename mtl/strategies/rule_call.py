"""How a rule is called: ours, which may take more than the Gram matrix, and those of other libraries, which do not."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl.engine.step import Step
from mtl.gradients.cut import Direction
from mtl.gradients.spaces import FeatureSpace, ParameterSpace
from mtl.model import graph_tensors
from mtl.rules.solvers import SolverError

Losses = Mapping[str, Tensor]


class RuleCall:
    """``rule`` for the tasks of a run, of which a batch may lack some."""

    def __init__(self, rule: nn.Module, tasks: Sequence[str]) -> None:
        self._rule: Any = rule
        self._tasks = list(tasks)
        self.needs_rows: bool = getattr(rule, "needs_rows", False)
        called: Any = self._rule.combine if self.needs_rows else self._rule.forward
        self._takes = set(inspect.signature(called).parameters)

    def weights(self, gram: Tensor, names: Sequence[str], losses: Losses) -> Tensor:
        """The weights [K] for a Gram matrix [K, K], in float64 on the CPU; SolverError where they are not finite."""
        return self._weights(self._rule, gram, names, losses)

    def trial_weights(self, gram: Tensor, names: Sequence[str], losses: Losses) -> Tensor:
        """The same from a copy of the rule, which learns nothing from it."""
        return self._weights(copy.deepcopy(self._rule, graph_tensors(self._rule)), gram, names, losses)

    def combine(self, space: FeatureSpace | ParameterSpace, step: Step, losses: Losses) -> tuple[Direction, Tensor]:
        """The direction that a rule on rows makes of them, and the weights [K] to log."""
        assert step.gram is not None
        context = self._context(step.names, losses)
        if "offsets" in self._takes and isinstance(space, FeatureSpace):
            samples, rank = step.batch.samples, step.engine.reducer.rank
            context["offsets"] = space.rows.offsets_in_batch(sum(samples[:rank]), sum(samples))
        blocks, weights = self._rule.combine(space.rows.blocks(), step.gram, **context)
        return space.unflatten(blocks), space.mean_weights(weights.double().cpu(), step.gram)

    def _weights(self, rule: Any, gram: Tensor, names: Sequence[str], losses: Losses) -> Tensor:
        weights = rule(gram, **self._context(names, losses)).detach().double().cpu()
        # A matrix that is not finite gives such weights, so that the gradient shows it, as in plain training.
        if torch.isfinite(gram).all() and not torch.isfinite(weights).all():
            raise SolverError(f"{type(rule).__name__} gave weights that are not finite: {weights.tolist()}.")
        return weights

    def _context(self, names: Sequence[str], losses: Losses) -> dict[str, Any]:
        context: dict[str, Any] = {}
        if "losses" in self._takes:
            context["losses"] = torch.stack([losses[name] for name in names])
        if "present" in self._takes:
            context["present"] = [self._tasks.index(name) for name in names]
        return context
