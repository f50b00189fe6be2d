"""The results file, and what is made of a cell's rounds: ratios within a round, and their quartiles."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

Cells = dict[str, dict[str, Any]]  # what measure.py has found, by the cell's name


class Spread(NamedTuple):
    """The quartiles of a number over the rounds."""

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f}–{self.high:.2f})"


def spread(values: Iterable[float]) -> Spread:
    """Quartiles; of one value, that three times."""
    values = list(values)
    return Spread(*quantiles(values, n=4, method="inclusive")) if len(values) > 1 else Spread(*values * 3)


def ratio(rows: Mapping[str, Mapping[str, Any]], name: str, beside: str = "naive") -> Spread:
    """A step's time over another one's, round by round; where that ran twice, over the mean of the round's two.

    The second one, ``again``, shows the noise, and halves it in what the others are compared with.
    """
    compared, again = rows[beside]["seconds"], f"{beside}, again"
    if again in rows and name not in (beside, again):
        both = zip(compared, rows[again]["seconds"], strict=True)
        compared = [None if a is None or b is None else (a + b) / 2 for a, b in both]
    pairs = zip(rows[name]["seconds"], compared, strict=True)
    return spread(a / b for a, b in pairs if a is not None and b is not None)


def milliseconds(rows: Mapping[str, Mapping[str, Any]], name: str) -> float:
    """A step's median time."""
    return 1000 * median(value for value in rows[name]["seconds"] if value is not None)


def of_kind(cells: Cells, kind: str) -> Cells:
    """The cells of a kind that were measured."""
    return {name: cell for name, cell in cells.items() if cell.get("kind") == kind and "not measured" not in cell}


def over_tasks(cells: Cells) -> dict[str, dict[int, dict[str, Any]]]:
    """The problems that were measured for several numbers of tasks: their cells by that number."""
    families: dict[str, dict[int, dict[str, Any]]] = {}
    for cell in of_kind(cells, "steps").values():
        problem = "{trunk}, {heads} heads, batch {batch}".format(**cell["arguments"])
        families.setdefault(problem, {})[cell["arguments"]["tasks"]] = cell
    return {problem: family for problem, family in families.items() if len(family) > 1}


def save(path: Path, header: Mapping[str, Any], cells: Cells) -> None:
    """Write the file: a line a cell, so that a repetition shows which have changed."""
    lines = [f"{json.dumps(name)}: {json.dumps(_short(cell))}" for name, cell in cells.items()]
    path.write_text(json.dumps(header)[:-1] + ',\n"cells": {\n' + ",\n".join(lines) + "\n}}\n")


def _short(value: Any) -> Any:
    """Numbers with five digits: more are noise."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
