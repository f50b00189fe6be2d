"""A comparison as tables: Markdown for the terminal and report.md, and results.csv and results.json."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mtl.report import affinity, sharing, size
from mtl.report.compare import Comparison, Row
from mtl.report.names import differences, differing_keys
from mtl.report.search import FEW, Searched, as_json, settings
from mtl.report.statistics import CONFIDENCE, RUNS, Interval
from mtl.report.timing import equal_time, shared_machine

NOTHING = "–"


@dataclass
class Table:
    """A table with its title and an explanatory caption."""

    title: str
    caption: str
    header: list[str]
    lines: list[list[str]]
    bold: list[tuple[int, int]] = field(default_factory=list)  # line and column of each clear winner

    def markdown(self) -> str:
        """The table in Markdown, with aligned columns."""
        cells = [[_escape(cell) for cell in line] for line in [self.header, *self.lines]]
        widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
        padded = [
            [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
            for line in cells
        ]
        rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
        lines = [f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]]]
        return "\n".join([f"## {self.title}", "", *([self.caption, ""] if self.caption else []), *lines])


def _escape(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())


def format_interval(found: Interval | None, sign: str = "", expected: int = 0) -> str:
    """A mean with its interval, rounded to two digits of the interval; and of how many of ``expected`` values it is."""
    if found is None or not math.isfinite(found.mean):
        return NOTHING
    if found.count < expected:
        return f"{format_interval(found, sign)} ({found.count} of {expected})"
    if found.half is None:
        return f"{found.mean:{sign}.4g}"
    digits = 4 if found.half == 0 else min(6, max(0, 1 - math.floor(math.log10(found.half))))
    return f"{found.mean:{sign}.{digits}f} ± {found.half:.{digits}f}"


def arrow(higher_is_better: bool | None) -> str:
    """The direction in which the metric is better."""
    return {True: " ↑", False: " ↓", None: ""}[higher_is_better]


def tables(comparison: Comparison) -> list[Table]:
    """All tables: metrics, differences, sizes by part, what architectures decided, affinities, equal time, …"""
    makers = (
        _main, _differences, _searches, _fronts_of_searches, _parts, _sharing, _affinity, _agreement, _equal_time,
        _interquartile_means,
    )  # fmt: skip
    return [table for make in makers if (table := make(comparison)) is not None]


def _main(comparison: Comparison) -> Table:
    rows, methods = comparison.rows, comparison.methods
    tuned = any(row.tuned for row in rows)
    delta, ratio = any(row.delta_metric for row in methods), any(row.time for row in methods)
    ranked = sum(math.isfinite(row.rank) for row in methods) > 1
    qualities = {name: f"{name}{arrow(higher)}" for name, higher in comparison.metrics.items()}
    qualities |= {"Δm by metric": "Δm by metric, % ↓", "Δm by task": "Δm by task, % ↑"} if delta else {}
    header = ["", "seeds", *qualities.values(), *["mean rank"] * ranked]
    titles, sizes = _size_columns(comparison)
    header += ["step time ×", "memory ×"] * ratio + titles
    header += ["selected on validation", "budget: trials × steps"] * tuned
    lines = []
    for row, size_cells in zip(rows, sizes, strict=True):
        count = len(row.finished)
        line = [row.label, _seeds(row), *(format_interval(row.metrics.get(n), "", count) for n in comparison.metrics)]
        line += [format_interval(row.delta_metric, "+"), format_interval(row.delta_task, "+")] * delta
        line += [format_number(row.rank, ".2f")] * ranked
        line += [format_time(row), format_number(row.memory_ratio, ".2f")] * ratio
        line += size_cells + [format_settings(row.tuned), _budget(row, comparison)] * tuned
        lines.append(line)
    bold = [(rows.index(row), 2 + list(qualities).index(name)) for name, row in comparison.best.items()]
    title = f"{comparison.data}: test metrics"
    return Table(title, _main_caption(comparison, delta, ranked, ratio), header, lines, bold)


def _budget(row: Row, comparison: Comparison) -> str:
    """What was tried to select a row; ‡ where the strategies have not had equal budgets."""
    offered = {other.budget.offered for other in comparison.methods if other.others}
    return f"{row.budget}{' ‡' * (len(offered) > 1 and not row.is_baseline)}"


def _size_columns(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Titles and, for each row, cells of the models' sizes; none where all strategies have one size."""
    rows = comparison.rows
    if not size.differ(comparison.methods):
        return [], [[] for _ in rows]
    titles, columns = [], []
    for title, of in (("parameters", size.parameters), ("multiply-adds", size.multiply_adds)):
        title, cells = _in_one_unit(title, [of(row) for row in rows])
        titles.append(title)
        columns.append(cells)
    if any(math.isfinite(row.single_networks) for row in rows):
        titles.insert(1, "of single networks ×")
        columns.insert(1, [format_number(row.single_networks, ".2f") for row in rows])
    return titles, [list(cells) for cells in zip(*columns, strict=True)]


