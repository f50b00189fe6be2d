"""The weight that every task had over a run; which task has next to none, and which loss has no weight at all."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mtl.weightings import Weighting

log = logging.getLogger(__name__)

STRETCH = 100  # steps over which a task's weight is averaged before it counts as next to none
SHORTEST = 10  # steps of a stretch in a shorter run, and steps of a stretch that must have the task
LEAST = 0.01  # of the tasks' mean


@dataclass
class Sums:
    """One task's sums over some steps: how many had it, its weights, and its weights times its losses."""

    steps: int = 0
    weight: float = 0.0
    weighted_loss: float = 0.0


class WeightAverage:
    """Each task's mean weight over a run, over the current stretch of it, and its last weight.

    The weight is the product of the weighting's and the rule's. A task counts in the steps that have a label of it.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self._run = {task: Sums() for task in tasks}
        self._stretch = {task: Sums() for task in tasks}
        self._last: dict[str, float] = {}
        self.steps = 0  # of the stretch

    def update(self, losses: Mapping[str, float], weights: Mapping[str, float]) -> None:
        """Add a step that was taken."""
        self.steps += 1
        for task, weight in weights.items():
            for sums in (self._run[task], self._stretch[task]):
                sums.steps += 1
                sums.weight += weight
                sums.weighted_loss += weight * abs(losses[task])
        self._last |= weights

    def by_task(self) -> dict[str, dict[str, float]]:
        """Each task's ``mean`` and ``last`` weight; without those that were in no step."""
        seen = {task: sums for task, sums in self._run.items() if sums.steps}
        return {task: {"mean": sums.weight / sums.steps, "last": self._last[task]} for task, sums in seen.items()}

    def end_stretch(self, chosen: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
        """The mean weights of the stretch, and the tasks that hardly count in it; then a new stretch begins.

        Both are relative to the weights that the user has ``chosen``. A task hardly counts if its weight and its
        weighted loss are both below LEAST of the tasks' mean: a loss in a larger unit has a smaller weight by right.
        """
        means, parts = {}, {}
        for task, sums in self._stretch.items():
            if sums.steps >= SHORTEST and chosen[task]:
                means[task] = sums.weight / sums.steps / chosen[task]
                parts[task] = sums.weighted_loss / sums.steps / chosen[task]
        self._stretch, self.steps = {task: Sums() for task in self._stretch}, 0
        return means, [task for task in means if _hardly(means, task) and _hardly(parts, task)]

    def state_dict(self) -> dict[str, Any]:
        """All sums, in plain types."""
        run, stretch = ({task: asdict(sums) for task, sums in part.items()} for part in (self._run, self._stretch))
        return {"run": run, "stretch": stretch, "last": dict(self._last), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what another average has saved."""
        state = copy.deepcopy(state)
        self._run, self._stretch = ({t: Sums(**s) for t, s in state[part].items()} for part in ("run", "stretch"))
        self._last, self.steps = state["last"], state["steps"]


def _hardly(values: Mapping[str, float], task: str) -> bool:
    return values[task] < LEAST * sum(map(abs, values.values())) / len(values)


class WeightWarnings:
    """Says once for each task that it has next to no weight, or a loss that the weighting is not made for."""

    def __init__(self, average: WeightAverage, weighting: Weighting, tasks: Sequence[str], steps: int) -> None:
        self._average, self._weighting = average, weighting
        self._chosen = {task: weighting.chosen(task) for task in tasks}
        self._stretch = min(STRETCH, steps)
        self._said: set[tuple[str, str]] = set()

    def check(self, step: int, losses: Mapping[str, float]) -> None:
        """Look at a step that was taken, and at the stretch that may end with it."""
        for task, loss in losses.items():
            what = self._weighting.out_of_domain(task, loss)
            if what is not None and self._is_new("domain", task):
                name = type(self._weighting).__name__
                log.warning("step %d: the loss of %s is %.3g, and the weighting %s: %s.", step, task, loss, name, what)
        if self._average.steps < self._stretch:
            return
        begin = step - self._average.steps + 1
        means, forgotten = self._average.end_stretch(self._chosen)
        every = ", ".join(f"{task} {mean:.3g}" for task, mean in means.items())
        for task in forgotten:
            if self._is_new("weight", task):
                log.warning(
                    "%s hardly trains the backbone: its mean weight over the steps %d to %d is %.2g, below %g %% of "
                    "the tasks' mean; the mean weights are %s.", task, begin, step, means[task], 100 * LEAST, every,
                )  # fmt: skip

    def _is_new(self, kind: str, task: str) -> bool:
        new = (kind, task) not in self._said
        self._said.add((kind, task))
        return new
