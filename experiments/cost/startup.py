"""How long the command line takes to answer, and the demo to finish: every command is a fresh process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
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
