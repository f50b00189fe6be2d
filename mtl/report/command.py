"""The command mtl-report: runs and sweeps as tables, in report.md, results.csv, results.json and one HTML page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mtl.report.compare import compare
from mtl.report.grouping import grouping_text
from mtl.report.page import page
from mtl.report.runs import ReportError, common_folder, find_runs
from mtl.report.tables import csv_of_runs, markdown, results

EXAMPLE = """
  mtl-report outputs/digits_strategies                                       all runs below a folder
  mtl-report outputs/digits_strategies --tune optimizer.lr weighting.weights one row per strategy, each at its best lr
  mtl-report outputs/digits_strategies --watch                               in the browser, while the runs go on
  mtl-report outputs/mine --groups 2                                         which tasks belong together
"""


def report(
    paths: Sequence[Path],
    out: Path | None = None,
    tune: Sequence[str] = (),
    wandb: bool = False,
    groups: int | None = None,
) -> tuple[str, Path]:
    """Write the report of all runs below ``paths``; returns its text and its folder.

    The folder is ``out``, by default the deepest one that contains all paths. ``wandb`` also logs the report to a W&B
    run, with the project, entity and group of the first run. ``groups``: say also which tasks to train together, in at
    most so many networks. ReportError before anything is written.
    """

    runs = find_runs(paths)
    comparisons = compare(runs, tune)
    folder = out or common_folder(paths)
    title = title_of(paths)
    text = markdown(comparisons, title)
    if groups is not None:
        text += "\n" + grouping_text(comparisons, groups)
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

        text += "\n" + send(folder, comparisons, runs[0].config.get("tracker", {})) + "\n"
    return text, folder


def serve(arguments: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C. ReportError before, also for options that write a report."""
    from mtl.report.watch import watch

    if arguments.out or arguments.wandb:
        raise ReportError("--watch writes no report: leave out --out and --wandb, or leave out --watch.")
    if arguments.groups is not None:
        raise ReportError("--watch shows no grouping: leave out --groups, or leave out --watch.")
    server = watch(arguments.paths, title_of(arguments.paths), arguments.tune, arguments.host, arguments.port)
    print(f"http://{arguments.host}:{server.server_port}/ shows the runs as they go on; Ctrl-C ends it.", flush=True)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()


def title_of(paths: Sequence[Path]) -> str:
    """The report's title: the names of its folders."""
    return " and ".join(dict.fromkeys(path.resolve().name for path in paths))


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
    parser.add_argument(
        "--groups", type=int, metavar="B", help="the tasks in at most B networks by their affinity, with the commands"
    )
    parser.add_argument("--wandb", action="store_true", help="also log tables, figures and the page to a W&B run")
    parser.add_argument("--watch", action="store_true", help="serve the page, and renew it while runs go on; no files")
    parser.add_argument("--host", default="127.0.0.1", help="address of --watch; default: this machine alone")
    parser.add_argument("--port", type=int, default=8765, help="port of --watch; 0: any that is free; default: 8765")
    arguments = parser.parse_args()
    try:
        if arguments.watch:
            serve(arguments)
            return
        text, folder = report(arguments.paths, arguments.out, arguments.tune, arguments.wandb, arguments.groups)
    except ReportError as error:
        print(f"mtl-report: {error}", file=sys.stderr)
        sys.exit(2)
    print(text)
    print(f"report.html, report.md, results.csv and results.json are in {folder}")


if __name__ == "__main__":
    main()
