"""A comparison as tables: Markdown for the terminal and report.md, results.csv, results.json."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mtl.report.compare import Comparison, Row
from mtl.report.names import differing
from mtl.report.statistics import CONFIDENCE, RUNS, Interval
from mtl.report.timing import equal_time

NOTHING = "–"


@dataclass
class Table:
    """A table under its title, with what must be known to read it."""

    title: str
    words: str
    header: list[str]
    lines: list[list[str]]

    def markdown(self) -> str:
        """In Markdown, the columns as wide as they need to be."""
        cells = [[_escape(cell) for cell in line] for line in [self.header, *self.lines]]
        widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
        padded = [
            [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
            for line in cells
        ]
        rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
        lines = [f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]]]
        return "\n".join([f"## {self.title}", "", *([self.words, ""] if self.words else []), *lines])


def _escape(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())


def show(found: Interval | None, sign: str = "") -> str:
    """A mean with its interval, to two digits of the interval."""
    if found is None or not math.isfinite(found.mean):
        return NOTHING
    if found.half is None:
        return f"{found.mean:{sign}.4g}"
    digits = 4 if found.half == 0 else min(6, max(0, 1 - math.floor(math.log10(found.half))))
    return f"{found.mean:{sign}.{digits}f} ± {found.half:.{digits}f}"


def arrow(higher_is_better: bool | None) -> str:
    """Which way is better."""
    return {True: " ↑", False: " ↓", None: ""}[higher_is_better]


def tables(comparison: Comparison) -> list[Table]:
    """Everything that is said in tables: the test metrics, the differences, the equal time, the robust means."""
    found = [_main(comparison), _differences(comparison), _equal_time(comparison), _robust(comparison)]
    return [table for table in found if table is not None]


def _main(comparison: Comparison) -> Table:
    rows, methods = comparison.rows, comparison.methods
    tuned = any(row.tuned for row in rows)
    delta, ratio = any(row.delta_metric for row in methods), any(row.reference for row in methods)
    ranked = len(methods) > 1 and any(math.isfinite(row.rank) for row in methods)
    header = ["", "seeds"]
    header += [f"{name}{arrow(higher)}" for name, higher in comparison.metrics.items()]
    header += ["Δm by metric, % ↓", "Δm by task, % ↑"] * delta + ["mean rank"] * ranked
    header += ["step time ×", "memory ×"] * ratio + ["selected on validation"] * tuned
    lines = []
    for row in rows:
        line = [row.label, _seeds(row), *(show(row.metrics.get(name)) for name in comparison.metrics)]
        line += [show(row.delta_metric, "+"), show(row.delta_task, "+")] * delta
        line += [number(row.rank, ".2f")] * ranked
        line += [number(row.time_ratio, ".2f"), number(row.memory_ratio, ".2f")] * ratio + [words_of(row.tuned)] * tuned
        lines.append(line)
    return Table(f"{comparison.data}: test metrics", _reading(comparison, delta, ranked, ratio), header, lines)


def _reading(comparison: Comparison, delta: bool, ranked: bool, ratio: bool) -> str:
    words = [f"Mean ± {CONFIDENCE:.0%} interval (Student's t) over the seeds; each run at its best validation."]
    if delta:
        words.append(
            "Δm by metric is the mean change of all metrics against the single-task baselines, lower is better "
            "(Maninis et al. 2019, Nash-MTL); by task it is the mean of the tasks' means, higher is better (LibMTL). "
            "The baselines' own spread is not in its interval."
        )
    if ranked:
        words.append("A mean rank belongs to this set of rows alone: leave one out, and it may change.")
    if ratio:
        words.append(
            "Time and memory are those of a training step over the plain sum's, the time by each row's fastest reading."
        )
    return " ".join(words)


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
    words = "Mean difference over the seeds that both have, and its interval; * where that leaves out zero."
    count = sum(len(row.differences) for row in rows)
    words += f" Of {count} such intervals {count * (1 - CONFIDENCE):.1f} would leave it out by chance alone."
    return Table(f"{comparison.data}: differences to the plain sum, paired by seed", words, header, lines)


def _difference(found: Interval | None) -> str:
    clear = found is not None and found.half is not None and abs(found.mean) > found.half
    return show(found, "+") + " *" * clear


def _equal_time(comparison: Comparison) -> Table | None:
    seconds, found = equal_time(comparison.methods, list(comparison.metrics))
    if not found:
        return None
    header = ["", "steps", *(f"val {name}{arrow(higher)}" for name, higher in comparison.metrics.items())]
    lines = [[e.row.label, f"{e.steps:.0f}", *(show(e.metrics.get(n)) for n in comparison.metrics)] for e in found]
    words = (
        f"What {seconds:.3g} s of training steps come to, the time of the shortest: each row's best evaluation until "
        "then. A run that is stopped so has not come to the end of its learning rate schedule."
    )
    return Table(f"{comparison.data}: at equal time, validation", words, header, lines)


def _robust(comparison: Comparison) -> Table | None:
    rows = [row for row in comparison.methods if row.robust is not None]
    lines = [[row.label, str(len(row.finished)), *(f"{value:+.2f}" for value in row.robust or ())] for row in rows]
    words = f"From {RUNS} seeds on: the mean of the middle half and its percentile bootstrap (Agarwal et al. 2021)."
    header = ["", "seeds", "Δm by metric, % ↓", "from", "to"]
    return Table(f"{comparison.data}: interquartile means", words, header, lines) if rows else None


def number(value: float, form: str) -> str:
    """A number, or a dash where there is none."""
    return f"{value:{form}}" if math.isfinite(value) else NOTHING


def words_of(settings: dict[str, Any]) -> str:
    """Settings in a few words: of each key its last part."""
    words = [f"{k.rpartition('.')[2]} {f'{v:g}' if isinstance(v, float) else v}" for k, v in settings.items()]
    return ", ".join(words) or NOTHING


def markdown(comparisons: Sequence[Comparison], title: str) -> str:
    """The whole of report.md."""
    parts = [f"# {title}"]
    for comparison in comparisons:
        parts.append(summary_line(comparison))
        parts += [table.markdown() for table in tables(comparison)]
        if comparison.notes:
            parts.append("\n".join(["Notes:", "", *(f"- {' '.join(note.split())}" for note in comparison.notes)]))
    return "\n\n".join(parts) + "\n"


def summary_line(comparison: Comparison) -> str:
    """How many runs there are and how they ended, and in what they differ."""
    ends: dict[str, int] = {}
    for run in comparison.runs:
        ends[run.status] = ends.get(run.status, 0) + 1
    keys = [key for key in differing([row.settings for row in comparison.candidates]) if not key.endswith("_target_")]
    counted = ", ".join(f"{count} {status}" for status, count in sorted(ends.items()))
    also = f"; they differ in {', '.join(keys)}" if keys else ""
    return f"{comparison.data}: {len(comparison.runs)} runs ({counted}), {len(comparison.candidates)} settings{also}."


def results(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The content of results.json. What is not a number is null."""
    return {"confidence": CONFIDENCE, "comparisons": [_as_json(comparison) for comparison in comparisons]}


