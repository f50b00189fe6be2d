"""What a handful of seeds can say: means with Student's interval, interquartile means, ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

CONFIDENCE = 0.95
SEEDS = 3  # with fewer there is no interval: Student's t of two seeds is 12.7 standard errors wide
RUNS = 8  # with fewer, a bootstrap draws from too little to mean anything


@dataclass(frozen=True)
class Interval:
    """A mean, half the width of its 95 % confidence interval (None where there is none), and of how many values."""

    mean: float
    half: float | None
    count: int


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent values and Student's t interval of it; below three values there is no interval.

    Values that are not finite make the mean what they are, and there is no interval.
    """
    array = np.asarray(values, dtype=float)
    mean = float(array.mean()) if len(array) else float("nan")
    if len(array) < SEEDS or not isfinite(mean):
        return Interval(mean, None, len(array))
    from scipy.stats import t

    error = array.std(ddof=1) / np.sqrt(len(array))
    return Interval(mean, float(t.ppf(0.5 + CONFIDENCE / 2, len(array) - 1) * error), len(array))


def paired(values: dict[int, float], reference: dict[int, float]) -> Interval:
    """The mean difference to a reference over the seeds that both have, and its interval."""
    return interval([values[seed] - reference[seed] for seed in values if seed in reference])


def interquartile_mean(values: Sequence[float]) -> float:
    """The mean of the middle half (Agarwal et al. 2021, "Deep RL at the Edge of the Statistical Precipice")."""
    from scipy.stats import trim_mean

    return float(trim_mean(np.asarray(values, dtype=float), 0.25))


def bootstrap(values: Sequence[float]) -> tuple[float, float, float] | None:
    """The interquartile mean and its bootstrap interval, the same at every call; None below eight values."""
    if len(values) < RUNS:
        return None
    import scipy.stats

    resample: Any = scipy.stats.bootstrap  # its stubs know of no statistic along an axis
    found = resample(
        (np.asarray(values, dtype=float),),
        lambda sample, axis: scipy.stats.trim_mean(sample, 0.25, axis=axis),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return interquartile_mean(values), float(found.low), float(found.high)


def mean_ranks(table: np.ndarray, higher_is_better: Sequence[bool]) -> np.ndarray:
    """The mean over the columns of each row's rank, 1 the best, ties shared; NaN for a row with a gap.

    ``table [rows, metrics]``. A rank belongs to the set it was taken in: one row more, and every rank may change.
    """
    from scipy.stats import rankdata

    ranks = np.full(len(table), np.nan)
    whole = np.isfinite(table).all(1)
    if whole.any() and table.shape[1]:
        signs = np.where(higher_is_better, -1.0, 1.0)
        ranks[whole] = rankdata(table[whole] * signs, axis=0).mean(1)
    return ranks
