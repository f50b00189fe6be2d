"""Logs a report to Weights & Biases: its tables, figures, files and page, as one run of the job type ``report``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl.report.compare import Comparison
from mtl.report.page import SECTIONS
from mtl.report.runs import ReportError
from mtl.runs.wandb import panel

FILES = ("report.md", "results.csv", "results.json")


def send(folder: Path, comparisons: Sequence[Comparison], tracker: Mapping[str, Any]) -> str:
    """Log the report of ``comparisons`` in ``folder`` to a new W&B run; returns a sentence with the run's id and URL.

    ``tracker``: the section of a run's configuration, with the project, entity and group.

    ``WANDB_MODE`` is obeyed, as in training; if unset, the run is online with an API key and offline without one.
    ReportError if W&B cannot start or finish the run.
    """
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))  # W&B stages tables there
    import wandb

    mode: Any = os.environ.get("WANDB_MODE") or None
    try:
        wandb.setup(settings=wandb.Settings(silent=True))
        if mode is None and not wandb.login(prompt=False, verify=False):
            mode = "offline"
        run = wandb.init(
            project=tracker.get("project", "mtl"),
            entity=tracker.get("entity"),
            group=tracker.get("group"),
            dir=str(folder),
            job_type="report",
            name=f"report-{folder.name}",
            mode=mode or "online",
            settings=wandb.Settings(console="off", init_timeout=30, finish_timeout=120),
        )
        with run:
            run.log({"report": wandb.Html(str(folder / "report.html")), **_tables(folder), **_figures(comparisons)})
            for name in FILES:
                run.save(str(folder / name), base_path=str(folder), policy="now")
        return f"W&B run {run.id}: {run.url or f'offline, wandb sync {run.dir and Path(run.dir).parent} sends it'}"
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ReportError(f"--wandb: W&B did not accept the report ({reason}); it is in {folder}.") from error


def _figures(comparisons: Sequence[Comparison]) -> dict[str, object]:
    """Every figure of the page as an interactive panel, each as it is without a choice."""
    draws = dict.fromkeys(shown.draw for section in SECTIONS for shown in section.panels)
    drawn = {f"figures/{runs.data}/{draw.__name__}": draw(runs) for runs in comparisons for draw in draws}
    return {name: panel(figure) for name, figure in drawn.items() if figure.data}


def _tables(folder: Path) -> dict[str, object]:
    """One W&B table per data set: one line per row, with each metric's mean and half its interval."""
    import wandb

    found: dict[str, object] = {}
    for comparison in json.loads((folder / "results.json").read_text())["comparisons"]:
        names = list(comparison["metrics"])
        columns = ["row", "seeds", *(part for name in names for part in (name, f"{name} ±"))]
        columns += ["delta_m by metric (lower is better)", "delta_m by task (higher is better)"]
        columns += ["step time ratio", "step time doubts", "memory ratio"]
        table = wandb.Table(columns=columns)
        for row in comparison["rows"]:
            intervals = [row["test"].get(name) or {} for name in names]
            cells = [value for found in intervals for value in (found.get("mean"), found.get("half"))]
            deltas = [(delta or {}).get("mean") for delta in row["delta_m"].values()]
            table.add_data(
                row["label"], len(row["seeds"]), *cells, *deltas, row["step_time_ratio"],
                "; ".join(row["step_time_doubts"]), row["memory_ratio"],
            )  # fmt: skip
        found[f"results/{comparison['data']}"] = table
    return found
