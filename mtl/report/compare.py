"""Groups runs into the rows of a comparison, selects tuned settings, and measures rows against references."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from mtl.report.delta_m import by_metric, by_task, task_of
from mtl.report.names import class_name, differing_keys, interpolations_of, is_unbalanced, row_labels
from mtl.report.runs import ReportError, Run
from mtl.report.statistics import SEEDS, Interval, bootstrap, interval, mean_ranks, paired_difference


@dataclass(eq=False)
class Row:
    """Runs that differ in their seed alone, and their statistics."""

    runs: dict[int, Run]  # by seed
    label: str = ""
    tuned: dict[str, Any] = field(default_factory=dict)  # the values selected on the validation split
    others: list[Row] = field(default_factory=list)  # the settings that were not selected
    metrics: dict[str, Interval] = field(default_factory=dict)  # on the test split
    differences: dict[str, Interval] = field(default_factory=dict)  # to the reference, paired by seed
    delta_metric: Interval | None = None
    delta_task: Interval | None = None
    interquartile: tuple[float, float, float] | None = None  # mean of Δm by metric, and its bootstrap interval
    rank: float = math.nan
    time_ratio: float = math.nan
    memory_ratio: float = math.nan
    reference: Row | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration shared by the runs."""
        return self.first.settings

    @property
    def first(self) -> Run:
        """The first run."""
        return next(iter(self.runs.values()))

    @property
    def finished(self) -> dict[int, Run]:
        """The runs with test metrics."""
        return {seed: run for seed, run in self.runs.items() if run.finished}

    @property
    def is_baseline(self) -> bool:
        """Whether the row is a single-task baseline."""
        return len(self.first.tasks) == 1

    @property
    def is_equal_weighting(self) -> bool:
        """Whether the row is equal weighting: the gradient of the sum of the losses."""
        return self.is_static and class_name(self.settings, "weighting") in ("Equal", "")

    @property
    def is_static(self) -> bool:
        """Whether the row is linear scalarization with static weights, equal ones included.

        Strategies are judged by the Pareto front of these rows.
        """
        constant = class_name(self.settings, "weighting") in ("Equal", "Static", "")
        return constant and is_unbalanced(self.settings) and not self.is_baseline

    @property
    def validation(self) -> float:
        """The mean over the seeds of the monitored metric's best value; NaN if a run lacks it."""
        values = [run.summary.get("best", {}).get("monitor") for run in self.finished.values()]
        return fmean(values) if values and None not in values else math.nan

    @property
    def step_seconds(self) -> float:
        """The smallest logged step time, in seconds; NaN without one.

        Other load on the machine can only increase a step time. So the minimum is over all runs that do the same work:
        all seeds, and the settings that were not selected but have the same peak memory.
        """
        same = [row for row in self.others if row.peak_memory == self.peak_memory]
        return float(np.fmin.reduce([run.step_seconds for row in [self, *same] for run in row.runs.values()]))

    @property
    def peak_memory(self) -> float:
        """The mean over the seeds of a step's peak memory, in bytes; NaN if unknown."""
        return fmean(run.peak_memory for run in self.runs.values())

    def test(self, name: str) -> dict[int, float]:
        """A test metric by seed, for the runs that have it."""
        found = {seed: run.summary["test"].get(name) for seed, run in self.finished.items()}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclass
class Comparison:
    """The comparison on one data set: ``rows`` are compared, ``candidates`` also include settings not selected."""

    data: str
    metrics: dict[str, bool | None]  # whether higher is better, None if unknown
    rows: list[Row]
    candidates: list[Row]
    runs: list[Run]
    notes: list[str] = field(default_factory=list)

    @property
    def directed(self) -> dict[str, bool]:
        """The metrics with a known direction."""
        return {name: higher for name, higher in self.metrics.items() if higher is not None}

    @property
    def methods(self) -> list[Row]:
        """The rows without the single-task baselines."""
        return [row for row in self.rows if not row.is_baseline]


def compare(runs: Sequence[Run], tune: Sequence[str] = ()) -> list[Comparison]:
    """One comparison per data set. Values of the ``tune`` keys are selected on validation; other keys make rows.

    ReportError for a key in ``tune`` whose value is the same in every run.
    """
    by_data: dict[str, list[Run]] = {}
    # Runs without a configuration failed early; they are noted in the first comparison.
    for run in sorted(runs, key=lambda run: not run.config):
        data = class_name(run.settings, "data") or next(iter(by_data), "unknown")
        by_data.setdefault(data, []).append(run)
    settings = [run.settings for run in runs]
    varying = differing_keys(settings)
    for key in tune:
        if not any(k == key or k.startswith(f"{key}.") for k in varying):
            some = ", ".join(k for k in varying if not k.endswith("_target_")) or "nothing"
            raise ReportError(f"--tune {key}: no two runs differ in it; they differ in {some}.")
    return [_compare(data, own, tune) for data, own in by_data.items()]


