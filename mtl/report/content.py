"""What the page shows beside its figures: tables, notes, runs and example predictions, as JSON holds them."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtl.descriptions import DESCRIPTIONS
from mtl.report.compare import Comparison, Row
from mtl.report.figures.curves import shown_at_first
from mtl.report.figures.drawing import colour, dash
from mtl.report.figures.series import names_of
from mtl.report.names import class_name
from mtl.report.runs import Run, flatten
from mtl.report.tables import Table, finite_or_none, format_number, summary_line, tables

IMAGES = 4_000_000  # most bytes of example predictions in a page
EXAMPLES = 6  # most example predictions of a row


def content_of(comparison: Comparison) -> dict[str, Any]:
    """Everything of a comparison but its figures."""
    budget, shown = [IMAGES], shown_at_first(comparison)
    return {
        "data": comparison.data,
        "summary": summary_line(comparison),
        "tables": [asdict(table) for table in tables(comparison)],
        "rows": [_row(row, i, i in shown, budget) for i, row in enumerate(comparison.rows)],
        "runs": [_run(row, run, comparison) for row in comparison.candidates for run in row.runs.values()],
        "warnings": comparison.warnings,
        "notes": comparison.notes,
    }


def descriptions(comparison: Comparison) -> Table:
    """What each metric of conflict is, and of audits and affinities where a run has any."""
    logged = {"conflict", *(name.split("/")[1] for row in comparison.rows for name in names_of(row))}
    columns = ("parallel", "orthogonal", "opposed")
    lines = []
    for name, found in DESCRIPTIONS.items():
        if name.partition("/")[0] in logged:
            values = [getattr(found, column) for column in columns]
            cells = ["–" if value is None else f"{value:.4g}".replace("-", "−") for value in values]
            lines.append([f"{name}…" if name.endswith("/") else name, found.words, *cells])
    title = "What these numbers are, and what they are for two gradients of the same length"
    return Table(title, "", ["metric", "what it is", *columns], lines)


def _row(row: Row, index: int, shown: bool, budget: list[int]) -> dict[str, Any]:
    return {
        "label": row.label,
        "baseline": row.is_baseline,
        "method": _method(row),
        "equal": row.is_equal_weighting,
        "shown": shown,
        "line": {"color": colour(index), "dash": dash(index)},
        "examples": _examples(row, budget),
    }


def _method(row: Row) -> str:
    """Strategy and weighting, by which the page filters."""
    names = (class_name(row.settings, part) for part in ("strategy", "weighting"))
    return " + ".join(name for name in names if name not in ("", "Equal")) or "unknown"


def _run(row: Row, run: Run, comparison: Comparison) -> dict[str, Any]:
    reference = row.reference or (comparison.methods or comparison.rows)[0]
    own, other = run.settings, reference.settings
    changes = [
        [key, _text(other.get(key)), _text(own.get(key))] for key in {**other, **own} if other.get(key) != own.get(key)
    ]
    test = run.summary.get("test", {})
    return {
        "label": row.label,
        "method": _method(row),
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
