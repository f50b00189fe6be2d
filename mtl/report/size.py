"""How large the compared models are, and a warning where a difference between rows may be one of size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl.report.compare import Row

ALIKE = 1.1  # models whose sizes are within this factor count as equally large
SHOWN = 8  # rows that a warning names
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def parameters(row: Row) -> float:
    """All parameters of the model; NaN if unknown."""
    return _number((_summary(row).get("parameters") or {}).get("total"))


def multiply_adds(row: Row) -> float:
    """Those of a sample's forward pass; NaN if unknown."""
    return _number(_summary(row).get("multiply_adds"))


def parameters_by_part(row: Row) -> dict[str, float]:
    """Those that the tasks share, and the mean over the tasks of what a reader and a head have; NaN if unknown."""
    found = _summary(row).get("parameters") or {}
    parts = {"a reader": found.get("readers"), "a head": found.get("heads")}
    means = {name: fmean(own.values()) if own else math.nan for name, own in parts.items()}
    return {"shared": _number(found.get("shared")), **means}


def differ(rows: Sequence[Row]) -> bool:
    """Whether the rows' models differ in size at all."""
    return any(len({own for row in rows if math.isfinite(own := of(row))}) > 1 for of in (parameters, multiply_adds))


def unit_of(values: Sequence[float]) -> tuple[float, str]:
    """The unit in which the largest of the numbers has at most three digits before the point, and its letter."""
    largest = max((value for value in values if math.isfinite(value)), default=0.0)
    return next((unit for unit in UNITS if largest >= unit[0]), UNITS[-1])


def warnings_on(methods: Sequence[Row]) -> Iterator[str]:
    """A sentence for each of parameters and multiply-adds in which rows differ by more than a tenth."""
    advice = {
        "parameters": "compare with architecture=ensemble of as many experts, or change what sets a row's size, as "
        "backbone.width, backbone.name or architecture.experts, until their parameters are alike",
        "multiply-adds": "name the factor beside the result, or choose sizes that cost as much",
    }
    measures: dict[str, Callable[[Row], float]] = {"parameters": parameters, "multiply-adds": multiply_adds}
    for what, of in measures.items():
        found = sorted((row for row in methods if of(row) > 0), key=of)
        larger = [row for row in reversed(found) if of(row) > ALIKE * of(found[0])]
        if larger:
            named = ", ".join(f"{row.label} has {of(row) / of(found[0]):.3g} times" for row in larger[:SHOWN])
            yield (
                f"The rows differ in {what} by more than a tenth: {named}{', …' * (len(larger) > SHOWN)} those of "
                f"{found[0].label}. What such a row gains may be its size and not its method: {advice[what]}."
            )


def _summary(row: Row) -> dict[str, Any]:
    return next(iter((row.finished or row.runs).values())).summary


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
