"""One HTML file that needs nothing else: the comparison's numbers as JSON, and the page's own style and script."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl.report.compare import Comparison, Row
from mtl.report.delta_m import task_of
from mtl.report.runs import Run
from mtl.report.runs import flatten as flattened
from mtl.report.tables import finite, number, summary_line, tables

HERE = Path(__file__).parent
NUMBERS = 500_000  # that the curves of a page may have together: about 4 MB
POINTS = (20, 200)  # of a curve, at least and at most
IMAGES = 4_000_000  # bytes of example predictions in a page
EXAMPLES = 6  # of a row
SHOWN = ("train/loss/", "train/weight/", "train/conflict/", "train/audit/", "train/grad_norm", "train/lr", "val/")


def page(comparisons: Sequence[Comparison], title: str) -> str:
    """The whole page. Everything that comes from runs travels as JSON and is shown as text, so it can be no markup."""
    content = json.dumps({"title": title, "comparisons": [_content(c) for c in comparisons]}, allow_nan=False)
    content = content.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    parts = {name: (HERE / f"page.{name}").read_text() for name in ("html", "css", "js")}
    parts |= {"title": html.escape(title), "data": content}
    before, *pieces = parts["html"].split("<!--")
    for piece in pieces:  # in one pass: what is filled in is not looked at again
        name, _, after = piece.partition("-->")
        before += parts[name] + after
    return before


def _content(comparison: Comparison) -> dict[str, Any]:
    names = [_series_names(row) for row in comparison.rows]
    points = max(POINTS[0], min(POINTS[1], NUMBERS // max(1, 3 * sum(map(len, names)))))
    steps: dict[tuple[float, ...], int] = {}
    room = [IMAGES]
    rows = [_row(row, own, points, steps, room) for row, own in zip(comparison.rows, names, strict=True)]
    metrics = comparison.metrics.items()
    return {
        "data": comparison.data,
        "summary": summary_line(comparison),
        "metrics": [{"name": name, "task": task_of(name), "higher": higher} for name, higher in metrics],
        "tables": [_table(table, i == 0) for i, table in enumerate(tables(comparison))],
        "rows": rows,
        "steps": list(steps),
        "points": [_point(row, comparison) for row in comparison.candidates if not row.is_baseline and row.finished],
        "runs": [_run(row, run, comparison) for row in comparison.candidates for run in row.runs.values()],
        "notes": comparison.notes,
    }


def _table(table: Any, main: bool) -> dict[str, Any]:
    return {"title": table.title, "words": table.words, "header": table.header, "lines": table.lines, "main": main}


def _series_names(row: Row) -> list[str]:
    names = dict.fromkeys(name for run in row.runs.values() for name in run.series)
    return [name for name in names if name.startswith(SHOWN)]


def _row(
    row: Row, names: list[str], points: int, steps: dict[tuple[float, ...], int], room: list[int]
) -> dict[str, Any]:
    curves = {
        name: _curve([run.series[name] for run in row.runs.values() if name in run.series], points) for name in names
    }
    described = {}
    for name, (at, mean, low, high) in curves.items():
        if len(at):
            index = steps.setdefault(tuple(at), len(steps))
            described[name] = {"x": index, "y": mean} | ({"lo": low, "hi": high} if low != mean else {})
    return {
        "label": row.label,
        "tasks": row.first.tasks,
        "baseline": row.is_baseline,
        "plain": row.is_plain,
        "static": row.is_static,
        "rank": finite(row.rank),
        "values": {name: _interval(found) for name, found in row.metrics.items()},
        "delta": _interval(row.delta_metric),
        "time": finite(row.time_ratio),
        "seconds": finite(row.step_seconds),
        "curves": described,
        "examples": _examples(row, room),
    }


def _interval(found: Any) -> list[float | None] | None:
    return None if found is None else [finite(found.mean), found.half]


def _curve(series: list[tuple[np.ndarray, np.ndarray]], points: int) -> tuple[list, list, list, list]:
    """The seeds' mean, least and most, over the steps that all have, in at most ``points`` means of neighbours."""
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
    """A setting in the trade-off plots, selected or not."""
    values = {name: list(row.test(name).values()) for name in comparison.metrics}
    means = {name: float(np.mean(found)) for name, found in values.items() if found}
    where = comparison.rows.index(row) if row in comparison.rows else None
    return {"label": row.label, "static": row.is_static, "row": where, "values": means}


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
        "config": [[key, _text(value)] for key, value in flattened(run.config).items()] if run is row.first else [],
        "test": {name: number(value, ".4g") for name, value in test.items() if value is not None},
        "best": finite(run.summary.get("best", {}).get("monitor")),
    }


def _text(value: Any) -> str:
    return "absent" if value is None else str(value)


def _examples(row: Row, room: list[int]) -> list[dict[str, Any]]:
    """Example predictions of the first run that has any, as long as there is room for their pictures."""
    for run in row.runs.values():
        try:
            listed = json.loads((run.folder / "examples" / "examples.json").read_text())
            return [_example(run.folder / "examples", e, room) for e in listed[:EXAMPLES]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return []


def _example(folder: Path, example: dict[str, Any], room: list[int]) -> dict[str, Any]:
    tasks = {
        str(task): {side: _picture(folder, shown[side], room) for side in ("target", "prediction")}
        for task, shown in example["tasks"].items()
    }
    words = f"{example.get('split', '')} {example.get('index', '')}".strip()
    return {"title": words, "image": _picture(folder, example["image"], room), "tasks": tasks}


def _picture(folder: Path, shown: Any, room: list[int]) -> dict[str, str]:
    """A picture as a data URI, where ``shown`` names one in the folder; else text."""
    text = str(shown)
    file = folder / Path(text).name
    if not text.endswith(".png") or not file.is_file():
        return {"text": text}
    content = file.read_bytes()
    if len(content) > room[0]:
        return {"text": f"{text} (left out: the page would be too large)"}
    room[0] -= len(content)
    return {"src": f"data:image/png;base64,{base64.b64encode(content).decode()}"}
