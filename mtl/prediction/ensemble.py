"""One model, or several of one configuration, such as seeds: the mean of their scores, and how far they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtl.prediction.predictor import Predictor


class Ensemble:
    """Predictors of the same tasks, classes and preprocess; ValueError, with the difference, for others."""

    def __init__(self, members: Sequence[Predictor]) -> None:
        first = members[0]
        self.members, self.answers, self.preprocess = list(members), first.answers, first.preprocess
        for other in members[1:]:
            if other.tasks != first.tasks:
                names = [", ".join(member.tasks) for member in (other, first)]
                raise ValueError(f"{other.path} has the tasks {names[0]}, but {first.path} has {names[1]}.")
            for task, own in other.answers.items():
                same = first.answers[task]
                if (own.kind, own.names, own.unit) != (same.kind, same.names, same.unit):
                    raise ValueError(f"{other.path} has other classes, columns or units of {task} than {first.path}.")
            if other.preprocess.state() != first.preprocess.state():
                raise ValueError(
                    f"{other.path} prepares its inputs in another way than {first.path}; predict with each alone."
                )

    def collate(self, raws: Any) -> Any:
        """The inputs of several raw inputs as a batch."""
        return self.members[0].collate(raws)

    def scores(self, inputs: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """By task, the mean scores of a batch, and their standard deviations between the members; None for one."""
        found = [member.scores(inputs) for member in self.members]
        if len(found) == 1:
            return found[0], None
        together = {task: np.stack([own[task] for own in found]) for task in self.answers}
        means = {task: own.mean(0) for task, own in together.items()}
        for task, own in self.answers.items():
            if own.kind == "normals":  # a mean of directions is shorter than they are
                means[task] /= np.linalg.norm(means[task], axis=1, keepdims=True).clip(1e-12)
        return means, {task: own.std(0, ddof=1) for task, own in together.items()}
