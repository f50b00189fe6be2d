"""How long the command line takes to answer, to begin and to finish: every command is a fresh process.

``python experiments/cost/startup.py`` prints what each takes until its first step or its answer, beside the import of
torch and timm alone, all in turns: CPU seconds of the process, which a busy machine changes little, and wall clock.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

TRAIN = [sys.executable, "-m", "mtl.train"]
# What should be answered without torch, and what cannot.
ANSWERS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import hydra": [sys.executable, "-c", "import hydra"],
    "mtl-train --help": [*TRAIN, "--help"],
    "mtl-train --cfg job": [*TRAIN, "--cfg", "job"],
    "mtl-train backbone=nothing (a wrong option)": [*TRAIN, "backbone=nothing"],
    "mtl-train +trainer.lrr=3 (an unknown key)": [*TRAIN, "+trainer.lrr=3"],
}
STARTS = {
    "import torch, timm": [sys.executable, "-c", "import torch, timm"],
    "mtl-train trainer.fast_dev_run=true": [*TRAIN, "tracker=jsonl", "trainer.fast_dev_run=true"],
}


def commands(rounds: int, seconds: float, device: str) -> dict[str, Any]:
    """Seconds of every answer in every round, and of every start once. All files have been read by the cells before."""
    rows = {name: {"seconds": [clocked(command)]} for name, command in (ANSWERS | STARTS).items()}
    for _ in range(rounds - 1):
        for name, command in ANSWERS.items():
            rows[name]["seconds"].append(clocked(command))
    return {"rows": rows}


def demo(seconds: float, device: str) -> dict[str, Any]:
    """Seconds of the whole of ``mtl-train``, as it comes."""
    return {"rows": {"mtl-train": {"seconds": [clocked([*TRAIN, "tracker=jsonl"])]}}}


def clocked(command: Sequence[str]) -> float:
    """Seconds of a command in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, capture_output=True)
        return time.perf_counter() - start


# --------------------------------------------------------------------------------------------- to the first step

IMPORTS = "import torch, timm"
FIRST = {
    IMPORTS: STARTS[IMPORTS],
    "mtl-train, to its first step": STARTS["mtl-train trainer.fast_dev_run=true"],
    "mtl-train backbone=nothing": ANSWERS["mtl-train backbone=nothing (a wrong option)"],
    "mtl-train optimizer.lr=-1": [*TRAIN, "optimizer.lr=-1"],
    "mtl-train data.root=nothing": [*TRAIN, "data=nyuv2", "data.root=nothing"],
    "mtl-eval nothing": [sys.executable, "-m", "mtl.evaluate", "nothing"],
}


def until_first_step(command: Sequence[str]) -> tuple[float, float]:
    """CPU and wall seconds of a command until it logs its first step, or until its end if it logs none."""
    with tempfile.TemporaryDirectory() as folder:
        start, log = time.perf_counter(), Path(folder) / "stderr.txt"
        with log.open("w") as file:
            child = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=file)
        cpu = 0.0
        while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            cpu = cpu_seconds(child.pid)
            if "step 1 of" in log.read_text():
                break
            time.sleep(0.01)
        else:
            cpu = cpu_seconds(child.pid)  # of a process that has ended and is not waited for yet
        wall = time.perf_counter() - start
        child.wait()
        return cpu, wall


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, as Linux has it in /proc, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(rounds: int = 3) -> None:
    """Print the medians, and what the first step takes beyond the imports in the same round."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in FIRST}
    for _ in range(rounds):
        for name, command in FIRST.items():
            taken[name].append(until_first_step(command))
    for name, pairs in taken.items():
        print(f"{name:32} CPU {median(cpu for cpu, _ in pairs):6.2f} s   wall {median(w for _, w in pairs):6.2f} s")
    beyond = [a[0] - b[0] for a, b in zip(taken["mtl-train, to its first step"], taken[IMPORTS], strict=True)]
    print(f"the first step beyond the imports: CPU {median(beyond):.2f} s (goal: at most 3)")


if __name__ == "__main__":
    main()
