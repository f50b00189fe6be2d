"""What a training step costs, beside the same by hand and in other libraries: python experiments/cost/benchmark.py

Every cell, a trunk under K heads, is measured in a process of its own, all its steps in turn; ratios are to the naive
step of the same round. The short form takes ten minutes on two cores that have nothing else to do, --long hours.
Writes results.json, tables.md and cost.png.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from cells import Cell, chosen, long, on_gpu, short
from results import Cells, save

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 where a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="every trunk, head and number of tasks, more rounds")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="threads of a step; default: as torch has it")
    parser.add_argument("--cpu-time", action="store_true", help="steps by CPU time, where others use the machine too")
    parser.add_argument("--only", nargs="+", default=[], metavar="CELL", help="these cells, as 'resnet18-64-*' or loop")
    parser.add_argument(
        "--out", type=Path, help="folder of what is written; default: the study's, unless --only is given"
    )
    options = parser.parse_args(arguments)
    cells = long() if options.long else short()
    try:
        cells = chosen(options.only, on_gpu(cells) if options.device == "cuda" else cells)
        check(options.device, options.threads)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    out = options.out or (None if options.only else HERE)
    header = {"command": "benchmark.py " + " ".join(sys.argv[1:]), "load": os.getloadavg()}
    print(f"{len(cells)} cells; load average {header['load'][0]:.2f}", file=sys.stderr)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    found: Cells = {}
    for number, cell in enumerate(cells, 1):
        began = time.perf_counter()
        found[cell.name] = run(cell, options.device, options.threads, options.cpu_time)
        spent = time.perf_counter() - began
        print(f"{number:3} {cell.name}: {found[cell.name].get('failed', f'{spent:.0f} s')}", file=sys.stderr)
        if out is not None:  # after each, for the long form is long
            save(out / "results.json", header, found)
    report(found, out)
    return int(any("failed" in cell for cell in found.values()))


def check(device: str, threads: int | None) -> None:
    """ValueError for what this machine has not."""
    if threads is not None and threads < 1:
        raise ValueError(f"--threads {threads} must be 1 or more.")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device cuda: torch finds no GPU on this machine.")


def run(cell: Cell, device: str, threads: int | None, cpu_time: bool = False) -> dict[str, Any]:
    """What one cell comes to; the reason where it failed: the others are measured all the same."""
    try:
        return in_a_process(measured, cell, device, threads, cpu_time)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a fresh process, a copy of one that has done nothing but import these."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["mtl.training.loop", "torch._dynamo", "torchjd.autojac"])
    with ProcessPoolExecutor(1, processes) as pool:
        return pool.submit(function, *arguments).result()


def measured(cell: Cell, device: str, threads: int | None, cpu_time: bool) -> dict[str, Any]:
    """What runs in that process."""
    from measure import measure

    return measure(cell.kind, cell.arguments, cell.seconds, device, threads, cpu_time)


def report(found: Cells, out: Path | None) -> None:
    """Print the tables; write them and the figure where ``out`` is a folder."""
    from figures import draw
    from tables import document

    text = document(found)
    print(text)
    if out is not None:
        (out / "tables.md").write_text(text + "\n")
        draw(found, out / "cost.png")


if __name__ == "__main__":
    sys.exit(main())
