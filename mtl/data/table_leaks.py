"""Inputs that give a target away, as one that is known only after it; without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mtl.data.columns import IGNORED, Column
from mtl.data.input_columns import InputColumn
from mtl.data.tables import Files

NEAR_ONE = 0.99
LOOKED_AT = 20_000  # training rows, evenly spaced
BINS = 200  # of an input's numbers: as many rows in each


def find_leaks(
    table: Any,
    inputs: Sequence[InputColumn],
    targets: Mapping[str, Column],
    values: Mapping[str, NDArray[Any]],
    train: NDArray[np.bool_],
    file: Path | Files,
) -> list[str]:
    """A warning for every input that tells a target alone, on the training rows: of 0.99 and more.

    For a class it is the share of the rows that the most frequent class of the other rows with the same value gets
    right, if it also leaves a tenth at most of the errors of the most frequent class of all. For a number it is the
    largest of the correlation, the correlation of the ranks, and the share of the variance that the mean of the other
    rows with the same value explains. Numbers are the same within a two-hundredth of the rows; no value is a value.
    """
    found = []
    rows = np.flatnonzero(train)
    rows = rows[:: max(1, len(rows) // LOOKED_AT)]
    for own in (own for own in inputs if own.kind != "text"):
        column = table[own.name].iloc[rows]
        groups = _groups(own, column)
        numbers = own.numbers(column, file)[:, 0] if own.kind == "number" else None
        for name, part, target in _each(targets, values, rows):
            share = _share(groups, numbers, target)
            if share is not None and share[1] >= NEAR_ONE:
                found.append(
                    f"{file}: the input {own.name} gives the target {name}{part} away: {share[0]} {share[1]:.4f} on "
                    "the training rows; if it is not known when the model is used, leave it out by "
                    f"data.exclude=[{own.name}]"
                )
    return found


def _each(
    targets: Mapping[str, Column], values: Mapping[str, NDArray[Any]], rows: NDArray[Any]
) -> Iterator[tuple[str, str, NDArray[Any]]]:
    """Every column of every target: classes as integers with IGNORED, numbers with NaN."""
    for name, own in targets.items():
        if own.kind == "class":
            yield name, "", values[name][rows]
            continue
        for i, column in enumerate(own.columns):
            found = values[name][rows, i]
            if own.kind == "labels":
                found = np.where(np.isnan(found), IGNORED, found).astype(np.int64)
            yield name, f" ({column})" if own.width > 1 else "", found


def _groups(own: InputColumn, column: pd.Series) -> NDArray[np.int64]:
    """The number of every row's value; of numbers and dates the number of its bin."""
    if own.kind == "category":
        return pd.factorize(column, use_na_sentinel=False)[0]
    order = column if own.kind == "number" else pd.to_datetime(column, format=own.format or None, errors="coerce")
    ranks = order.rank(method="min", pct=True).to_numpy()
    return np.where(np.isnan(ranks), BINS + 1, np.floor(np.nan_to_num(ranks) * BINS)).astype(np.int64)


def _share(groups: NDArray[Any], numbers: NDArray[Any] | None, target: NDArray[Any]) -> tuple[str, float] | None:
    """What an input tells of a target, and its name; None where it is of no meaning."""
    if target.dtype.kind == "i":
        known = target != IGNORED
        return _accuracy(groups[known], target[known])
    known = ~np.isnan(target)
    found = "explained variance", _explained(groups[known], target[known].astype(np.float64))
    if numbers is not None and numbers[known].std() > 0 and target[known].std() > 0:
        both = pd.DataFrame({"input": numbers[known], "target": target[known]})
        for name, own in (("correlation", both), ("rank correlation", both.rank())):
            found = max(found, (name, abs(float(np.corrcoef(own.T)[0, 1]))), key=lambda share: share[1])
    return found


def _accuracy(groups: NDArray[Any], target: NDArray[Any]) -> tuple[str, float] | None:
    """The accuracy of the most frequent class of the other rows of a group; of all rows, where there is no other."""
    if len(target) < 2:
        return None
    _, groups = np.unique(groups, return_inverse=True)
    classes, target = np.unique(target, return_inverse=True)
    overall = np.bincount(target)
    if len(classes) < 2 or (groups.max() + 1) * len(classes) > 50_000_000:
        return None
    counts = np.zeros((groups.max() + 1, len(classes)), np.int64)
    np.add.at(counts, (groups, target), 1)
    own = counts[groups]
    own[np.arange(len(target)), target] -= 1
    best = np.where(own.any(1), own.argmax(1), overall.argmax())
    share, base = float((best == target).mean()), overall.max() / len(target)
    return ("accuracy", share) if 1 - share <= 0.1 * (1 - base) else None


def _explained(groups: NDArray[Any], target: NDArray[np.float64]) -> float:
    """The share of the variance that the mean of the other rows of a group explains."""
    if len(target) < 2 or not target.var():
        return 0.0
    _, groups = np.unique(groups, return_inverse=True)
    counts, sums = np.bincount(groups), np.bincount(groups, target)
    others = counts[groups] - 1
    means = np.where(others > 0, (sums[groups] - target) / np.maximum(others, 1), target.mean())
    return 1 - float(np.square(target - means).mean() / target.var())
