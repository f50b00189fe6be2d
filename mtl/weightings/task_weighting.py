from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl.errors import require
from mtl.weightings.weighting import Weighting


class TaskWeighting(Weighting):
    """A weighting with state for each of ``tasks``.

    The state is in vectors ``[K]`` in the order of the tasks, on the device of the losses, so that no step waits for
    the device. Absent tasks are NaN in ``vector``; their state does not change, and neither does that of a task whose
    loss is not finite. ``state_dict`` includes the names of the tasks; ValueError when it is loaded for other tasks.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        require("tasks", tasks, "one or more different names", 0 < len(tasks) == len(set(tasks)))
        self._index = {task: position for position, task in enumerate(tasks)}

    def vector(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The detached losses of all tasks ``[K]``, NaN for absent tasks; ``losses`` must not be empty."""
        absent = next(iter(losses.values())).detach().new_full((), torch.nan)
        return stack(losses.get(task, absent) for task in self._index)

    def by_task(self, values: Tensor, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries of ``values`` ``[K]`` for the tasks in ``losses``."""
        return {task: values[self._index[task]] for task in losses}

    def get_extra_state(self) -> dict[str, Any]:
        """Return the index of every task in the state vectors."""
        return {"tasks": dict(self._index)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Check that the state has the same tasks in the same order."""
        own, saved = self._index, state["tasks"]
        if own != saved:
            raise ValueError(
                f"The state of {type(self).__name__} has {len(saved)} tasks ({', '.join(saved)}), "
                f"but the run has {len(own)} ({', '.join(own)})."
            )


def stack(losses: Iterable[Tensor]) -> Tensor:
    """Scalar losses as one detached vector, in float32 or better."""
    values = torch.stack([loss.detach() for loss in losses])
    return values.to(torch.promote_types(values.dtype, torch.float32))


def one_parameter_each(tasks: Sequence[str], initial: float) -> nn.ParameterList:
    """One scalar float32 parameter per task.

    They are separate, because an optimizer skips a parameter without a gradient, but not an entry of a vector.
    """
    return nn.ParameterList(nn.Parameter(torch.tensor(float(initial), dtype=torch.float32)) for _ in tasks)
