"""The command mtl-report: runs and sweeps as tables, in report.md, results.csv, results.json and one HTML page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mtl.report.compare import compare
from mtl.report.page import page
from mtl.report.runs import ReportError, common_folder, find_runs
from mtl.report.tables import csv_of_runs, markdown, results

EXAMPLE = """
  mtl-report outputs/digits_strategies                                       all runs below a folder
  mtl-report outputs/digits_strategies --tune optimizer.lr weighting.weights one row per strategy, each at its best lr
"""


def report(
    paths: Sequence[Path], out: Path | None = None, tune: Sequence[str] = (), wandb: bool = False
) -> tuple[str, Path]:
    """Write the report of all runs below ``paths``; returns its text and its folder.

    The folder is ``out``, by default the deepest one that contains all paths. ``wandb`` also logs the report to a W&B
    run, with the project, entity and group of the first run. ReportError before anything is written.
    """

    runs = find_runs(paths)
    comparisons = compare(runs, tune)
    folder = out or common_folder(paths)
    title = " and ".join(dict.fromkeys(path.resolve().name for path in paths))
    text = markdown(comparisons, title)
    files = {
        "report.md": text,
        "results.csv": csv_of_runs(comparisons),
        "results.json": json.dumps(results(comparisons), indent=2, allow_nan=False, default=str) + "\n",
        "report.html": page(comparisons, title),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(content)
    except OSError as error:
        raise ReportError(f"--out {folder} cannot be written ({error.strerror}): choose a writable folder.") from error
    if wandb:
        from mtl.report.send import send

        tracker = runs[0].config.get("tracker", {})
        text += "\n" + send(folder, tracker.get("project", "mtl"), tracker.get("entity"), tracker.get("group")) + "\n"
    return text, folder


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        "mtl-report", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a run, a sweep, or any folder above them")
    parser.add_argument(
        "--tune", nargs="+", default=[], metavar="KEY", help="keys whose best values are selected on validation"
    )
    parser.add_argument("--out", type=Path, help="folder for the files; default: the deepest one above all paths")
    parser.add_argument("--wandb", action="store_true", help="also log the tables and the page to a W&B run")
    arguments = parser.parse_args()
    try:
        text, folder = report(arguments.paths, arguments.out, arguments.tune, arguments.wandb)
    except ReportError as error:
        print(f"mtl-report: {error}", file=sys.stderr)
        sys.exit(2)
    print(text)
    print(f"report.html, report.md, results.csv and results.json are in {folder}")


if __name__ == "__main__":
    main()