def _in_one_unit(title: str, values: Sequence[float]) -> tuple[str, list[str]]:
    unit, letter = size.unit_of(values)
    return f"{title}{f', {letter}' * bool(letter)}", [format_number(value / unit, ".4g") for value in values]


def format_time(row: Row) -> str:
    """A ratio of step times with its spread; † if something speaks against it. The reference is 1."""
    if row.time is None:
        return NOTHING
    if row is row.reference:
        return "1"
    return f"{row.time.value:.2f} ({row.time.low:.2f}–{row.time.high:.2f}){' †' * bool(row.time.doubts)}"


def _main_caption(comparison: Comparison, delta: bool, ranked: bool, ratio: bool) -> str:
    monitors = {run.monitor for row in comparison.rows for run in row.finished.values()}
    if not monitors:
        return "No run has finished, so there are no test metrics."
    best = f"with the best val/{monitors.pop()}" if len(monitors) == 1 else "that is best on validation"
    sentences = [f"Mean over the seeds. A run's metrics are those of its model {best}."]
    if any(found.half is not None for row in comparison.rows for found in row.metrics.values()):
        sentences[0] = sentences[0].replace("Mean", f"Mean ± {CONFIDENCE:.0%} interval (Student's t)", 1)
    if comparison.best:
        sentences.append(
            "Bold: better than every other strategy. The intervals do not overlap, and paired by seed the differences "
            "exclude zero, corrected for the number of strategies (Bonferroni)."
        )
    elif sum(bool(row.finished) for row in comparison.methods) > 1:
        sentences.append("Nothing is bold, because no strategy is clearly better than all others.")
    if delta:
        sentences.append(
            "Δm by metric is the mean change of all metrics against the single-task baselines, lower is better "
            "(Maninis et al. 2019, Nash-MTL); by task it is the mean of the tasks' means, higher is better (LibMTL). "
            "The interval does not include the variance of the baselines."
        )
    if ranked:
        sentences.append(
            "A mean rank depends on the set of rows: without one of them, every rank may change. It says nothing about "
            "the size of a difference."
        )
    if ratio:
        sentences.append(
            "Time is the median of the logged step times over that of equal weighting, without each run's first; in "
            "brackets the quartiles of one against those of the other, or the runs' medians where they are further "
            "apart. Memory is the peak of a training step, relative to equal weighting."
        )
    return " ".join([*sentences, *_size_sentences(comparison)])


def _size_sentences(comparison: Comparison) -> Iterator[str]:
    methods = [row for row in comparison.methods if math.isfinite(size.parameters(row))]
    if not size.differ(methods):
        if methods:
            parameters, operations = (
                format_number(of(methods[0]), ",.0f") for of in (size.parameters, size.multiply_adds)
            )
            yield f"All strategies have {parameters} parameters and {operations} multiply-adds a sample."
        return
    if any(math.isfinite(row.single_networks) for row in methods):
        yield "Single networks: one plain network for each task of the row, their parameters together."
    yield "Multiply-adds are of a sample's forward pass through the trunk and all heads."


def _seeds(row: Row) -> str:
    return str(len(row.finished)) if len(row.finished) == len(row.runs) else f"{len(row.finished)} of {len(row.runs)}"


