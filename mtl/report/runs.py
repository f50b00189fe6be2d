"""Reads the folders of runs, whether finished, unfinished or failed."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mtl.config.schema import completed, keys_that_are
from mtl.runs.files import read_json, read_overrides

# Settings in which two runs may differ and be the same experiment but for chance.
IRRELEVANT = keys_that_are("irrelevant")

OWN_DATA = ("ImageTable", "Table", "DomainTables", "OwnDataset")  # classes for any data, whose names do not tell which


class ReportError(ValueError):
    """The report cannot be made from the given folders; the message is one sentence."""


@dataclass(eq=False)
class Run:
    """The content of one run folder; whatever is missing is empty."""

    folder: Path
    name: str = ""  # the folder, relative to the report's folder
    config: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    status: str = "unknown"
    error: str | None = None
    span: tuple[datetime, datetime] | None = None  # from its start to its last change of status; None if unknown
    host: str | None = None
    load: float | None = None  # the machine's load average at its end
    summary: dict[str, Any] = field(default_factory=dict)
    series: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # "val/loss/a": steps, values
    malformed_lines: int = 0  # of metrics.jsonl

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config.get("seed", 0))

    @property
    def finished(self) -> bool:
        """Whether the run has test metrics. The status is unknown if it was not started by mtl-train."""
        return self.status in ("finished", "unknown") and bool(self.summary.get("test"))

    @property
    def data(self) -> str:
        """The data set's class; of an own table or torch Dataset, the name by which the user has chosen it."""
        own = self.config.get("data") or {}
        name = str(own.get("_target_", "")).rpartition(".")[2]
        if name not in OWN_DATA:
            return name
        chosen = [text.partition("=")[2] for text in self.overrides if text.startswith("data=")]
        if chosen and chosen[-1] not in ("image_table", "table", "domain_tables", "dataset"):
            return chosen[-1]
        what = (own.get("dataset") or {}).get("_target_", "") if name == "OwnDataset" else own.get("root", "")
        return re.split(r"[/\\.]", str(what).rstrip("/\\"))[-1] or ", ".join(own.get("files") or ()) or name

    @property
    def tasks(self) -> list[str]:
        """The trained tasks."""
        heads = [str(task) for task in self.config.get("heads") or ()]
        chosen = self.config.get("tasks")
        return [task for task in heads if chosen is None or task in chosen]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration with dotted keys, without the keys that do not affect the result."""
        flat = flatten(self.config)
        return {key: v for key, v in flat.items() if not any(key == n or key.startswith(f"{n}.") for n in IRRELEVANT)}

    @property
    def command(self) -> str:
        """The command line that started the run."""
        return " ".join(["mtl-train", *(shlex.quote(o) for o in self.overrides if not o.startswith("skip_finished"))])

    @property
    def step_times(self) -> np.ndarray:
        """The logged step times, in seconds, without the first: it holds what is done once, as filling caches."""
        values = self.series.get("train/time/step", (None, np.array([])))[1]
        return values[1:] if len(values) > 1 else values

    @property
    def step_seconds(self) -> float:
        """The median of the logged step times, in seconds; NaN without one."""
        return float(np.median(self.step_times)) if len(self.step_times) else float("nan")

    @property
    def is_busy(self) -> bool:
        """Whether the machine's load was higher than the run's own threads and loading processes explain."""
        trainer, threads = self.config.get("trainer") or {}, self.summary.get("threads")
        if self.load is None or threads is None:
            return False
        own = threads * (trainer.get("devices") or 1) + (trainer.get("num_workers") or 0)
        return self.load > 1.5 * own + 1

    @property
    def monitor(self) -> str:
        """The metric of the val split that decides which model is the best."""
        name = self._best.get("metric") or (self.config.get("trainer") or {}).get("monitor", "loss/total")
        return str(name).removeprefix("val/")

    @property
    def lower_is_better(self) -> bool:
        """Whether the best model has the lowest value of the monitored metric; an older run's configuration says it."""
        return (self._best.get("mode") or (self.config.get("trainer") or {}).get("mode") or "min") == "min"

    @property
    def _best(self) -> dict[str, Any]:
        return self.summary.get("best") or {}

    @property
    def peak_memory(self) -> float:
        """The peak memory of a step, in bytes; NaN if unknown."""
        value = self.summary.get("memory/peak")
        return float("nan") if value is None else float(value)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys; lists and empty mappings become JSON."""
    if isinstance(value, Mapping) and value:
        items = (flatten(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items())
        return {key: leaf for part in items for key, leaf in part.items()}
    return {prefix: json.dumps(value, default=str) if isinstance(value, Mapping | list) else value} if prefix else {}


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Every run at or below the paths, sorted by folder. ReportError for a path without a run."""
    return [read_run(folder, name) for folder, name in find_folders(paths).items()]


