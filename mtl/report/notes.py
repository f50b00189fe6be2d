"""What must be said beside a comparison: what is not counted, what the runs do not allow, and what is not alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mtl.report.names import ABSENT, differing_keys
from mtl.report.runs import Run
from mtl.report.search import is_trial
from mtl.report.statistics import SEEDS
from mtl.report.timing import UNKNOWN

if TYPE_CHECKING:
    from mtl.report.compare import Comparison, Row

# What a comparison of methods may vary.
METHOD = ("architecture.", "strategy.", "weighting.", "optimizer.", "scheduler.", "losses.")


def notes_on(comparison: Comparison, hidden: set[str]) -> list[str]:
    """All notes on a comparison; ``hidden``: the keys that were tuned, and what follows from them."""
    rows = comparison.rows
    runs = [run for row in rows for run in row.finished.values()]
    notes = [note for run in comparison.runs for note in _run_notes(run)]
    pruned = sum(run.status == "pruned" for run in comparison.runs)
    if pruned:
        notes.append(f"{pruned} runs were pruned by a search.")
    if any(not run.finished for run in comparison.runs):
        notes.append("A run that has not finished is in no mean, no ratio and no curve of a row with finished runs.")
    notes += _seed_notes(rows)
    notes += _metric_notes(comparison)
    notes += _selection_notes(runs)
    notes += _edge_notes(rows)
    notes += _budget_notes(comparison)
    notes += _trial_notes(rows)
    notes += _unlike_notes(runs, comparison.methods, hidden)
    notes += _baseline_notes(comparison)
    notes += _reference_notes(comparison.methods)
    notes += _time_notes(comparison.methods)
    return notes


def task_warnings(methods: Sequence[Row]) -> Iterator[str]:
    """A sentence where rows of several tasks train different ones."""
    rows: dict[tuple[str, ...], Row] = {}
    for row in methods:
        rows.setdefault(tuple(sorted(row.first.tasks)), row)
    if len(rows) > 1:
        named = "; ".join(f"{row.label} trains {', '.join(tasks)}" for tasks, row in list(rows.items())[:4])
        yield (
            f"The rows train different tasks: {named}{'; …' * (len(rows) > 4)}. Their total losses, weights and Δm are "
            "of different tasks: compare them task by task, or give the runs of one set of tasks."
        )


def _run_notes(run: Run) -> Iterator[str]:
    if run.status == "running":
        yield f"{run.name} is running, or was killed."
    elif not run.finished and run.status != "pruned":
        note = f"{run.name} is {run.status}{f': {run.error}' if run.error else ''}"
        yield note.rstrip(".") + "."
    elif not run.config:
        yield f"{run.name} has no readable config.yaml, so it is in no row."
    if run.malformed_lines:
        yield f"{run.name}/metrics.jsonl has {run.malformed_lines} malformed lines, which are ignored."
    for split, left_out in (run.summary.get("skipped", {}).get("samples") or {}).items():
        if split in ("val", "test"):
            yield f"{run.name} left out {len(left_out)} samples of {split} that could not be read."


def _seed_notes(rows: Sequence[Row]) -> Iterator[str]:
    few = [row for row in rows if 0 < len(row.finished) < SEEDS]
    if few:
        which = "all" if len(few) == len(rows) else ", ".join(row.label for row in few)
        yield f"Fewer than {SEEDS} seeds, so no interval: {which}."
    if any(not row.is_baseline for row in few):
        yield "One or two seeds show nothing about a difference, so nothing is bold and no row has a mean rank."


def _metric_notes(comparison: Comparison) -> Iterator[str]:
    unknown = [name for name, higher in comparison.metrics.items() if higher is None]
    if unknown:
        yield f"Not ranked and not in Δm, because whether higher is better is unknown: {', '.join(unknown)}."
    for row in comparison.rows:
        for name in comparison.metrics:
            missing = [str(seed) for seed in row.finished if seed not in row.test(name)]
            if missing and row.test(name):
                yield f"{row.label} has no finite {name} with seed {', '.join(missing)}: its mean is of the others."


def _selection_notes(runs: Sequence[Run]) -> Iterator[str]:
    """What flatters the test metrics, or the best validation metrics."""
    settings = {run.name: run.settings for run in runs}
    if any(own.get("data.validation") == 0 for own in settings.values()):
        yield "data.validation=0: val is the test split, so the models were selected on the test split, which flatters."
    for key in ("overfit_batches", "fast_dev_run", "limit_val_batches"):
        if any(own.get(f"trainer.{key}") for own in settings.values()):
            yield f"trainer.{key} is set, so the metrics are of a few batches and not of the whole split."
    counts = {len(run.series.get(f"val/{run.monitor}", [()])[0]) for run in runs}
    if len(counts) > 1:
        yield (
            f"The runs were evaluated {min(counts)} to {max(counts)} times: the best validation metric of more "
            "evaluations is more flattering."
        )


def _edge_notes(rows: Sequence[Row]) -> Iterator[str]:
    """Settings of the optimizer that were selected at the edge of those that were tried."""
    edges: dict[str, list[str]] = {}
    for row in rows:
        for key, chosen in ((key, value) for key, value in row.tuned.items() if key.startswith("optimizer.")):
            values: list[Any] = [own.settings.get(key) for own in (row, *row.others)]
            tried = [float(value) for value in values if _is_number(value)]
            if _is_number(chosen) and chosen in (min(tried), max(tried)):
                edges.setdefault(f"{key}={chosen:g} of {min(tried):g} to {max(tried):g}", []).append(row.label)
    for edge, labels in edges.items():
        yield f"Selected at the edge of what was tried, so a further value may be better: {edge} ({', '.join(labels)})."


def _budget_notes(comparison: Comparison) -> Iterator[str]:
    """What a selection among many trials does to the metrics, and budgets that are not equal; ‡ in the table."""
    tuned = [row for row in comparison.methods if row.others]
    if len({row.budget.offered for row in tuned}) > 1:
        yield (
            "‡ The budgets differ: the row with more trials or steps has had more chances, and a difference between "
            "the rows may be the budget's. Give every strategy as many trials of as many steps."
        )
    if any(len(row.finished) == 1 and row.others for row in tuned):
        yield (
            "A row of one seed is the best of several trials on validation, which flatters its validation metrics: "
            "train the selected settings again with other seeds before rows are compared."
        )


def _trial_notes(rows: Sequence[Row]) -> Iterator[str]:
    """Rows that mix the trial which was selected with runs of seeds that the search has not seen."""
    mixed = []
    for row in rows:
        trials = [is_trial(run) for run in row.finished.values()]
        if row.others and any(trials) and not all(trials):
            mixed.append(row.label)
    if mixed:
        yield (
            "The trial that a search selected is in the mean beside seeds that the search has not seen, which flatters "
            f"the mean: {', '.join(mixed)}. Give mtl-report the folders of the later runs alone."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unlike_notes(runs: Sequence[Run], methods: Sequence[Row], hidden: set[str]) -> Iterator[str]:
    """In what the runs differ beside the methods that are compared."""
    recorded = {
        "different code (git)": [run.summary.get("versions", {}).get("git") for run in runs],
        "different versions of torch": [run.summary.get("versions", {}).get("torch") for run in runs],
        "different devices": [run.summary.get("device") for run in runs],
        "different machines": [run.host for run in runs],
        "different numbers of samples": [_samples(run.summary.get("samples")) for run in runs],
        "different tolerances of conflict/fraction": [_tolerance(run) for run in runs],
    }
    for what, values in recorded.items():
        counts = {str(value): values.count(value) for value in values if value is not None}
        if len(counts) > 1:
            said = ", ".join(f"{value} ({count} run{'s' * (count != 1)})" for value, count in counts.items())
            yield f"The runs are of {what}: {said}."
    if any("every" in (run.config.get("conflict") or {}) and _tolerance(run) is None for run in runs):
        yield (
            "Some runs were made before conflict.tolerance: their conflict/fraction counts every negative cosine, and "
            "their conflict/cancellation is 1 where nothing cancels."
        )
    groups = [row.settings for row in methods]
    more = []
    for key in differing_keys(groups):
        if key not in hidden and key != "tasks" and not key.startswith(METHOD):
            values = list(dict.fromkeys(str(settings.get(key, ABSENT)) for settings in groups))
            more.append(f"{key} ({', '.join(values[:4])}{', …' * (len(values) > 4)})")
    if more:
        yield f"The rows differ in more than the method: {', '.join(more)}. What follows from that is no finding."


def _samples(counts: Any) -> str | None:
    return "/".join(map(str, counts.values())) if counts else None


def _tolerance(run: Run) -> Any:
    return (run.config.get("conflict") or {}).get("tolerance")


def _baseline_notes(comparison: Comparison) -> Iterator[str]:
    methods = comparison.methods
    tasks = dict.fromkeys(task for row in methods for task in row.first.tasks)
    alone = {row.first.tasks[0] for row in comparison.rows if row.is_baseline}
    without = [task for task in tasks if task not in alone]
    if without:
        asked = " ".join(f"tasks=[{task}]" for task in without[:4])
        yield f"No Δm: there is no single-task baseline of {', '.join(without)} here (also run {asked})."
        return
    for row in methods:
        if row.no_delta and row.finished:
            yield f"No Δm of {row.label}: {row.no_delta}."


def _reference_notes(methods: Sequence[Row]) -> Iterator[str]:
    if methods and not any(row.reference for row in methods):
        yield "No differences and ratios: there is no run of equal weighting with the same settings."
    for row in methods:
        if row.reference not in (None, row) and row.finished.keys() != row.reference.finished.keys():
            yield f"{row.label} and {row.reference.label} have different seeds; their differences use the common ones."


def _time_notes(methods: Sequence[Row]) -> Iterator[str]:
    """Why step times are no measure of cost. † in the table stands for these."""
    doubts: dict[str, list[str]] = {}
    for row in methods:
        for doubt in row.time.doubts if row.time and row is not row.reference else ():
            doubts.setdefault(doubt, []).append(row.label)
    for doubt, labels in doubts.items():
        which = ", ".join(labels[:6]) + ", …" * (len(labels) > 6)
        yield (
            f"† {which}: runs of this row or of the row it is compared with {doubt}. The difference of step times may "
            "be the machine's and not the strategy's."
        )
    if any(doubt != UNKNOWN for doubt in doubts):
        yield (
            "To measure step times, run one job at a time on an idle machine, and the strategies in turn: with seed=… "
            "before strategy=… on the command line. experiments/cost measures them side by side in one process."
        )
