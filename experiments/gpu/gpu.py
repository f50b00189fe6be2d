"""What only a GPU can tell, in ten minutes: make gpu, or python experiments/gpu/gpu.py --device cuda

The parts run one after the other, the most important first, each in a process and with a time limit of its own: a part
that hangs, or that breaks the device, costs itself only. What has been measured until then is kept. Nothing is
downloaded. Writes results.json and results.md after each part; the exit status is 1 where a row failed.

--device cpu --tiny runs every part in seconds, to see that nothing is broken before a GPU is paid for.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "cost")]

# Seconds that a part may take on a GPU. Together they are under ten minutes.
LIMITS = {"smoke": 120, "parity": 90, "waits": 60, "speed": 220, "ranks": 100}
Rows = list[dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, print and write the table; 1 where a row failed, 2 for a mistake in the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "xpu", "mps", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="the smallest form of every part")
    parser.add_argument("--only", nargs="+", default=list(LIMITS), choices=tuple(LIMITS), metavar="PART")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"), help="folder of what is written")
    options = parser.parse_args(arguments)
    from trials import device_of  # torch, and what is installed beside it

    try:
        machine = device_of(options.device)
    except ValueError as error:
        print(f"--{error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Rows] = {}
    for part in LIMITS:
        if part in options.only:
            began = time.perf_counter()
            found[part] = run(part, options.device, options.tiny, LIMITS[part])
            took, broken = time.perf_counter() - began, sum(not row["ok"] for row in found[part])
            print(f"{part}: {len(found[part])} rows, {broken} not as they should be, {took:.0f} s", file=sys.stderr)
            write(options.out, machine | {"tiny": options.tiny}, found)
    print((options.out / "results.md").read_text())
    return int(not all(row["ok"] for rows in found.values() for row in rows))


def run(part: str, device: str, tiny: bool, limit: float) -> Rows:
    """The rows of a part, each with ``name``, ``ok`` and its numbers, or with the reason why it ``failed``."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["trials", "speed", "ranks"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        process = processes.Process(target=work, args=(part, device, tiny, path))
        process.start()
        process.join(limit)
        late = process.is_alive()
        process.kill()
        process.join()
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    names, rows = (lines[0], lines[1:]) if lines else ([part], [])
    reason = f"the part's limit of {limit:g} s was over" if late else f"the process ended with {process.exitcode}"
    return rows + [{"name": name, "ok": False, "failed": reason} for name in names[len(rows) :]]


def work(part: str, device: str, tiny: bool, path: Path) -> None:
    """A part's process: the names of its rows in the first line, then a line a row, as soon as it is there."""
    os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    if part == "speed":
        from speed import trials
    elif part == "ranks":
        from ranks import trials
    else:
        import trials as own

        trials = getattr(own, part)
    made: dict[str, Callable[[], dict[str, Any]]] = trials(device, tiny)
    with path.open("w") as file:
        print(json.dumps(list(made)), file=file, flush=True)
        for name, trial in made.items():
            print(json.dumps({"name": name} | attempt(trial)), file=file, flush=True)


def attempt(trial: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row: what the trial returns, and its seconds; the error's first line where it fails."""
    began = time.perf_counter()
    try:
        row = {"ok": True} | trial()
    except Exception as error:
        row = {"ok": False, "failed": f"{type(error).__name__}: {error}".strip().splitlines()[0]}
    return row | {"seconds": round(time.perf_counter() - began, 2)}


def write(out: Path, machine: dict[str, Any], found: dict[str, Rows]) -> None:
    """results.json, and results.md of the same rows."""
    (out / "results.json").write_text(json.dumps({"machine": machine, "parts": found}, indent=1) + "\n")
    lines = ["# What only a GPU can tell", "", ", ".join(f"{name} {value}" for name, value in machine.items()), ""]
    for part, rows in found.items():
        columns = list(dict.fromkeys(key for row in rows for key in row if key != "ok"))
        lines += [f"## {part}", "", "| " + " | ".join([*columns, "as it should be"]) + " |"]
        lines += ["|---" * (len(columns) + 1) + "|"]
        for row in rows:
            cells = [str(row.get(column, "")).replace("|", "/") for column in columns]
            lines.append("| " + " | ".join([*cells, "yes" if row["ok"] else "**no**"]) + " |")
        lines.append("")
    (out / "results.md").write_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
