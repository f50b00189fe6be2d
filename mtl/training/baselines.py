"""Δm during training: the mean relative change of the val metrics against single-task runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mtl.delta_m import by_metric
from mtl.errors import ConfigError
from mtl.runs.files import read_json


class DeltaM:
    """Δm by metric in percent, *lower is better*: see mtl.delta_m.

    ``baselines``: the value of each metric in the single-task runs; ``higher``: whether higher is better.
    """

    def __init__(self, baselines: Mapping[str, float], higher: Mapping[str, bool]) -> None:
        self.baselines, self.higher = dict(baselines), dict(higher)

    @classmethod
    def from_runs(cls, folder: str | None, directions: Mapping[str, str | None]) -> DeltaM:
        """The best val metrics of the single-task runs below ``folder``, their mean where there are several seeds.

        Of the metrics with a direction, losses aside. ConfigError for a task without a run.
        """
        if folder is None:
            raise ConfigError("trainer.monitor=delta_m needs trainer.baselines, the folder of the single-task runs.")
        higher = {n: mode == "max" for n, mode in directions.items() if mode and not n.startswith("loss/")}
        found: dict[str, list[float]] = {}
        for file in sorted(Path(folder).rglob("summary.json")):
            values = ((read_json(file).get("best") or {}).get("val")) or {}
            if len({name.partition("/")[0] for name in values if not name.startswith("loss/")}) == 1:
                for name in values.keys() & higher.keys():
                    found.setdefault(name, []).append(values[name])
        missing = [name for name in higher if name not in found]
        if missing:
            task = missing[0].partition("/")[0]
            raise ConfigError(
                f"trainer.baselines={folder} has no finished run of the task {task} alone with the metric "
                f"{missing[0]}; make one with tasks=[{task}]."
            )
        baselines = {name: float(np.mean(values)) for name, values in found.items()}
        for name, value in baselines.items():
            if not value or not math.isfinite(value):
                raise ConfigError(f"trainer.baselines={folder}: {name} is {value:g} there, of which there is no share.")
        return cls(baselines, higher)

    def value(self, metrics: Mapping[str, float]) -> float:
        """Δm of an evaluation; NaN where a metric is absent or has no share of its baseline."""
        if not self.higher.keys() <= metrics.keys():
            return math.nan
        return by_metric({name: metrics[name] for name in self.higher}, self.baselines, self.higher)