def _compare(data: str, runs: list[Run], tune: Sequence[str]) -> Comparison:
    notes: list[str] = []
    candidates = _group([run for run in runs if run.config] or runs, notes)
    settings = [row.settings for row in candidates]
    hidden = interpolations_of(settings, tune) if tune else set()
    rows = _select(candidates, hidden, tune, notes)
    for row, label in zip(rows, row_labels([row.settings for row in rows], hidden), strict=True):
        row.label = label
    for row, label in zip(candidates, row_labels(settings, set()), strict=True):
        row.label = row.label or label
    rows.sort(key=lambda row: (not row.is_baseline, not row.is_equal_weighting, not row.is_static))
    comparison = Comparison(data, _metrics(rows), rows, candidates, runs, notes)
    _measure(comparison, hidden)
    _add_notes(comparison)
    return comparison


def _group(runs: list[Run], notes: list[str]) -> list[Row]:
    """One row per distinct settings. Of two runs with one seed, a finished one counts, and the later of two such."""
    groups: dict[tuple, Row] = {}
    for run in runs:
        row = groups.setdefault(tuple(sorted((key, str(v)) for key, v in run.settings.items())), Row({}))
        other = row.runs.get(run.seed)
        if other is not None:
            notes.append(f"{other.name} and {run.name} are the same run twice; only one counts.")
        if other is None or run.finished or not other.finished:
            row.runs[run.seed] = run
    return list(groups.values())


def _select(candidates: list[Row], hidden: set[str], tune: Sequence[str], notes: list[str]) -> list[Row]:
    """Of candidates that differ in tuned keys alone, the one with the best validation value."""
    if not tune:
        return list(candidates)
    groups: dict[tuple, list[Row]] = {}
    for row in candidates:
        key = tuple(sorted((k, str(v)) for k, v in row.settings.items() if k not in hidden))
        groups.setdefault(key, []).append(row)
    rows = []
    for group in groups.values():
        seeds = max(len(row.finished) for row in group)
        complete = [row for row in group if len(row.finished) == seeds]
        best = _best(complete)
        best.others = [row for row in group if row is not best]
        own = [key for key in best.settings if any(key == k or key.startswith(f"{k}.") for k in tune)]
        best.tuned = {key: best.settings[key] for key in own if len({str(row.settings.get(key)) for row in group}) > 1}
        if len(complete) < len(group):
            notes.append(
                f"{len(group) - len(complete)} settings have fewer finished seeds than others, and are not selected."
            )
        rows.append(best)
    return rows


def _best(rows: Sequence[Row]) -> Row:
    lower = rows[0].first.monitor[1] == "min"
    worst = math.inf if lower else -math.inf
    values = [worst if math.isnan(row.validation) else row.validation for row in rows]
    return rows[int(np.argmin(values) if lower else np.argmax(values))]


def _metrics(rows: Sequence[Row]) -> dict[str, bool | None]:
    """The tasks' metrics with their directions; a task without a metric of known direction is ranked by its loss."""
    directions: dict[str, bool | None] = {}
    for row in rows:
        for run in row.finished.values():
            tasks = [f"{task}/" for task in run.tasks]
            names = [name for name in run.summary["test"] if name.startswith(tuple(tasks))]
            given = run.summary.get("higher_is_better", {})
            directions = {name: given.get(name) for name in names} | directions
            for task in run.tasks:
                own = [name for name in names if name.startswith(f"{task}/")]
                if all(given.get(name) is None for name in own) and f"loss/{task}" in run.summary["test"]:
                    directions.setdefault(f"loss/{task}", False)
    order = [task for row in rows for task in row.first.tasks]
    return dict(sorted(directions.items(), key=lambda item: order.index(task_of(item[0]))))


def _measure(comparison: Comparison, hidden: set[str]) -> None:
    free = hidden | {"tasks"}
    for row in comparison.rows:
        row.metrics = {
            name: interval(list(values.values())) for name in comparison.metrics if (values := row.test(name))
        }
        row.reference = _reference(row, comparison.methods, free)
        if row.is_baseline:
            continue
        _against_reference(row, comparison.metrics)
        _against_baselines(row, comparison, free)
    methods = comparison.methods
    means = [[_mean(row.metrics.get(name)) for name in comparison.directed] for row in methods]
    table = np.array(means).reshape(len(methods), len(comparison.directed))
    for row, rank in zip(methods, mean_ranks(table, list(comparison.directed.values())), strict=True):
        row.rank = float(rank)


