"""The metric that decides which model is best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtl.errors import ConfigError
from mtl.metrics import higher_is_better
from mtl.tasks import Task

WORDS = {"min": "lower", "max": "higher"}


@dataclass(frozen=True)
class Monitor:
    """A metric of the val split and its direction, ``mode``: ``min`` if a lower value is better, or ``max``.

    An evaluation at which the metric is absent, NaN or infinite has no value, and decides nothing.
    """

    name: str = "loss/total"
    mode: str = "min"

    @classmethod
    def from_config(cls, trainer: Any, tasks: Sequence[Task]) -> Monitor:
        """The monitor of ``cfg.trainer``; its direction is what the metric of ``tasks`` says of itself.

        ConfigError for a metric that the run does not have, or a ``trainer.mode`` that is missing or contradicts it.
        """
        directions = _directions(tasks)
        monitor, mode = trainer.monitor, trainer.mode
        name = monitor if monitor in directions else monitor.removeprefix("val/")
        if name not in directions:
            split, _, rest = name.partition("/")
            other = split in ("train", "test") and rest in directions
            hint = f"the val split decides, as in trainer.monitor={rest}; " if other else ""
            raise ConfigError(
                f"trainer.monitor={monitor} is not a metric of this run; {hint}there are {', '.join(directions)}."
            )
        known = directions[name]
        if known is None and mode is None:
            raise ConfigError(
                f"trainer.monitor={monitor}: the metric does not say whether higher is better; "
                "give trainer.mode=min or trainer.mode=max."
            )
        if known is not None and mode not in (None, known):
            raise ConfigError(
                f"trainer.mode={mode}: trainer.monitor={monitor} is better where it is {WORDS[known]}; "
                f"use trainer.mode={known}, or leave it null."
            )
        return cls(name, known or mode)

    @property
    def better(self) -> str:
        """The direction in a word: ``lower`` or ``higher``."""
        return WORDS[self.mode]

    def value(self, metrics: Mapping[str, float]) -> float | None:
        """The monitored value of an evaluation; None if it has none."""
        value = metrics.get(self.name, math.nan)
        return value if math.isfinite(value) else None

    def improves(self, value: float, best: float | None) -> bool:
        """Whether ``value`` is better than ``best``; of two equal ones the first stays the best."""
        return best is None or (value < best if self.mode == "min" else value > best)


def _directions(tasks: Sequence[Task]) -> dict[str, str | None]:
    """The mode of every metric of the val split; None for a metric that does not know."""
    found: dict[str, str | None] = dict.fromkeys(["loss/total", *(f"loss/{task.name}" for task in tasks)], "min")
    for task in tasks:
        for name, metric in task.metrics.items():
            higher = higher_is_better(metric)
            found[f"{task.name}/{name}"] = None if higher is None else "max" if higher else "min"
    return found
