"""The goals, each with what was measured in every place that it is about."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

from results import Cells, Spread, milliseconds, of_kind, over_tasks, ratio, spread

SUM = "sum of the losses"  # one backward, in the cells of layer.py
LAYER = dict.fromkeys([f"mtl.Balance({rule})" for rule in ("MGDA()", "UPGrad()", "None")], SUM)
GRAM_RULES = [f"{rule}, features" for rule in ("MGDA", "UPGrad", "CAGrad", "NashMTL", "PCGrad")]
# A step, and the hand-written loop of the same strategy.
BY_HAND = {"detached": "by hand: detached", "MGDA, features": "by hand: MGDA, features"}
# Heads computed as one product, and one by one.
PACKED = {f"{row}, packed": row for row in ("detached", "detached, conflict metrics", "MGDA, features")}

LOOP = {"bare step": "mtl.training.loop.fit"}  # a speed is one over a time


class Goal(NamedTuple):
    """What is wanted at most (or at least) in every place, and what was found there."""

    words: str
    limit: float
    found: dict[str, Spread]
    at_least: bool = False

    def keeps(self, value: float) -> bool:
        """Whether a number is on the right side, to the two digits that are shown."""
        return round(value, 2) >= self.limit if self.at_least else round(value, 2) <= self.limit

    def row(self) -> str:
        """A line of the table: the middle of all places, and the worst of them.

        Where a median is on the wrong side, and the quartile before it is not, the rounds do not tell.
        """
        worst = (min if self.at_least else max)(self.found, key=lambda place: self.found[place].middle)
        missed = [value for value in self.found.values() if not self.keeps(value.middle)]
        open_ = sum(self.keeps(value.high if self.at_least else value.low) for value in missed)
        counts = {"**no**": len(missed) - open_, "within the spread": open_}
        words = ", ".join(f"{word} in {count}" for word, count in counts.items() if count)
        words = f"{words} of {len(self.found)}" if words else "yes"
        target = f"{'≥' if self.at_least else '≤'} {self.limit:.2f}"
        middle = median(value.middle for value in self.found.values())
        return f"| {self.words} | {target} | {middle:.2f} | {self.found[worst]} | {worst} | {words} |"


def goal_table(cells: Cells) -> str:
    """Every goal that a measured cell is about."""
    lines = [goal.row() for goal in goals(cells) if goal.found]
    if not lines:
        return ""
    head = "| goal | target | middle of all | worst (quartiles) | where | met |\n|---|---|---|---|---|---|"
    again = [found.middle for found in _ratios(of_kind(cells, "steps"), {"naive, again": "naive"}).values()]
    noise = [f"\nA second naive step is {min(again):.3f} to {max(again):.3f} of the first: the noise."] if again else []
    return "\n".join([head, *lines, *noise])


def goals(cells: Cells) -> list[Goal]:
    """All of them; one whose cells were not measured has nothing found."""
    steps, alone = of_kind(cells, "steps"), of_kind(cells, "heads_alone")
    few = {name: cell for name, cell in steps.items() if cell["arguments"]["tasks"] <= 16}
    many = {name: cell for name, cell in steps.items() if cell["arguments"]["tasks"] == 40}
    rules = dict.fromkeys(GRAM_RULES, "naive")
    loop = {name: cell for name, cell in of_kind(cells, "loop").items() if cell["arguments"]["ready"]}
    bf16 = of_kind(cells, "bf16")
    return [
        Goal("detached over naive", 1.02, _ratios(steps, {"detached": "naive"})),
        Goal(
            "detached with conflict metrics over naive", 1.05, _ratios(steps, {"detached, conflict metrics": "naive"})
        ),
        Goal("Gram rules at the features over naive, K ≤ 16", 1.05, _ratios(few, rules)),
        Goal("Gram rules at the features over naive, K = 40", 1.10, _ratios(many, rules)),
        Goal("the layer over the sum of the losses, K ≤ 16", 1.05, _ratios(_layer(cells), LAYER)),
        Goal("rules at the parameters over K naive steps", 0.70, _at_parameters(steps)),
        Goal("our dearest rule at the parameters over the peers' quickest", 1.00, _over_peers(steps)),
        Goal("our step over the same by hand", 1.02, _ratios(steps, BY_HAND)),
        Goal(
            "the loop's images a second over the bare step's, data ready",
            0.97,
            _ratios(loop, {"bare step": "mtl.training.loop.fit"}),
            True,
        ),
        Goal("peak memory, detached over naive", 1.00, _peaks(steps)),
        Goal("peak memory of detached, over K = 1", 1.10, _growth_of_peak(cells)),
        Goal("40 linear heads, packed over looped", 0.30, _ratios(alone, PACKED)),
        Goal("bf16 over float32", 0.70, _ratios(bf16, {"bf16": "float32"})),
        Goal("seconds to help or a mistake's answer", 0.60, _answers(cells)),
    ]


def is_at_parameters(row: str) -> bool:
    """Whether a row is about a rule on gradients at the trunk's parameters, ours or a peer's."""
    libmtl = row.startswith("LibMTL") and "EW" not in row and "rep_grad" not in row
    return row.endswith(", parameters") or row.startswith("TorchJD mtl_backward") or libmtl


def is_ours(row: str) -> bool:
    """Whether a row is no peer's."""
    return not row.startswith(("TorchJD", "LibMTL"))


def _layer(cells: Cells) -> Cells:
    return of_kind(cells, "layer") | of_kind(cells, "lightning")


def _ratios(cells: Cells, pairs: Mapping[str, str]) -> dict[str, Spread]:
    """In every cell, of every pair of its rows that it has."""
    return {
        name if len(pairs) == 1 else f"{row}, {name}": ratio(cell["rows"], row, beside)
        for name, cell in cells.items()
        for row, beside in pairs.items()
        if row in cell["rows"]
    }


def _at_parameters(steps: Cells) -> dict[str, Spread]:
    found = {}
    for name, cell in steps.items():
        rows, tasks = cell["rows"], cell["arguments"]["tasks"]
        for row in (row for row in rows if is_at_parameters(row) and is_ours(row)):
            found[f"{row}, {name}"] = Spread(*(value / tasks for value in ratio(rows, row)))
    return found


def _over_peers(steps: Cells) -> dict[str, Spread]:
    found = {}
    for name, cell in steps.items():
        rows = cell["rows"]
        ours, peers = ([row for row in rows if is_at_parameters(row) and is_ours(row) is own] for own in (True, False))
        if ours and peers:
            dearest = max(ours, key=lambda row: milliseconds(rows, row))
            quickest = min(peers, key=lambda row: milliseconds(rows, row))
            found[f"{dearest} over {quickest}, {name}"] = ratio(rows, dearest, quickest)
    return found


def _peaks(steps: Cells) -> dict[str, Spread]:
    return {
        name: spread([cell["rows"]["detached"]["peak"] / cell["rows"]["naive"]["peak"]]) for name, cell in steps.items()
    }


def _growth_of_peak(cells: Cells) -> dict[str, Spread]:
    found = {}
    for problem, family in over_tasks(cells).items():
        peaks = {tasks: cell["rows"]["detached"]["peak"] for tasks, cell in family.items()}
        found |= {f"K = {k}, {problem}": spread([peak / peaks[1]]) for k, peak in peaks.items() if k > 1 and 1 in peaks}
    return found


def _answers(cells: Cells) -> dict[str, Spread]:
    rows = [row for cell in of_kind(cells, "startup").values() for row in cell["rows"].items()]
    return {
        name: spread(row["seconds"]) for name, row in rows if "help" in name or "wrong" in name or "unknown" in name
    }