def _differences(comparison: Comparison) -> Table | None:
    rows = [row for row in comparison.methods if row.differences]
    if not rows:
        return None
    header = ["", "against", "pairs", *(f"{name}{arrow(higher)}" for name, higher in comparison.metrics.items())]
    lines = []
    for row in rows:
        pairs = str(max(found.count for found in row.differences.values()))
        cells = [_difference(row.differences.get(name)) for name in comparison.metrics]
        lines.append([row.label, row.reference.label if row.reference else NOTHING, pairs, *cells])
    count = sum(found.half is not None for row in rows for found in row.differences.values())
    caption = "Mean difference over the common seeds."
    if count:
        chance = f"about {count * (1 - CONFIDENCE):.1f} would exclude zero by chance alone"
        caption = (
            f"{caption[:-1]}, and its interval; * if the interval excludes zero. Of {count} such intervals {chance}."
        )
    if any(row.reference.architecture != row.architecture for row in rows if row.reference):
        caption += " Equal weighting under an architecture is compared with that under hard sharing."
    return Table(f"{comparison.data}: differences to equal weighting, paired by seed", caption, header, lines)


def _difference(found: Interval | None) -> str:
    clear = found is not None and found.half is not None and abs(found.mean) > found.half
    return format_interval(found, "+") + " *" * clear


def _searches(comparison: Comparison) -> Table | None:
    """How the trials of each study ended, and how much each searched key matters."""
    found = comparison.searches
    keys = list(dict.fromkeys(key for search in found for key in search.importances))
    lines = [
        [
            search.arm,
            search.objective,
            *(str(search.ends.get(state, 0)) for state in ("COMPLETE", "PRUNED", "FAIL")),
            *(format_number(search.importances.get(key, math.nan), ".0%") for key in keys),
        ]
        for search in found
    ]
    caption = "How the trials ended."
    if keys:
        caption = (
            "Of the variance of an objective over a study's completed trials, the share that each key explains "
            "(functional ANOVA, Hutter et al. 2014): a large share says that the key matters, not which value is best."
        )
    if keys and any(search.few for search in found):
        caption += f" Of fewer than {FEW} completed trials it is noise."
    header = ["search", "objective", "completed", "pruned", "failed", *(f"importance of {key}" for key in keys)]
    return Table(f"{comparison.data}: searches", caption, header, lines) if found else None


def _fronts_of_searches(comparison: Comparison) -> Table | None:
    """The trials of searches for several objectives that no other trial beats in all of them."""
    by_arm: dict[str, list[Searched]] = {}
    for search in comparison.searches:
        by_arm.setdefault(search.arm, []).append(search)
    lines = [
        [arm, ", ".join(f"{s.objective} {value:.4g}" for s, value in zip(own, values, strict=True)), settings(params)]
        for arm, own in by_arm.items()
        for values, params in own[0].front
    ]
    caption = "No other trial of the search is as good in all objectives and better in one; on validation."
    title = f"{comparison.data}: Pareto fronts of searches"
    return Table(title, caption, ["search", "objectives", "at"], lines) if lines else None


def _parts(comparison: Comparison) -> Table | None:
    """The parameters by part, where an architecture has readers."""
    parts = [size.parameters_by_part(row) for row in comparison.rows]
    if not any(math.isfinite(own["a reader"]) for own in parts):
        return None
    columns = [_in_one_unit(name, [own[name] for own in parts]) for name in parts[0]]
    lines = [[row.label, *cells] for row, *cells in zip(comparison.rows, *(cells for _, cells in columns), strict=True)]
    caption = (
        "What all tasks have in common, and the mean over the tasks of what each has alone: a reader makes a head's "
        "features of the common ones. A module that several readers hold counts in each of them."
    )
    return Table(f"{comparison.data}: parameters by part", caption, ["", *(title for title, _ in columns)], lines)


def _sharing(comparison: Comparison) -> Table | None:
    lines = [line for row in comparison.rows for line in sharing.lines(row)]
    title = f"{comparison.data}: what the architectures decided, at the end of training"
    return Table(title, sharing.CAPTION, sharing.COLUMNS, lines) if lines else None


