"""From runs to a comparison: what belongs together, what was tuned, what it is measured against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from mtl.report.delta_m import by_metric, by_task, task_of
from mtl.report.names import PLAIN, class_name, differing, interpolations_of, label_all
from mtl.report.runs import ReportError, Run
from mtl.report.statistics import Interval, bootstrap, interval, mean_ranks, paired


@dataclass(eq=False)
class Row:
    """Runs that differ in their seed alone, and what they come to."""

    runs: dict[int, Run]  # by seed
    label: str = ""
    tuned: dict[str, Any] = field(default_factory=dict)  # the values that were selected on the validation split
    others: list[Row] = field(default_factory=list)  # the settings that it was selected from
    metrics: dict[str, Interval] = field(default_factory=dict)  # of the test split
    differences: dict[str, Interval] = field(default_factory=dict)  # to the reference, paired by seed
    delta_metric: Interval | None = None
    delta_task: Interval | None = None
    robust: tuple[float, float, float] | None = None  # interquartile mean of Δm by metric, and its bootstrap interval
    rank: float = math.nan
    time_ratio: float = math.nan
    memory_ratio: float = math.nan
    reference: Row | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration that the runs have in common."""
        return self.first.settings

    @property
    def first(self) -> Run:
        """Any of the runs."""
        return next(iter(self.runs.values()))

    @property
    def finished(self) -> dict[int, Run]:
        """The runs that have test metrics."""
        return {seed: run for seed, run in self.runs.items() if run.finished}

    @property
    def is_baseline(self) -> bool:
        """Whether one task is trained alone."""
        return len(self.first.tasks) == 1

    @property
    def is_plain(self) -> bool:
        """Whether it is the plain sum of the losses."""
        return self.is_static and class_name(self.settings, "weighting") in ("Equal", "")

    @property
    def is_static(self) -> bool:
        """Whether the weights are fixed: a point of the front that a strategy has to beat."""
        plain = class_name(self.settings, "strategy") in PLAIN
        return plain and class_name(self.settings, "weighting") in ("Equal", "Static", "") and not self.is_baseline

    @property
    def validation(self) -> float:
        """The mean over the seeds of the best value of the monitored metric."""
        values = [run.summary.get("best", {}).get("monitor") for run in self.finished.values()]
        return fmean(values) if values and None not in values else math.nan

    @property
    def step_seconds(self) -> float:
        """The fastest reading of a step's time; NaN where there is none.

        Other work on the machine can only add to it, so every run counts that does the same work: all seeds, and of the
        settings that were not selected those with the same peak memory, as a learning rate changes nothing in.
        """
        same = [row for row in self.others if row.peak_memory == self.peak_memory]
        return float(np.fmin.reduce([run.step_seconds for row in [self, *same] for run in row.runs.values()]))

    @property
    def peak_memory(self) -> float:
        """The mean over the seeds of the bytes at a step's peak; NaN where they are not known."""
        return fmean(run.peak_memory for run in self.runs.values())

    def test(self, name: str) -> dict[int, float]:
        """A test metric by seed; runs without it are left out."""
        found = {seed: run.summary["test"].get(name) for seed, run in self.finished.items()}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclass
class Comparison:
    """All that was found on one data set. ``rows`` is what is compared, ``candidates`` also what was not selected."""

    data: str
    metrics: dict[str, bool | None]  # by name, whether higher is better
    rows: list[Row]
    candidates: list[Row]
    runs: list[Run]
    notes: list[str] = field(default_factory=list)

    @property
    def directed(self) -> dict[str, bool]:
        """The metrics that can be ranked."""
        return {name: higher for name, higher in self.metrics.items() if higher is not None}

    @property
    def methods(self) -> list[Row]:
        """The rows that are no single-task baselines."""
        return [row for row in self.rows if not row.is_baseline]


def compare(runs: Sequence[Run], tune: Sequence[str] = ()) -> list[Comparison]:
    """One comparison a data set. ``tune`` names the keys whose best values are to be selected, a row each otherwise.

    ReportError for a key to tune that is the same in every run.
    """
    by_data: dict[str, list[Run]] = {}
    # Those that failed before they were configured come last, and are told of with the others.
    for run in sorted(runs, key=lambda run: not run.config):
        named = class_name(run.settings, "data") or next(iter(by_data), "unknown")
        by_data.setdefault(named, []).append(run)
    settings = [run.settings for run in runs]
    varying = differing(settings)
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
    for row, label in zip(rows, label_all([row.settings for row in rows], hidden), strict=True):
        row.label = label
    for row, label in zip(candidates, label_all(settings, set()), strict=True):
        row.label = row.label or label
    rows.sort(key=lambda row: (not row.is_baseline, not row.is_plain, not row.is_static))
    comparison = Comparison(data, _metrics(rows), rows, candidates, runs, notes)
    _measure(comparison, hidden)
    _say_what_is_missing(comparison)
    return comparison


def _group(runs: list[Run], notes: list[str]) -> list[Row]:
    """Runs whose settings are the same; of two with the same seed, the later one that is finished."""
    groups: dict[tuple, Row] = {}
    for run in runs:
        row = groups.setdefault(tuple(sorted((key, str(v)) for key, v in run.settings.items())), Row({}))
        other = row.runs.get(run.seed)
        if other is not None:
            notes.append(f"{other.name} and {run.name} are the same run twice; one of them is counted.")
        if other is None or run.finished or not other.finished:
            row.runs[run.seed] = run
    return list(groups.values())


