"""Groups runs into the rows of a comparison, selects tuned settings, and measures rows against references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from mtl.delta_m import by_metric, by_task, relative_changes, task_of
from mtl.report.names import class_name, differing_keys, interpolations_of, is_unbalanced, row_labels
from mtl.report.notes import notes_on, task_warnings
from mtl.report.runs import ReportError, Run
from mtl.report.search import Budget, Searched, searched_keys, searches
from mtl.report.size import parameters, warnings_on
from mtl.report.statistics import SEEDS, Interval, bootstrap, clear_winner, interval, mean_ranks, paired_difference
from mtl.report.timing import TimeRatio, time_ratio


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
    deltas: dict[str, dict[int, float]] = field(default_factory=dict)  # Δm by seed, "metric" and "task"
    no_delta: str = ""  # why there is no Δm
    time: TimeRatio | None = None  # to the reference
    memory_ratio: float = math.nan
    single_networks: float = math.nan  # its parameters over those of one plain network for each of its tasks
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
    def architecture(self) -> dict[str, Any]:
        """The settings of the architecture."""
        return {key: value for key, value in self.settings.items() if key.startswith("architecture.")}

    @property
    def is_plain(self) -> bool:
        """Whether it is hard sharing, which on one task is a plain network."""
        return class_name(self.settings, "architecture") in ("Hard", "")

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
    def step_times(self) -> np.ndarray:
        """The logged step times of all finished runs that do the same work, in seconds.

        These are all seeds, and the settings that were not selected but have the same peak memory.
        """
        same = [row for row in self.others if row.peak_memory == self.peak_memory]
        times = [run.step_times for row in [self, *same] for run in row.finished.values()]
        return np.concatenate(times) if times else np.array([])

    @property
    def step_seconds(self) -> float:
        """The median step time, in seconds; NaN without one."""
        return float(np.median(self.step_times)) if len(self.step_times) else math.nan

    @property
    def peak_memory(self) -> float:
        """The mean over the finished seeds of a step's peak memory, in bytes; NaN if unknown."""
        return fmean([run.peak_memory for run in self.finished.values()] or [math.nan])

    @property
    def budget(self) -> Budget:
        """What was tried to select this row: all runs of the settings that differ from it in tuned keys alone."""
        return Budget.of([run for row in (self, *self.others) for run in row.runs.values()])

    def test(self, name: str) -> dict[int, float]:
        """A test metric by seed, for the runs that have it as a finite number."""
        found = {seed: run.summary["test"].get(name) for seed, run in self.finished.items()}
        return {seed: value for seed, value in found.items() if value is not None and math.isfinite(value)}


@dataclass
class Comparison:
    """The comparison on one data set: ``rows`` are compared, ``candidates`` also include settings not selected."""

    data: str
    metrics: dict[str, bool | None]  # whether higher is better, None if unknown
    rows: list[Row]
    candidates: list[Row]
    runs: list[Run]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # what is said before the tables
    searches: list[Searched] = field(default_factory=list)
    best: dict[str, Row] = field(
        default_factory=dict
    )  # by metric or Δm, the row that is clearly better than all others

    @property
    def directed(self) -> dict[str, bool]:
        """The metrics with a known direction."""
        return {name: higher for name, higher in self.metrics.items() if higher is not None}

    @property
    def methods(self) -> list[Row]:
        """The rows without the single-task baselines."""
        return [row for row in self.rows if not row.is_baseline]


def compare(runs: Sequence[Run], tune: Sequence[str] = (), growing: bool = False) -> list[Comparison]:
    """One comparison per data set. Values of the ``tune`` keys are selected on validation; other keys make rows.

    The keys that a search has searched are tuned as well.

    ReportError for a key in ``tune`` whose value is the same in every run; a note where more runs come (``growing``).
    """
    by_data: dict[str, list[Run]] = {}
    # Runs without a configuration failed early; they are noted in the first comparison.
    for run in sorted(runs, key=lambda run: not run.config):
        data = run.data or next(iter(by_data), "unknown")
        by_data.setdefault(data, []).append(run)
    settings = [run.settings for run in runs]
    varying = differing_keys(settings)
    some = ", ".join(k for k in varying if not k.endswith("_target_")) or "nothing"
    same = [key for key in tune if not any(k == key or k.startswith(f"{key}.") for k in varying)]
    unused = [f"--tune {key}: no two runs differ in it; they differ in {some}." for key in same]
    if unused and not growing:
        raise ReportError(unused[0])
    tune = list(dict.fromkeys([*(key for key in tune if key not in same), *searched_keys(runs)]))
    comparisons = [_compare(data, own, tune) for data, own in by_data.items()]
    for comparison in comparisons:
        comparison.notes += unused
    return comparisons


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
    rows.sort(key=lambda row: (not row.is_baseline, not row.is_equal_weighting, not row.is_static, not row.is_plain))
    comparison = Comparison(data, _metrics(rows), rows, candidates, runs, notes, searches=searches(runs, notes))
    _measure(comparison, hidden)
    comparison.notes += notes_on(comparison, hidden)
    comparison.warnings += [*task_warnings(comparison.methods), *warnings_on(comparison.methods)]
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
    rows, behind = [], 0
    for group in groups.values():
        seeds = max(len(row.finished) for row in group)
        complete = [row for row in group if len(row.finished) == seeds]
        best = _best(complete)
        best.others = [row for row in group if row is not best]
        own = [key for key in best.settings if any(key == k or key.startswith(f"{k}.") for k in tune)]
        best.tuned = {key: best.settings[key] for key in own if len({str(row.settings.get(key)) for row in group}) > 1}
        behind += sum(len(row.finished) < seeds and row.first.status != "pruned" for row in group)
        rows.append(best)
    if behind:
        notes.append(f"{behind} settings have fewer finished seeds than others of their row, and are not selected.")
    return rows


