"""Tables and pictures of runs, from their folders alone.

Needs no torch, and what is imported here loads no NumPy: mtl-train imports it before it answers. ``text`` and
``figures`` are what a run says of itself; everything else is the command mtl-report.
"""

from mtl.report.figures import CELL, draw_run, heat_map
from mtl.report.terminal import (
    best_value,
    conflict_table,
    final_report,
    mean_conflict,
    one_line,
    only_metrics,
    overview,
    read_metrics,
    read_status,
    table,
    task_names,
    task_table,
)

__all__ = [
    "CELL",
    "best_value",
    "conflict_table",
    "draw_run",
    "final_report",
    "heat_map",
    "mean_conflict",
    "one_line",
    "only_metrics",
    "overview",
    "read_metrics",
    "read_status",
    "table",
    "task_names",
    "task_table",
]
