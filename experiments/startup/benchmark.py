"""How long the command line takes to answer: python experiments/startup/benchmark.py

Every command is a fresh process; rounds are interleaved, the first is thrown away, and medians are printed beside the
time that importing torch and timm alone takes.
"""

import statistics
import subprocess
import sys
import tempfile
import time

TRAIN = [sys.executable, "-m", "mtl.train"]
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import hydra": [sys.executable, "-c", "import hydra"],
    "mtl-train --help": [*TRAIN, "--help"],
    "mtl-train --cfg job": [*TRAIN, "--cfg", "job"],
    "mtl-train backbone=nothing (a wrong option)": [*TRAIN, "backbone=nothing"],
    "mtl-train +trainer.lrr=3 (an unknown key)": [*TRAIN, "+trainer.lrr=3"],
    "import torch, timm": [sys.executable, "-c", "import torch, timm"],
    "mtl-train trainer.fast_dev_run=true": [*TRAIN, "trainer.fast_dev_run=true"],
}
ROUNDS = 6


def main() -> None:
    """Run every command in turn, six times over."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for name, command in COMMANDS.items():
                start = time.perf_counter()
                subprocess.run(command, cwd=folder, capture_output=True)
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    print("| command | seconds | to importing torch and timm |\n| --- | --- | --- |")
    for name, median in medians.items():
        print(f"| `{name}` | {median:.2f} | {median / medians['import torch, timm']:.2f} |")


if __name__ == "__main__":
    main()
