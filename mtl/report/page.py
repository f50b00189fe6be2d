"""One self-contained HTML file: the comparison's numbers as JSON, with the page's style and script."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mtl.delta_m import task_of
from mtl.descriptions import DESCRIPTIONS, SMALL_COSINES
from mtl.report.compare import Comparison, Row
from mtl.report.runs import Run, flatten
from mtl.report.sharing import is_of_one_run
from mtl.report.tables import Table, finite_or_none, format_number, summary_line, tables
from mtl.report.timing import SHARED

HERE = Path(__file__).parent
NUMBERS = 500_000  # most numbers in all curves of a page: about 4 MB
POINTS = (20, 200)  # fewest and most points of a curve
IMAGES = 4_000_000  # most bytes of example predictions in a page
EXAMPLES = 6  # most example predictions of a row


def page(comparisons: Sequence[Comparison], title: str) -> str:
    """The HTML of the page. Content from runs is embedded as JSON and shown as text, so it cannot inject markup."""
    content = json.dumps({"title": title, "comparisons": [_content(c) for c in comparisons]}, allow_nan=False)
    content = content.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    parts = {name: (HERE / f"page.{name}").read_text() for name in ("html", "css", "js")}
    parts |= {"title": html.escape(title), "data": content}
    before, *pieces = parts["html"].split("<!--")
    for piece in pieces:  # in one pass, so that inserted text is never expanded
        name, _, after = piece.partition("-->")
        before += parts[name] + after
    return before


def _content(comparison: Comparison) -> dict[str, Any]:
    names = [_series_names(row) for row in comparison.rows]
    points = max(POINTS[0], min(POINTS[1], NUMBERS // max(1, 3 * sum(map(len, names)))))
    steps: dict[tuple[float, ...], int] = {}
    budget = [IMAGES]
    rows = [_row(row, own, points, steps, budget) for row, own in zip(comparison.rows, names, strict=True)]
    metrics = comparison.metrics.items()
    return {
        "data": comparison.data,
        "summary": summary_line(comparison),
        "metrics": [{"name": name, "task": task_of(name), "higher": higher} for name, higher in metrics],
        "tables": [_table(table) for table in tables(comparison)],
        "rows": rows,
        "steps": list(steps),
        "points": [_point(row, comparison) for row in comparison.candidates if not row.is_baseline and row.finished],
        "runs": [_run(row, run, comparison) for row in comparison.candidates for run in row.runs.values()],
        "warnings": comparison.warnings,
        "notes": comparison.notes,
        "descriptions": _descriptions(),
        "smallCosines": SMALL_COSINES,
    }


def _table(table: Table) -> dict[str, Any]:
    return asdict(table)


def _descriptions() -> dict[str, list[list[str]]]:
    """The lines of the table that says what each metric is, for conflict and for audits."""
    columns = ("parallel", "orthogonal", "opposed")
    lines: dict[str, list[list[str]]] = {"conflict": [], "audit": [], "affinity": []}
    for name, found in DESCRIPTIONS.items():
        values = [getattr(found, column) for column in columns]
        short = f"{name}…" if name.endswith("/") else name
        cells = ["–" if value is None else f"{value:.4g}".replace("-", "−") for value in values]
        lines[name.partition("/")[0]].append([short, found.words, *cells])
    return lines


def _drawn(row: Row) -> list[Run]:
    """The runs whose curves are drawn: the finished ones, or all if none is finished."""
    return list((row.finished or row.runs).values())


def _series_names(row: Row) -> list[str]:
    names = dict.fromkeys(name for run in _drawn(row) for name in run.series)
    return [name for name in names if not name.startswith("test/")]  # one value is no curve


def _series(row: Row, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    found = [run.series[name] for run in _drawn(row) if name in run.series]
    return found[:1] if is_of_one_run(name) else found


def _row(
    row: Row, names: list[str], points: int, steps: dict[tuple[float, ...], int], budget: list[int]
) -> dict[str, Any]:
    curves = {name: _curve(_series(row, name), points) for name in names}
    described = {}
    for name, (at, mean, low, high) in curves.items():
        if len(at):
            index = steps.setdefault(tuple(at), len(steps))
            described[name] = {"x": index, "y": mean} | ({"lo": low, "hi": high} if low != mean else {})
    return {
        "label": row.label,
        "tasks": row.first.tasks,
        "baseline": row.is_baseline,
        "equal": row.is_equal_weighting,
        "static": row.is_static,
        "rank": finite_or_none(row.rank),
        "values": {name: _interval(found) for name, found in row.metrics.items()},
        "delta": _interval(row.delta_metric),
        "seeds": len(row.finished),
        "unfinished": not row.finished,
        "seconds": [float(value) for value in np.quantile(row.step_times, (0.25, 0.5, 0.75))]
        if len(row.step_times)
        else None,
        "doubted": bool(row.time and row.time.doubts and row is not row.reference),
        "shared": bool(row.time and SHARED in row.time.doubts),
        "space": row.settings.get("strategy.space", "features"),
        "tolerance": (row.first.config.get("conflict") or {}).get("tolerance", 0),
        "curves": described,
        "examples": _examples(row, budget),
    }


def _interval(found: Any) -> list[float | None] | None:
    return None if found is None else [finite_or_none(found.mean), found.half]


def _curve(series: list[tuple[np.ndarray, np.ndarray]], points: int) -> tuple[list, list, list, list]:
    """Steps, mean, minimum and maximum over the seeds, at the common steps, averaged to at most ``points`` points."""
    common = series[0][0]
    for steps, _ in series[1:]:
        common = np.intersect1d(common, steps)
    if not len(common):
        return [], [], [], []
    values = np.stack([values[np.searchsorted(steps, common)] for steps, values in series])
    starts = np.unique(np.linspace(0, len(common), min(points, len(common)), endpoint=False).astype(int))
    ends = np.append(starts[1:], len(common)) - 1
    counts = np.diff(np.append(starts, len(common)))
    mean, low, high = (
        np.add.reduceat(line, starts) / counts for line in (values.mean(0), values.min(0), values.max(0))
    )
    return [int(step) for step in common[ends]], _short(mean), _short(low), _short(high)


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def _point(row: Row, comparison: Comparison) -> dict[str, Any]:
    """A point of the trade-off plots, selected or not."""
    values = {name: list(row.test(name).values()) for name in comparison.metrics}
    means = {name: float(np.mean(found)) for name, found in values.items() if found}
    where = comparison.rows.index(row) if row in comparison.rows else None
    return {"label": row.label, "static": row.is_static, "equal": row.is_equal_weighting, "row": where, "values": means}


def _run(row: Row, run: Run, comparison: Comparison) -> dict[str, Any]:
    reference = row.reference or (comparison.methods or comparison.rows)[0]
    own, other = run.settings, reference.settings
    changes = [
        [key, _text(other.get(key)), _text(own.get(key))] for key in {**other, **own} if other.get(key) != own.get(key)
    ]
    test = run.summary.get("test", {})
    return {
        "label": row.label,
        "seed": run.seed,
        "status": run.status,
        "error": run.error,
        "folder": run.name,
        "command": run.command,
        "selected": row in comparison.rows,
        "against": reference.label if reference is not row else None,
        "changes": changes,
        "config": [[key, _text(value)] for key, value in flatten(run.config).items()] if run is row.first else [],
        "test": {name: format_number(value, ".4g") for name, value in test.items() if value is not None},
        "best": finite_or_none(run.summary.get("best", {}).get("monitor")),
        "monitor": run.monitor,
        "evaluations": len(run.series.get(f"val/{run.monitor}", [()])[0]),
    }


def _text(value: Any) -> str:
    return "absent" if value is None else str(value)


def _examples(row: Row, budget: list[int]) -> list[dict[str, Any]]:
    """The example predictions of the first run that has some; ``budget`` is the bytes left for images."""
    for run in row.runs.values():
        try:
            listed = json.loads((run.folder / "examples" / "examples.json").read_text())
            return [_example(run.folder / "examples", e, budget) for e in listed[:EXAMPLES]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return []


def _example(folder: Path, example: dict[str, Any], budget: list[int]) -> dict[str, Any]:
    tasks = {
        str(task): {side: _image(folder, shown[side], budget) for side in ("target", "prediction")}
        for task, shown in example["tasks"].items()
    }
    title = f"{example.get('split', '')} {example.get('index', '')}".strip()
    return {"title": title, "image": _image(folder, example["image"], budget), "tasks": tasks}


def _image(folder: Path, shown: Any, budget: list[int]) -> dict[str, str]:
    """A data URI if ``shown`` names an image in the folder, otherwise text."""
    text = str(shown)
    file = folder / Path(text).name
    if not text.endswith(".png") or not file.is_file():
        return {"text": text}
    content = file.read_bytes()
    if len(content) > budget[0]:
        return {"text": f"{text} (omitted: the page would be too large)"}
    budget[0] -= len(content)
    return {"src": f"data:image/png;base64,{base64.b64encode(content).decode()}"}
