"""Statistics over a few seeds: means with Student's t interval, interquartile means, ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

CONFIDENCE = 0.95
SEEDS = 3  # minimum for an interval: with two seeds, Student's t is 12.7 standard errors
RUNS = 8  # minimum for a bootstrap: fewer values are too few to resample


@dataclass(frozen=True)
class Interval:
    """A mean, half the width of its 95 % confidence interval (None without one), and the number of values."""

    mean: float
    half: float | None
    count: int


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of independent values and its Student's t interval.

    There is no interval for fewer than three values, or if a value is not finite; then the mean is not finite either.
    """
    array = np.asarray(values, dtype=float)
    mean = float(array.mean()) if len(array) else float("nan")
    if len(array) < SEEDS or not isfinite(mean):
        return Interval(mean, None, len(array))
    from scipy.stats import t

    error = array.std(ddof=1) / np.sqrt(len(array))
    return Interval(mean, float(t.ppf(0.5 + confidence / 2, len(array) - 1) * error), len(array))


def paired_difference(values: dict[int, float], reference: dict[int, float]) -> Interval:
    """The mean difference to a reference over the common seeds, and its interval."""
    return interval([values[seed] - reference[seed] for seed in values if seed in reference])


def clear_winner(columns: Sequence[dict[int, float]], higher_is_better: bool) -> int | None:
    """The index of the row that is better than every other one beyond doubt; None if there is none.

    ``columns``: each row's values by seed. The best mean wins if its interval overlaps with no other row's and, where
    three seeds or more are shared, the difference paired by seed excludes zero as well, at a confidence that Bonferroni
    corrects for the number of other rows. Rows without a value are left out; one with fewer than three seeds forbids a
    winner, as do differences that are the same to the last bit for every seed: such seeds changed nothing.
    """
    known = {index: values for index, values in enumerate(columns) if values}
    if len(known) < 2 or any(len(values) < SEEDS for values in known.values()):
        return None
    sign = 1 if higher_is_better else -1
    found = {index: interval(list(values.values())) for index, values in known.items()}
    best = max(found, key=lambda index: sign * found[index].mean)
    confidence = 1 - (1 - CONFIDENCE) / (len(known) - 1)
    for index, other in found.items():
        half = (found[best].half or 0) + (other.half or 0)
        if index != best and not (
            sign * (found[best].mean - other.mean) > half > 0 and _beats(known[best], known[index], sign, confidence)
        ):
            return None
    return best


def _beats(values: dict[int, float], other: dict[int, float], sign: int, confidence: float) -> bool:
    shared = [sign * (values[seed] - other[seed]) for seed in values if seed in other]
    if len(shared) < SEEDS:
        return True  # unpaired intervals that do not overlap must do
    found = interval(shared, confidence)
    return found.mean > (found.half or 0)


def interquartile_mean(values: Sequence[float]) -> float:
    """The mean of the middle half (Agarwal et al. 2021, "Deep RL at the Edge of the Statistical Precipice")."""
    from scipy.stats import trim_mean

    return float(trim_mean(np.asarray(values, dtype=float), 0.25))


def bootstrap(values: Sequence[float]) -> tuple[float, float, float] | None:
    """The interquartile mean and its percentile bootstrap interval, with a fixed seed; None below eight values."""
    if len(values) < RUNS:
        return None
    import scipy.stats

    resample: Any = scipy.stats.bootstrap  # its stubs lack statistics along an axis
    found = resample(
        (np.asarray(values, dtype=float),),
        lambda sample, axis: scipy.stats.trim_mean(sample, 0.25, axis=axis),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return interquartile_mean(values), float(found.low), float(found.high)


def mean_ranks(table: np.ndarray, higher_is_better: Sequence[bool]) -> np.ndarray:
    """Each row's mean rank over the columns of ``table`` [rows, metrics]: 1 is the best, ties share their mean rank.

    NaN for a row with a missing value. A rank depends on the set of rows: with one row more, every rank may change.
    """
    from scipy.stats import rankdata

    ranks = np.full(len(table), np.nan)
    complete = np.isfinite(table).all(1)
    if complete.any() and table.shape[1]:
        signs = np.where(higher_is_better, -1.0, 1.0)
        ranks[complete] = rankdata(table[complete] * signs, axis=0).mean(1)
    return ranks
