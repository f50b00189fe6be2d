from collections.abc import Mapping, Sequence

from torch import Tensor

from mtl.weightings.weighting import Weighting


class Static(Weighting):
    """Static weights (linear scalarization): one constant per task, 1 if ``weights`` does not name the task.

    With a weight of 0, the gradients of the task are zero in its head and in the trunk; its loss is still logged, and
    weight decay still applies. ValueError for a negative weight, or for a weight of an unknown task.
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

    def chosen(self, task: str) -> float:
        """The task's weight."""
        return self._weights.get(task, 1.0)

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """Return ``loss`` times the task's weight."""
        return loss * self._weights.get(task, 1.0)