def _as_json(comparison: Comparison) -> dict[str, Any]:
    metrics = {name: {"higher_is_better": higher} for name, higher in comparison.metrics.items()}
    rows = [_row_as_json(row) for row in comparison.rows]
    return {"data": comparison.data, "metrics": metrics, "rows": rows, "notes": comparison.notes}


def _row_as_json(row: Row) -> dict[str, Any]:
    def plain(found: Interval | None) -> dict[str, Any] | None:
        return None if found is None else {k: finite(v) for k, v in asdict(found).items()}

    return {
        "label": row.label,
        "baseline": row.is_baseline,
        "selected": row.tuned,
        "seeds": sorted(row.finished),
        "test": {name: plain(found) for name, found in row.metrics.items()},
        "reference": row.reference.label if row.reference else None,
        "difference": {name: plain(found) for name, found in row.differences.items()},
        "delta_m": {
            "by_metric_lower_is_better": plain(row.delta_metric),
            "by_task_higher_is_better": plain(row.delta_task),
        },
        "interquartile_delta_m_by_metric": row.robust,
        "mean_rank": finite(row.rank),
        "step_time_ratio": finite(row.time_ratio),
        "memory_ratio": finite(row.memory_ratio),
        "runs": [run.name for run in row.runs.values()],
    }


def finite(value: Any) -> Any:
    """None for a number that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_of_runs(comparisons: Sequence[Comparison]) -> str:
    """The content of results.csv: one line a run, also of those that were not selected."""
    lines = [line for comparison in comparisons for line in _run_lines(comparison)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _run_lines(comparison: Comparison) -> list[dict[str, Any]]:
    keys, lines = differing([row.settings for row in comparison.candidates]), []
    for row in comparison.candidates:
        for seed, run in sorted(row.runs.items()):
            line = {"data": comparison.data, "label": row.label, "selected": row in comparison.rows, "seed": seed}
            line |= {"status": run.status, "folder": run.name, "steps": run.summary.get("steps")}
            line |= {"best_val": run.summary.get("best", {}).get("monitor")}
            line |= {"seconds_per_step": finite(run.step_seconds), "peak_memory": finite(run.peak_memory)}
            line |= {f"test/{name}": value for name, value in run.summary.get("test", {}).items()}
            lines.append(line | {key: row.settings.get(key) for key in keys})
    return lines