def _mean(found: Interval | None) -> float:
    return math.nan if found is None else found.mean


def _comparable(a: Row, b: Row, free: set[str]) -> bool:
    """Whether two rows differ at most in strategy, weighting and the free keys."""
    keys = a.settings.keys() | b.settings.keys()
    return all(
        key in free or key.startswith(("strategy.", "weighting.")) or a.settings.get(key) == b.settings.get(key)
        for key in keys
    )


def _reference(row: Row, methods: Sequence[Row], free: set[str]) -> Row | None:
    """Equal weighting with the same other settings. Naive is preferred: its time and memory are the usual baseline."""
    equal = [other for other in methods if other.is_equal_weighting and _comparable(row, other, free)]
    equal.sort(key=lambda other: class_name(other.settings, "strategy") != "Naive")
    return equal[0] if equal else None


def _against_reference(row: Row, metrics: dict[str, bool | None]) -> None:
    if row.reference is None:
        return
    if row.reference is not row:
        row.differences = {
            name: paired_difference(row.test(name), row.reference.test(name)) for name in metrics if row.test(name)
        }
    row.time_ratio = row.step_seconds / row.reference.step_seconds
    row.memory_ratio = row.peak_memory / row.reference.peak_memory


def _against_baselines(row: Row, comparison: Comparison, free: set[str]) -> None:
    """Δm of each seed against the baselines' means over their seeds."""
    baselines: dict[str, float] = {}
    for task in row.first.tasks:
        own = [b for b in comparison.rows if b.is_baseline and b.first.tasks == [task] and _comparable(row, b, free)]
        if not own or not own[0].finished:
            return
        found = _best(own).metrics
        baselines |= {name: found[name].mean for name in comparison.directed if name in found}
    seeds = [
        {name: values[seed] for name in comparison.directed if seed in (values := row.test(name))}
        for seed in row.finished
    ]
    if not baselines or any(set(values) != set(baselines) for values in seeds) or not seeds:
        return
    deltas = [by_metric(values, baselines, comparison.directed) for values in seeds]
    row.delta_metric = interval(deltas)
    row.delta_task = interval([by_task(values, baselines, comparison.directed) for values in seeds])
    row.interquartile = bootstrap(deltas)


def _add_notes(comparison: Comparison) -> None:
    """Note runs that are not counted in full, and statistics that the runs do not allow."""
    for run in comparison.runs:
        comparison.notes += _run_notes(run)
    few = [row for row in comparison.rows if 0 < len(row.finished) < SEEDS]
    if few:
        which = "all" if len(few) == len(comparison.rows) else ", ".join(row.label for row in few)
        comparison.notes.append(f"Fewer than {SEEDS} seeds, so no interval: {which}.")
    unknown = [name for name, higher in comparison.metrics.items() if higher is None]
    if unknown:
        comparison.notes.append(
            f"Not ranked and not in Δm, because whether higher is better is unknown: {', '.join(unknown)}."
        )
    comparison.notes += _baseline_notes(comparison)
    comparison.notes += _reference_notes(comparison.methods)


def _run_notes(run: Run) -> Iterator[str]:
    if run.status == "running":
        yield f"{run.name} is running, or was killed."
    elif not run.finished:
        note = f"{run.name} is {run.status}{f': {run.error}' if run.error else ''}"
        yield note.rstrip(".") + "."
    elif not run.config:
        yield f"{run.name} has no readable config.yaml, so it is in no row."
    if run.malformed_lines:
        yield f"{run.name}/metrics.jsonl has {run.malformed_lines} malformed lines, which are ignored."


def _baseline_notes(comparison: Comparison) -> Iterator[str]:
    methods = comparison.methods
    tasks = dict.fromkeys(task for row in methods for task in row.first.tasks)
    alone = {row.first.tasks[0] for row in comparison.rows if row.is_baseline}
    without = [task for task in tasks if task not in alone]
    if without:
        asked = " ".join(f"tasks=[{task}]" for task in without[:4])
        yield f"No Δm: there is no single-task baseline of {', '.join(without)} here (also run {asked})."
    elif any(row.delta_metric is None and row.finished for row in methods):
        yield "No Δm for rows whose single-task baselines have other settings: give the differing keys to --tune."


def _reference_notes(methods: Sequence[Row]) -> Iterator[str]:
    if methods and not any(row.reference for row in methods):
        yield "No differences and ratios: there is no run of equal weighting with the same settings."
    for row in methods:
        if row.reference not in (None, row) and row.finished.keys() != row.reference.finished.keys():
            yield f"{row.label} and {row.reference.label} have different seeds; their differences use the common ones."
