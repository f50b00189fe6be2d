"""The metric that decides which model is best."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtl.errors import ConfigError
from mtl.metrics import higher_is_better
from mtl.tasks import Task
from mtl.training.baselines import DeltaM
from mtl.training.formula import Formula

WORDS = {"min": "lower", "max": "higher"}


@dataclass(frozen=True)
class Monitor:
    """A metric of the val split and its direction, ``mode``: ``min`` if a lower value is better, or ``max``.

    ``made``: what makes the metric of others, a formula or Δm; it is then logged by its ``name``. An evaluation at
    which the metric is absent, NaN or infinite has no value, and decides nothing.
    """

    name: str = "loss/total"
    mode: str = "min"
    made: Formula | DeltaM | None = None

    @classmethod
    def from_config(cls, trainer: Any, tasks: Sequence[Task]) -> Monitor:
        """The monitor of ``cfg.trainer``; its direction is what the metric of ``tasks`` says of itself.

        ConfigError for a metric that the run does not have, or a ``trainer.mode`` that is missing or contradicts it.
        """
        known = directions(tasks)
        monitor, mode = trainer.monitor, trainer.mode
        name = monitor if monitor in known else monitor.removeprefix("val/")
        if name == "delta_m":
            return cls(name, _only("min", trainer), DeltaM.from_runs(trainer.baselines, known))
        if name not in known and re.search(r"[-+*()\s]", name):
            return _of_formula(name, known, trainer)
        if name not in known:
            split, _, rest = name.partition("/")
            other = split in ("train", "test") and rest in known
            hint = f"the val split decides, as in trainer.monitor={rest}; " if other else ""
            raise ConfigError(
                f"trainer.monitor={monitor} is not a metric of this run; {hint}there are {', '.join(known)}."
            )
        own = known[name]
        if own is None and mode is None:
            raise ConfigError(
                f"trainer.monitor={monitor}: the metric does not say whether higher is better; "
                "give trainer.mode=min or trainer.mode=max."
            )
        return cls(name, mode if own is None else _only(own, trainer))

    @property
    def better(self) -> str:
        """The direction in a word: ``lower`` or ``higher``."""
        return WORDS[self.mode]

    def complete(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics of an evaluation with the one that is made of them."""
        return dict(metrics) if self.made is None else {**metrics, self.name: self.made.value(metrics)}

    def value(self, metrics: Mapping[str, float]) -> float | None:
        """The monitored value of an evaluation; None if it has none."""
        value = metrics.get(self.name, math.nan)
        return value if math.isfinite(value) else None

    def improves(self, value: float, best: float | None) -> bool:
        """Whether ``value`` is better than ``best``; of two equal ones the first stays the best."""
        return best is None or (value < best if self.mode == "min" else value > best)


def _only(known: str, trainer: Any) -> str:
    """The direction that is known; ConfigError where ``trainer.mode`` contradicts it."""
    if trainer.mode not in (None, known):
        raise ConfigError(
            f"trainer.mode={trainer.mode}: trainer.monitor={trainer.monitor} is better where it is {WORDS[known]}; "
            f"use trainer.mode={known}, or leave it null."
        )
    return known


def _of_formula(text: str, directions: Mapping[str, str | None], trainer: Any) -> Monitor:
    try:
        formula = Formula(text, directions)
    except ValueError as error:
        raise ConfigError(f"trainer.monitor={text}: {error}.") from error
    if formula.mode is not None:
        return Monitor("monitor", _only(formula.mode, trainer), formula)
    if trainer.mode is None:
        raise ConfigError(
            f"trainer.monitor={text}: its metrics do not all pull the same way, so that higher may be better or worse; "
            "give trainer.mode=min or trainer.mode=max."
        )
    return Monitor("monitor", trainer.mode, formula)


def directions(tasks: Sequence[Task]) -> dict[str, str | None]:
    """The mode of every metric of the val split; None for a metric that does not know."""
    found: dict[str, str | None] = dict.fromkeys(["loss/total", *(f"loss/{task.name}" for task in tasks)], "min")
    for task in tasks:
        for name, metric in task.metrics.items():
            higher = higher_is_better(metric)
            found[f"{task.name}/{name}"] = None if higher is None else "max" if higher else "min"
    return found