def _affinity(comparison: Comparison) -> Table | None:
    tasks = list(dict.fromkeys(task for row in comparison.methods for task in row.first.tasks))
    lines = []
    for row in comparison.methods:
        if (found := affinity.best_of(row)) is None:
            continue
        for task, cells in zip(found.tasks, found.cells, strict=True):
            own = {other: affinity.in_percent(z) for other, z in zip(found.tasks, cells, strict=True) if z}
            lines.append([row.label, found.kind, task, *(format_interval(own.get(other), "+") for other in tasks)])
    header = ["", "by", "step on", *tasks]
    return Table(f"{comparison.data}: {affinity.TITLE}", affinity.CAPTION, header, lines) if lines else None


def _agreement(comparison: Comparison) -> Table | None:
    lines = [
        [row.label, kind, str(pairs), f"{rank:+.2f}", f"{signs:.0%}", f"{size:.2g}"]
        for row in comparison.methods
        for kind, pairs, rank, signs, size in affinity.agreements(row)
    ]
    title = f"{comparison.data}: estimates of the affinity against the lookahead"
    header = ["", "by", "pairs", "rank correlation", "same sign", "size ×"]
    return Table(title, affinity.AGREEMENT, header, lines) if lines else None


def _equal_time(comparison: Comparison) -> Table | None:
    found = equal_time(comparison.methods, list(comparison.metrics))
    if not found:
        return None
    header = ["", "steps", *(f"val {name}{arrow(higher)}" for name, higher in comparison.metrics.items())]
    lines = [
        [e.row.label, f"{e.steps:.0f}", *(format_interval(e.metrics.get(n)) for n in comparison.metrics)] for e in found
    ]
    caption = (
        "Each row's best evaluation within the training time of the shortest run. A row whose step time differs from "
        "that of equal weighting by no more than its spread has as many steps. A run that is cut here has not finished "
        "its learning rate schedule; the best of several evaluations is flattering."
    )
    return Table(f"{comparison.data}: at equal time, validation", caption, header, lines)


def _interquartile_means(comparison: Comparison) -> Table | None:
    rows = [row for row in comparison.methods if row.interquartile is not None]
    lines = [
        [row.label, str(len(row.finished)), *(f"{value:+.2f}" for value in row.interquartile or ())] for row in rows
    ]
    caption = (
        f"With {RUNS} seeds or more: the mean of the middle half and its percentile bootstrap (Agarwal et al. 2021)."
    )
    header = ["", "seeds", "Δm by metric, % ↓", "from", "to"]
    return Table(f"{comparison.data}: interquartile means", caption, header, lines) if rows else None


def format_number(value: float, form: str) -> str:
    """A number, or a dash if it is not finite."""
    return f"{value:{form}}" if math.isfinite(value) else NOTHING


def format_settings(settings: dict[str, Any]) -> str:
    """Settings as text; of each key only the last part."""
    parts = [f"{k.rpartition('.')[2]} {f'{v:g}' if isinstance(v, float) else v}" for k, v in settings.items()]
    return ", ".join(parts) or NOTHING


def markdown(comparisons: Sequence[Comparison], title: str) -> str:
    """The content of report.md."""
    parts = [f"# {title}"]
    for comparison in comparisons:
        parts.append(summary_line(comparison))
        parts += [f"**Warning: {warning}**" for warning in comparison.warnings]
        parts += [table.markdown() for table in tables(comparison)]
        if comparison.notes:
            parts.append("\n".join(["Notes:", "", *(f"- {' '.join(note.split())}" for note in comparison.notes)]))
    return "\n\n".join(parts) + "\n"


def summary_line(comparison: Comparison) -> str:
    """The number of runs, their statuses, and what they differ in."""
    ends: dict[str, int] = {}
    for run in comparison.runs:
        ends[run.status] = ends.get(run.status, 0) + 1
    words = differences([row.settings for row in comparison.candidates])
    counted = ", ".join(f"{count} {status}" for status, count in sorted(ends.items()))
    also = f"; they differ in {', '.join(words)}" if words else ""
    runs, settings = len(comparison.runs), len(comparison.candidates)
    plural = f"{runs} run{'s' * (runs != 1)} ({counted}), {settings} setting{'s' * (settings != 1)}"
    return f"{comparison.data}: {plural}{also}."


