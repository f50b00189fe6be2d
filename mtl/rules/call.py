"""How a rule is called: ours, which may take more than the Gram matrix, and those of other libraries, which do not."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl.rules.solvers import SolverError

Losses = Mapping[str, Tensor]
Offsets = Sequence[Sequence[tuple[int, int, int]]]


class RuleCall:
    """``rule`` for the tasks of a run, of which a batch may lack some.

    ``every``: batches between two runs of the rule; its last weights stay in between. ``scale``: the factor that puts
    the rule's weights on the scale where weights of one give the gradient of the sum of the losses; ``tasks`` is the
    number of tasks in the batch. ``smoothing``: the share alpha of the last weights in the new ones,
    ``alpha w_{t-1} + (1 - alpha) rule(G)``. The average begins anew, with the rule's own weights, where the tasks in
    the batch change.

    Source: Zhou et al. 2022, "On the Convergence of Stochastic Multi-Objective Gradient Manipulation and Beyond",
    algorithm 1 (CR-MOGM), with a constant alpha. With ``every`` it is PSMGD (Xu et al. 2025).
    """

    def __init__(
        self,
        rule: nn.Module,
        tasks: Sequence[str],
        every: int = 1,
        scale: float | str = 1.0,
        smoothing: float = 0.0,
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every} must be 1 or more.")
        if isinstance(scale, str) and scale != "tasks":
            raise ValueError(
                f"scale={scale} must be a number, or the word 'tasks' for the number of tasks in the batch."
            )
        self.rule: Any = rule
        self.tasks, self.every, self.scale, self.smoothing = list(tasks), every, scale, smoothing
        self.needs_rows: bool = getattr(rule, "needs_rows", False)
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing={smoothing} must be 0 or more and below 1.")
        if smoothing and self.needs_rows:
            raise ValueError(f"smoothing={smoothing} averages weights, but {type(rule).__name__} gives a direction.")
        called: Any = self.rule.combine if self.needs_rows else self.rule.forward
        arguments = inspect.signature(called).parameters
        self._takes = set(arguments)
        self.takes_offsets = "offsets" in arguments  # where in the batch of all ranks this rank's elements lie
        losses = arguments.get("losses")
        self.needs_losses = losses is not None and losses.default is inspect.Parameter.empty
        # Numbers that every step reads: no buffers, which would follow the model to its device.
        self.steps = 0
        self.solved: list[str] = []  # the tasks that the last weights were found for
        self.last_weights = dict.fromkeys(self.tasks, 1.0)

    def is_due(self, names: Sequence[str]) -> bool:
        """Whether the rule runs on this batch of the tasks ``names``; counts the batch."""
        # Weights that were found for other tasks mean nothing: when one comes or goes, the rule runs anew.
        due = self.steps % self.every == 0 or list(names) != self.solved
        self.steps += 1
        return due

    def solve(self, gram: Tensor, names: Sequence[str], losses: Losses) -> Tensor:
        """The rule's ``weights``, which stay until it runs the next time; one batch where a gradient was not finite."""
        weights = self.weights(gram, names, losses)
        if self.smoothing and list(names) == self.solved:
            weights = self.smoothing * self.last(names) + (1 - self.smoothing) * weights
        found = dict(zip(names, weights.tolist(), strict=True))
        self.last_weights |= found
        self.solved = list(names) if all(map(math.isfinite, found.values())) else []  # else it runs anew at once
        return weights

    def weights(self, gram: Tensor, names: Sequence[str], losses: Losses) -> Tensor:
        """The weights [K] for a Gram matrix [K, K], in float64 on the CPU; SolverError where they are not finite."""
        weights = self.rule(gram, **self._context(names, losses)).detach().double().cpu()
        # A matrix that is not finite gives such weights, so that the gradient shows it, as in plain training.
        if torch.isfinite(gram).all() and not torch.isfinite(weights).all():
            raise SolverError(f"{type(self.rule).__name__} gave weights that are not finite: {weights.tolist()}.")
        return weights

    def combine(
        self, rows: list[Tensor], gram: Tensor, names: Sequence[str], losses: Losses, offsets: Offsets | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """The direction that a rule on rows makes of them, times the scale, and the weights [K] to log, without it.

        ``rows``: one ``[K, n_i]`` a block; the direction is one ``[n_i]`` a block. ``offsets``: Rows.offsets_in_batch.
        """
        context = self._context(names, losses)
        if offsets is not None:
            context["offsets"] = offsets
        direction, weights = self.rule.combine(rows, gram, **context)
        scale = self.scale_for(names)
        return [scale * block for block in direction], weights.double().cpu()

    def last(self, names: Sequence[str]) -> Tensor:
        """The last weights [K] of the tasks ``names``."""
        return torch.tensor([self.last_weights[name] for name in names], dtype=torch.float64)

    def scale_for(self, names: Sequence[str]) -> float:
        """The scale of the weights in a batch of the tasks ``names``."""
        return float(len(names)) if self.scale == "tasks" else float(self.scale)

    def by_task(self, names: Sequence[str], weights: Tensor) -> dict[str, float]:
        """What each task's gradient is multiplied by: its weight times the scale."""
        scale = self.scale_for(names)
        return {name: scale * weight for name, weight in zip(names, weights.tolist(), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """The batches so far, and each task's last weight."""
        return {"steps": self.steps, "solved": list(self.solved), "last_weights": dict(self.last_weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from another's; ValueError if it had other tasks."""
        if list(state["last_weights"]) != self.tasks:
            saved = ", ".join(state["last_weights"])
            raise ValueError(f"The strategy was saved with the tasks {saved}; it has {', '.join(self.tasks)}.")
        self.steps, self.solved = state["steps"], list(state["solved"])
        self.last_weights = dict(state["last_weights"])

    def _context(self, names: Sequence[str], losses: Losses) -> dict[str, Any]:
        context: dict[str, Any] = {}
        if "losses" in self._takes and losses:
            context["losses"] = torch.stack([losses[name] for name in names])
        if "present" in self._takes:
            context["present"] = [self.tasks.index(name) for name in names]
        return context
