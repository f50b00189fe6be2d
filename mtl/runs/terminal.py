"""Plain-text tables of a run or a sweep, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

from mtl.descriptions import SMALL_COSINES, TOLERANCE, describe, of_orthogonal
from mtl.runs.files import read_json, read_metrics, read_yaml

PAIRS = 6  # most pairs of tasks whose cosines are shown


def task_names(metrics: Mapping[str, Any]) -> list[str]:
    """The tasks with a loss in this row, in the row's order."""
    return [name.removeprefix("loss/") for name in metrics if name.startswith("loss/") and name != "loss/total"]


def one_line(row: Mapping[str, float]) -> str:
    """The most important numbers of a row, on one line."""
    parts = [f"loss/{task} {row[f'loss/{task}']:.4f}" for task in task_names(row)]
    if "conflict/cos_mean" in row:
        parts.append(f"conflict/cos_mean {row['conflict/cos_mean']:+.2f}")
    if "samples_per_second" in row:
        parts.append(f"{row['samples_per_second']:.0f} samples/s")
    return ", ".join(parts)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table with minimal column widths; numbers are right-aligned and have four decimals."""
    cells = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [all(not isinstance(row[i], str) or row[i] == "–" for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def task_table(
    title: str, metrics: Mapping[str, float], weights: Mapping[str, Mapping[str, float]] | None = None
) -> str:
    """One line per task with its loss, its metrics and, where they are given, its mean and its last weight."""
    tasks = task_names(metrics)
    columns = list(dict.fromkeys(name.split("/", 1)[1] for name in metrics if name.split("/", 1)[0] in tasks))
    kinds = ["mean", "last"] if weights else []
    rows = [
        [
            t,
            metrics[f"loss/{t}"],
            *(metrics.get(f"{t}/{c}", "–") for c in columns),
            *((weights or {}).get(t, {}).get(kind, "–") for kind in kinds),
        ]
        for t in tasks
    ]
    return table([title, "loss", *columns, *(f"{kind} weight" for kind in kinds)], rows)


def only_metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without its step, epoch and split."""
    return {name: value for name, value in row.items() if name not in ("step", "epoch", "split")}


def mean_conflict(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of every conflict metric over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("conflict/"))
    return {name: mean(rows, name) for name in names}


def final_report(folder: Path) -> str:
    """The end of a run's log: test metrics, conflict metrics, and where the files are."""
    summary = read_json(folder / "summary.json")
    best, untrained = summary["best"]["step"], summary.get("untrained")
    tested = f"last model (step {summary['steps']}, no best one)" if best is None else f"best model (step {best})"
    parts = [
        f"UNTRAINED, for lack of labels, and left out: {', '.join(untrained)}" if untrained else None,
        task_table(f"test, {tested}", summary["test"], summary["weights"]),
        conflict_table(folder),
    ]
    return "\n\n".join(
        ["", *(part for part in parts if part), f"Everything is in {folder}: {', '.join(_contents(folder))}"]
    )


def _contents(folder: Path) -> list[str]:
    return sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if path.name != ".lock")


def conflict_table(folder: Path) -> str | None:
    """The conflict metrics of a run, and what each is; None without any.

    Of each, the mean over the run and over its last quarter, and its value for as many orthogonal gradients of one
    norm. A mean is over the steps that have the metric: a pair has none where a task is absent. Of more than PAIRS
    pairs those with the lowest cosines are shown.
    """
    rows = [row for row in read_metrics(folder, "train") if any(name.startswith("conflict/") for name in row)]
    if not rows:
        return None
    whole, late = mean_conflict(rows), mean_conflict(rows[-max(1, len(rows) // 4) :])
    count = sum(name.startswith("conflict/norm/") for name in whole)
    pairs = sorted((name for name in whole if name.startswith("conflict/cos/")), key=lambda name: whole[name])
    lines: list[list[Any]] = []
    said = None
    for name, value in whole.items():
        if name in pairs[PAIRS:]:
            continue
        known, expected = describe(name), of_orthogonal(name, count)
        words = known.words if known and known is not said else ""
        said = known
        orthogonal = "–" if expected is None else float(expected)
        lines.append([name.removeprefix("conflict/"), value, late.get(name, "–"), orthogonal, words])
    found = table(["gradient conflict", "whole run", "last quarter", "if orthogonal", "what it is"], lines)
    more = f"The {PAIRS} lowest of {len(pairs)} cosines are shown. " if len(pairs) > PAIRS else ""
    return f"{found}\n" + fill(f"{more}conflict.tolerance={tolerance(folder):g}. {SMALL_COSINES}", 120)


def tolerance(folder: Path) -> float:
    """The run's ``conflict.tolerance``; the default where the configuration has none."""
    file = folder / "config.yaml"
    section = (read_yaml(file) if file.is_file() else {}).get("conflict") or {}
    return float(section.get("tolerance", TOLERANCE))


def overview(sweep: Path) -> str | None:
    """One line per job of a sweep: its overrides, status and test metrics; None if there is no job."""
    jobs = sorted((p.parent for p in sweep.glob("*/status.json")), key=lambda p: (len(p.name), p.name))
    if not jobs:
        return None
    summaries = [read_json(job / "summary.json") for job in jobs]
    names = list(dict.fromkeys(name for summary in summaries for name in summary.get("test", {})))
    statuses = [read_json(job / "status.json") for job in jobs]
    overrides = [_overrides(job) for job in jobs]
    shared = set.intersection(*map(set, overrides)) if len(jobs) > 1 else set()
    rows = []
    for job, given, status, summary in zip(jobs, overrides, statuses, summaries, strict=True):
        own = " ".join(override for override in given if override not in shared)
        rows.append(
            [
                job.name,
                own,
                "pruned" if summary.get("pruned") else status.get("status", "unknown"),
                *(summary.get("test", {}).get(name, "–") for name in names),
            ]
        )
    failures = [f"job {j.name}: {s['error']}" for j, s in zip(jobs, statuses, strict=True) if "error" in s]
    return "\n".join([table(["job", "overrides", "status", *names], rows), *failures])


def mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """The mean of a metric over the rows that have it; NaN where none has."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return fmean(values) if values else float("nan")


def _overrides(job: Path) -> list[str]:
    path = job / ".hydra" / "overrides.yaml"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line.removeprefix("- ") for line in lines if line != "[]"]
