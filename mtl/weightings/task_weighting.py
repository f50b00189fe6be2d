from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl.errors import require
from mtl.weightings.weighting import Weighting


class TaskWeighting(Weighting):
    """A weighting that keeps something for each of ``tasks``.

    What is kept is a vector ``[K]`` in the tasks' order on the losses' device, so that no step waits for the device.
    Absent tasks are NaN in ``vector``; they teach nothing and lose nothing, and the same goes for a loss that is not
    finite. ``state_dict`` names the tasks: loading it where the tasks are others is a ValueError.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        require("tasks", tasks, "one or more different names", 0 < len(tasks) == len(set(tasks)))
        self._index = {task: position for position, task in enumerate(tasks)}

    def vector(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The losses of all tasks ``[K]``, detached, NaN for a task that is absent; ``losses`` may not be empty."""
        absent = next(iter(losses.values())).detach().new_full((), torch.nan)
        return stack(losses.get(task, absent) for task in self._index)

    def by_task(self, values: Tensor, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries of ``values`` ``[K]`` that belong to the tasks in ``losses``."""
        return {task: values[self._index[task]] for task in losses}

    def get_extra_state(self) -> dict[str, Any]:
        """Return whose state this is: every task's place in what is kept."""
        return {"tasks": dict(self._index)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Check that the state is of the same tasks, in the same order."""
        own, saved = self._index, state["tasks"]
        if own != saved:
            raise ValueError(
                f"The state of {type(self).__name__} is of {len(saved)} tasks ({', '.join(saved)}), "
                f"but there are {len(own)} here ({', '.join(own)})."
            )


def stack(losses: Iterable[Tensor]) -> Tensor:
    """Losses (scalars) as one vector without a graph, in float32 or finer."""
    values = torch.stack([loss.detach() for loss in losses])
    return values.to(torch.promote_types(values.dtype, torch.float32))