def results(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The content of results.json; a value that is not finite is null."""
    return {"confidence": CONFIDENCE, "comparisons": [_as_json(comparison) for comparison in comparisons]}


def _as_json(comparison: Comparison) -> dict[str, Any]:
    metrics = {name: {"higher_is_better": higher} for name, higher in comparison.metrics.items()}
    rows = [_row_as_json(row) for row in comparison.rows]
    best = {name: row.label for name, row in comparison.best.items()}
    searched = [as_json(search) for search in comparison.searches]
    found = {"data": comparison.data, "metrics": metrics, "rows": rows, "clearly_best": best, "searches": searched}
    return found | {"warnings": comparison.warnings, "notes": comparison.notes}


def _row_as_json(row: Row) -> dict[str, Any]:
    return {
        "label": row.label,
        "baseline": row.is_baseline,
        "selected": row.tuned,
        "budget": asdict(row.budget),
        "seeds": sorted(row.finished),
        "test": {name: _interval_as_json(found) for name, found in row.metrics.items()},
        "reference": row.reference.label if row.reference else None,
        "difference": {name: _interval_as_json(found) for name, found in row.differences.items()},
        "delta_m": {
            "by_metric_lower_is_better": _interval_as_json(row.delta_metric),
            "by_task_higher_is_better": _interval_as_json(row.delta_task),
        },
        "interquartile_delta_m_by_metric": row.interquartile,
        "mean_rank": finite_or_none(row.rank),
        "step_time_ratio": row.time.value if row.time else None,
        "step_time_ratio_spread": [row.time.low, row.time.high] if row.time else None,
        "step_time_doubts": list(row.time.doubts) if row.time else [],
        "memory_ratio": finite_or_none(row.memory_ratio),
        "parameters": finite_or_none(size.parameters(row)),
        "parameters_of_single_networks_ratio": finite_or_none(row.single_networks),
        "multiply_adds": finite_or_none(size.multiply_adds(row)),
        "runs": [run.name for run in row.runs.values()],
    }


def _interval_as_json(found: Interval | None) -> dict[str, Any] | None:
    return None if found is None else {key: finite_or_none(value) for key, value in asdict(found).items()}


def finite_or_none(value: Any) -> Any:
    """The value; None instead of NaN and the infinities, which JSON lacks."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_of_runs(comparisons: Sequence[Comparison]) -> str:
    """The content of results.csv: one line per run, selected or not."""
    lines = [line for comparison in comparisons for line in _run_lines(comparison)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _run_lines(comparison: Comparison) -> list[dict[str, Any]]:
    keys, lines = differing_keys([row.settings for row in comparison.candidates]), []
    for row in comparison.candidates:
        for seed, run in sorted(row.runs.items()):
            line = {"data": comparison.data, "label": row.label, "selected": row in comparison.rows, "seed": seed}
            line |= {"status": run.status, "folder": run.name, "steps": run.summary.get("steps")}
            line |= {"best_val": run.summary.get("best", {}).get("monitor"), "best_val_of": run.monitor}
            line |= {"load": run.load, "started": run.span[0].isoformat() if run.span else None, "host": run.host}
            line |= {"shared_machine": shared_machine(run, comparison.runs) if run.span else None}
            line |= {"git": run.summary.get("versions", {}).get("git"), "device": run.summary.get("device")}
            line |= {
                "seconds_per_step": finite_or_none(run.step_seconds),
                "peak_memory": finite_or_none(run.peak_memory),
                "parameters": (run.summary.get("parameters") or {}).get("total"),
                "multiply_adds": run.summary.get("multiply_adds"),
            }
            line |= {f"test/{name}": value for name, value in run.summary.get("test", {}).items()}
            lines.append(line | {key: row.settings.get(key) for key in keys})
    return lines
