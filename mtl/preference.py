"""What the user wants of each task: one positive number a task, by name or in order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from mtl.errors import suggestion

Preference: TypeAlias = Mapping[str, float] | Sequence[float]


def preferences(preference: Preference, tasks: Sequence[str] | None, name: str = "preference") -> list[float]:
    """The preference of each task; 1 for a task that a mapping does not name.

    Without ``tasks`` they are in the order of ``preference``. ValueError for an unknown task, another number of tasks,
    and a number that is not finite and above 0.
    """
    if isinstance(preference, Mapping):
        given = dict(preference)
        for task in given:
            if tasks is not None and task not in tasks:
                raise ValueError(f"{name}.{task} names no task; {suggestion(task, tasks)}.")
        given = {task: given.get(task, 1.0) for task in tasks or given}
    else:
        if tasks is not None and len(preference) != len(tasks):
            raise ValueError(
                f"{name} has {len(preference)} numbers, but there are {len(tasks)} tasks: {', '.join(tasks)}."
            )
        given = dict(zip(tasks or map(str, range(len(preference))), preference, strict=True))
    for task, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name}.{task}={value} must be a finite number above 0.")
    return [float(value) for value in given.values()]