def _select(candidates: list[Row], hidden: set[str], tune: Sequence[str], notes: list[str]) -> list[Row]:
    """Of candidates that differ in tuned keys alone, the one with the best validation."""
    if not tune:
        return list(candidates)
    alike: dict[tuple, list[Row]] = {}
    for row in candidates:
        key = tuple(sorted((k, str(v)) for k, v in row.settings.items() if k not in hidden))
        alike.setdefault(key, []).append(row)
    rows = []
    for group in alike.values():
        seeds = max(len(row.finished) for row in group)
        whole = [row for row in group if len(row.finished) == seeds]
        best = _best(whole)
        best.others = [row for row in group if row is not best]
        own = [key for key in best.settings if any(key == k or key.startswith(f"{k}.") for k in tune)]
        best.tuned = {key: best.settings[key] for key in own if len({str(row.settings.get(key)) for row in group}) > 1}
        if len(whole) < len(group):
            notes.append(
                f"{len(group) - len(whole)} settings have fewer finished seeds than others, and are not selected."
            )
        rows.append(best)
    return rows


def _best(rows: Sequence[Row]) -> Row:
    lower = rows[0].first.config.get("trainer", {}).get("mode", "min") == "min"
    worst = math.inf if lower else -math.inf
    values = [worst if math.isnan(row.validation) else row.validation for row in rows]
    return rows[int(np.argmin(values) if lower else np.argmax(values))]


def _metrics(rows: Sequence[Row]) -> dict[str, bool | None]:
    """The tasks' metrics with their directions; a task that has none that can be ranked is judged by its loss."""
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


def _alike(a: Row, b: Row, free: set[str]) -> bool:
    """Whether two rows differ in nothing but strategy, weighting and the free keys."""
    keys = a.settings.keys() | b.settings.keys()
    return all(
        key in free or key.startswith(("strategy.", "weighting.")) or a.settings.get(key) == b.settings.get(key)
        for key in keys
    )


def _reference(row: Row, methods: Sequence[Row], free: set[str]) -> Row | None:
    """The plain sum with the same other settings; Naive before Detached, for its time and memory."""
    plain = [other for other in methods if other.is_plain and _alike(row, other, free)]
    plain.sort(key=lambda other: class_name(other.settings, "strategy") != "Naive")
    return plain[0] if plain else None


def _against_reference(row: Row, metrics: dict[str, bool | None]) -> None:
    if row.reference is None:
        return
    if row.reference is not row:
        row.differences = {name: paired(row.test(name), row.reference.test(name)) for name in metrics if row.test(name)}
    row.time_ratio = row.step_seconds / row.reference.step_seconds
    row.memory_ratio = row.peak_memory / row.reference.peak_memory


def _against_baselines(row: Row, comparison: Comparison, free: set[str]) -> None:
    """Δm of every seed, against the mean of each task's baseline over its seeds."""
    baselines: dict[str, float] = {}
    for task in row.first.tasks:
        own = [b for b in comparison.rows if b.is_baseline and b.first.tasks == [task] and _alike(row, b, free)]
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
    row.robust = bootstrap(deltas)


def _say_what_is_missing(comparison: Comparison) -> None:
    notes, methods = comparison.notes, comparison.methods
    for run in comparison.runs:
        if run.status == "running":
            notes.append(f"{run.name} is running, or was killed.")
        elif not run.finished:
            words = f"{run.name} is {run.status}{f': {run.error}' if run.error else ''}"
            notes.append(words.rstrip(".") + ".")
        elif not run.config:
            notes.append(f"{run.name} has no config.yaml that can be read, and is in no row.")
        if run.broken:
            notes.append(f"{run.name}/metrics.jsonl has {run.broken} broken lines, which were left out.")
    few = [row for row in comparison.rows if 0 < len(row.finished) < 3]
    if few:
        which = "all" if len(few) == len(comparison.rows) else ", ".join(row.label for row in few)
        notes.append(f"Fewer than 3 seeds, so no interval: {which}.")
    unknown = [name for name, higher in comparison.metrics.items() if higher is None]
    if unknown:
        notes.append(f"Whether higher is better is not known, so not ranked and not in Δm: {', '.join(unknown)}.")
    tasks = dict.fromkeys(task for row in methods for task in row.first.tasks)
    alone = {row.first.tasks[0] for row in comparison.rows if row.is_baseline}
    without = [task for task in tasks if task not in alone]
    if without:
        asked = " ".join(f"tasks=[{task}]" for task in without[:4])
        notes.append(f"No Δm: there is no single-task baseline of {', '.join(without)} here (run {asked} too).")
    elif any(row.delta_metric is None and row.finished for row in methods):
        notes.append("No Δm where the single-task baselines have other settings; --tune the keys that differ.")
    if methods and not any(row.reference for row in methods):
        notes.append(
            "No differences and ratios: there is no run of the plain sum of the losses with the same settings."
        )
    for row in methods:
        if row.reference not in (None, row) and row.finished.keys() != row.reference.finished.keys():
            notes.append(
                f"{row.label} and {row.reference.label} have not the same seeds; their differences use the common ones."
            )
