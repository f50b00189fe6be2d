"""What the user wants of each task: one number a task, by name or in order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from mtl.errors import require, suggestion

Preference: TypeAlias = Mapping[str, float] | Sequence[float]


def preferences(preference: Preference, tasks: Sequence[str] | None, name: str = "preference") -> list[float]:
    """The preference of each task; 1 for a task that a mapping does not name.

    Without ``tasks`` they are in the order of ``preference``. ValueError for an unknown task, another number of tasks,
    and a number that is not finite and above 0.
    """
    given = _by_task(preference, tasks, name)
    for task, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name}.{task}={value} must be a finite number above 0.")
    return [float(value) for value in given.values()]


def shares(preference: Preference, tasks: Sequence[str], name: str = "preference") -> list[float]:
    """The share of each task in a mixture: its number, by name or in order, divided by the sum of all.

    A share may be zero: the corners of a front are mixtures too. ValueError for an unknown or missing task, another
    number of tasks, a number that is negative or not finite, and for zeros alone.
    """
    if isinstance(preference, Mapping):
        missing = [task for task in tasks if task not in preference]
        if missing and set(preference) <= set(tasks):
            raise ValueError(f"{name} lacks {missing[0]}; it needs a number for each of {', '.join(tasks)}.")
    elif isinstance(preference, str) or not isinstance(preference, Sequence):
        raise ValueError(f"{name}={preference} must be a number for each of {', '.join(tasks)}, by name or in order.")
    given = _by_task(preference, tasks, name)
    for task, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{name}.{task}={value} must be a finite number, 0 or more.")
    total = sum(given.values())
    require(name, preference, "above 0 for one task at least", total > 0)
    return [value / total for value in given.values()]


def parsed(words: Sequence[str], name: str = "preference") -> Preference:
    """A preference as a command line has it: ``left=0.3 right=0.7`` by name, or ``0.3 0.7`` in the tasks' order."""
    pairs = [word.rpartition("=") for word in words]
    by_name = [bool(sign) for _, sign, _ in pairs]
    try:
        numbers = [float(number) for _, _, number in pairs]
    except ValueError:
        numbers = []
    named = dict(zip([task for task, _, _ in pairs], numbers, strict=False))
    if numbers and all(by_name) and len(named) == len(words):
        return named
    if numbers and not any(by_name):
        return numbers
    raise ValueError(f"{name} {' '.join(words)} must be TASK=NUMBER of each task, or the numbers in their order.")


def _by_task(preference: Preference, tasks: Sequence[str] | None, name: str) -> dict[str, float]:
    """The numbers by task, 1 for one that a mapping does not name; ValueError for an unknown task or another count."""
    if isinstance(preference, Mapping):
        for task in preference:
            if tasks is not None and task not in tasks:
                raise ValueError(f"{name}.{task} names no task; {suggestion(task, tasks)}.")
        return {task: preference.get(task, 1.0) for task in tasks or preference}
    if tasks is not None and len(preference) != len(tasks):
        raise ValueError(f"{name} has {len(preference)} numbers, but there are {len(tasks)} tasks: {', '.join(tasks)}.")
    return dict(zip(tasks or map(str, range(len(preference))), preference, strict=True))