def _best(rows: Sequence[Row]) -> Row:
    lower = next((run.lower_is_better for row in rows for run in row.finished.values()), rows[0].first.lower_is_better)
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
        row.single_networks = _single_networks(row, comparison, free)
        if row.is_baseline:
            continue
        _against_reference(row, comparison)
        _against_baselines(row, comparison, free)
    methods = [row for row in comparison.methods if row.finished]
    comparison.best = _clear_winners(comparison, methods)
    if any(len(row.finished) < SEEDS for row in methods):
        return  # ranks of so few seeds are ranks of noise
    means = [[_mean(row.metrics.get(name)) for name in comparison.directed] for row in methods]
    table = np.array(means).reshape(len(methods), len(comparison.directed))
    for row, rank in zip(methods, mean_ranks(table, list(comparison.directed.values())), strict=True):
        row.rank = float(rank)


def _clear_winners(comparison: Comparison, methods: Sequence[Row]) -> dict[str, Row]:
    columns = {name: ([row.test(name) for row in methods], higher) for name, higher in comparison.directed.items()}
    columns["Δm by metric"] = ([row.deltas.get("metric", {}) for row in methods], False)
    columns["Δm by task"] = ([row.deltas.get("task", {}) for row in methods], True)
    found = {name: clear_winner(values, higher) for name, (values, higher) in columns.items()}
    return {name: methods[index] for name, index in found.items() if index is not None}


def _mean(found: Interval | None) -> float:
    return math.nan if found is None else found.mean


def _comparable(a: Row, b: Row, free: set[str], parts: tuple[str, ...] = ("strategy.", "weighting.")) -> bool:
    """Whether two rows differ at most in the ``parts`` of the configuration and in the free keys."""
    keys = a.settings.keys() | b.settings.keys()
    return all(key in free or key.startswith(parts) or a.settings.get(key) == b.settings.get(key) for key in keys)


def _reference(row: Row, methods: Sequence[Row], free: set[str]) -> Row | None:
    """Equal weighting with the same other settings; of equal weighting itself, that under hard sharing.

    Naive is preferred: its time and memory are the usual baseline.
    """
    parts = ("strategy.", "weighting.", *["architecture."] * row.is_equal_weighting)
    equal = [other for other in methods if other.is_equal_weighting and _comparable(row, other, free, parts)]
    plain = [other for other in equal if other.is_plain]
    found = plain or [other for other in equal if other.architecture == row.architecture]
    found.sort(key=lambda other: class_name(other.settings, "strategy") != "Naive")
    return found[0] if found else None


def _baseline(row: Row, task: str, comparison: Comparison, free: set[str]) -> Row | None:
    """The single-task baseline of a task: a plain network where there is one, else one of an architecture."""
    parts = ("strategy.", "weighting.", "architecture.")
    own = [b for b in comparison.rows if b.is_baseline and b.first.tasks == [task] and _comparable(row, b, free, parts)]
    own = [b for b in own if b.is_plain] or [b for b in own if b.architecture == row.architecture]
    return _best(own) if own and own[0].finished else None


def _single_networks(row: Row, comparison: Comparison, free: set[str]) -> float:
    found = [_baseline(row, task, comparison, free) for task in row.first.tasks]
    sizes = [parameters(single) if single is not None and single.is_plain else math.nan for single in found]
    return parameters(row) / sum(sizes) if sizes and sum(sizes) else math.nan


def _against_reference(row: Row, comparison: Comparison) -> None:
    if row.reference is None:
        return
    if row.reference is not row:
        row.differences = {
            name: paired_difference(row.test(name), row.reference.test(name))
            for name in comparison.metrics
            if row.test(name)
        }
    row.time = time_ratio(row, row.reference, comparison.runs)
    row.memory_ratio = row.peak_memory / row.reference.peak_memory


def _against_baselines(row: Row, comparison: Comparison, free: set[str]) -> None:
    """Δm of each seed against the baselines' means over their seeds."""
    baselines: dict[str, float] = {}
    for task in row.first.tasks:
        single = _baseline(row, task, comparison, free)
        if single is None:
            row.no_delta = "its single-task baselines have other settings, or none: give the differing keys to --tune"
            return
        baselines |= {name: single.metrics[name].mean for name in comparison.directed if name in single.metrics}
    seeds = {
        seed: {name: values[seed] for name in comparison.directed if seed in (values := row.test(name))}
        for seed in row.finished
    }
    row.no_delta = _no_delta(seeds, baselines, comparison.directed)
    if row.no_delta or not seeds:
        return
    for kind, delta in (("metric", by_metric), ("task", by_task)):
        row.deltas[kind] = {seed: delta(values, baselines, comparison.directed) for seed, values in seeds.items()}
    row.delta_metric, row.delta_task = (interval(list(row.deltas[kind].values())) for kind in ("metric", "task"))
    row.interquartile = bootstrap(list(row.deltas["metric"].values()))


def _no_delta(seeds: dict[int, dict[str, float]], baselines: dict[str, float], higher: dict[str, bool]) -> str:
    """Why there is no Δm of these metrics by seed; empty if there is one."""
    if not baselines:
        return "no metric of its baselines has a known direction"
    for seed, values in seeds.items():
        for name in sorted(set(values) ^ set(baselines)):
            return f"{name} is missing in {f'seed {seed}' if name in baselines else 'its baseline'}"
        for name, change in relative_changes(values, baselines, higher).items():
            if math.isnan(change):
                return f"{name} is {values[name]:.3g}, and no share of a baseline of {baselines[name]:.3g}"
    return ""
