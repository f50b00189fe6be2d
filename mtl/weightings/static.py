from collections.abc import Mapping, Sequence

from torch import Tensor

from mtl.weightings.weighting import Weighting


class Static(Weighting):
    """A fixed weight a task; a task that ``weights`` does not name keeps weight 1.

    A weight of 0 makes the task's gradients zero, in its head and in the trunk, while its loss is still measured;
    weight decay goes on. Raises ValueError for a weight that is negative or names no task of ``tasks``.
    """

    affine = True

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float]) -> None:
        super().__init__()
        for task, weight in weights.items():
            if task not in tasks:
                raise ValueError(f"weights.{task} names no task; the tasks are {', '.join(tasks)}.")
            if not weight >= 0:
                raise ValueError(f"weights.{task}={weight} must be 0 or more.")
        self._weights = dict(weights)

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """Return ``loss`` times the task's weight."""
        return loss * self._weights.get(task, 1.0)