def find_folders(paths: Sequence[Path]) -> dict[Path, str]:
    """The folders of these runs, each with its name: where it is below the common folder."""
    folders: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise ReportError(f"{path} {what}: give the folder of a run, or of a sweep.")
        found = sorted(_run_folders(path), key=_natural_key)
        if not found:
            raise ReportError(f"{path} holds no run: no folder in it has a status.json or a metrics.jsonl.")
        folders |= dict.fromkeys(folder.resolve() for folder in found)
    home = common_folder(paths)
    names = {folder: os.path.relpath(folder, home) for folder in folders}
    return {folder: folder.name if name == "." else name for folder, name in names.items()}


def common_folder(paths: Sequence[Path]) -> Path:
    """The deepest folder that contains all paths; a single path is its own common folder."""
    return Path(os.path.commonpath([path.resolve() for path in paths]))


def _run_folders(path: Path) -> Iterable[Path]:
    for parent, below, files in os.walk(path):
        if "metrics.jsonl" in files or "status.json" in files:
            below.clear()
            yield Path(parent)


def _natural_key(path: Path) -> list[tuple[int, str]]:
    return [(len(part) if part.isdigit() else 0, part) for part in path.parts]  # job 10 follows job 9


def read_run(folder: Path, name: str) -> Run:
    """Read the files of a run folder; ``name`` is what the report calls it."""
    status = read_json(folder / "status.json")
    run = Run(folder, name, status=status.get("status", "unknown"), error=status.get("error"))
    run.summary = read_json(folder / "summary.json")
    if run.summary.get("pruned"):
        run.status = "pruned"
    run.span, run.host = _span(folder, status, run.summary), status.get("host")
    run.load = status.get("load")
    run.config = read_config(folder / "config.yaml")
    run.overrides = read_overrides(folder) or []
    _read_series(run)
    return run


def _span(folder: Path, status: dict[str, Any], summary: dict[str, Any]) -> tuple[datetime, datetime] | None:
    """From the start to the end of a run; of a run without a recorded start, its seconds before the end.

    A run that is running, or was killed, has lasted until its last metric.
    """
    try:
        end = datetime.fromisoformat(status["time"])
        if status.get("status") == "running":
            end = max(end, datetime.fromtimestamp((folder / "metrics.jsonl").stat().st_mtime, timezone.utc))
        if "started" in status:
            return datetime.fromisoformat(status["started"]), end
        return end - timedelta(seconds=float(summary["seconds"]["total"])), end
    except (OSError, KeyError, TypeError, ValueError):
        return None


def read_config(file: Path) -> dict[str, Any]:
    """The configuration in a run's config.yaml, with the defaults of keys that are newer; empty if it is unreadable."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is ten times as fast, if it was built
    try:
        content = yaml.load(file.read_text() if file.is_file() else "", loader)
    except yaml.YAMLError:
        return {}
    return completed(content) if content and isinstance(content, dict) else {}


def _read_series(run: Run) -> None:
    """Read every metric as arrays of steps and values. Rows with the same keys are transposed at once by NumPy."""
    try:
        lines = (run.folder / "metrics.jsonl").read_text().split("\n")
    except OSError:
        return
    layouts: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    for line in lines[:-1]:  # the part after the last newline is empty or truncated
        try:
            row = json.loads(line)
            split = row.pop("split")
            layouts.setdefault((split, *row), []).append(tuple(row.values()))
        except (ValueError, KeyError, AttributeError):
            run.malformed_lines += 1
    parts: dict[str, list[np.ndarray]] = {}
    for (split, *names), rows in layouts.items():
        values = np.array(rows, dtype=float).T  # null becomes NaN
        steps = values[names.index("step")]
        for name, column in zip(names, values, strict=True):
            if name not in ("step", "epoch"):
                known = np.isfinite(column)
                parts.setdefault(f"{split}/{name}", []).append(np.stack([steps[known], column[known]]))
    for name, found in parts.items():
        steps, column = np.concatenate(found, axis=1)
        order = steps.argsort(kind="stable")
        run.series[name] = (steps[order], column[order])
