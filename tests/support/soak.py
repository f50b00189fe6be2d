"""A small sweep under random signals, kills, faults of a W&B server, and full disks.

Afterwards every run is compared, bit for bit, with the same sweep undisturbed.

    python tests/support/soak.py --faults 40
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from support.exactness import differing, left_by
from support.processes import Training, fill, small_disk, wandb_service
from support.wandb_server import WandbServer

SWEEP = [
    "-m", "strategy=detached,gradvac", "seed=0,1", "~backbone", "+backbone._target_=support.restless.Backbone",
    "data._target_=support.restless.AugmentedDigits", "data.image_size=8", "+data.pairs_per_digit=1",
    "data.batch_size=2",
    "trainer.max_steps=300", "trainer.val_every=50", "trainer.checkpoint_every=10", "trainer.limit_val_batches=1",
    "trainer.log_every=5", "trainer.ema=0.9", "device=cpu",
]  # fmt: skip
JOBS = 4
SERVER_FAULTS = (500, 429, 401, 404, "drop", "hang", None)
ENVIRONMENT = {"WANDB_INIT_TIMEOUT": "3", "WANDB_FINISH_TIMEOUT": "1", "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}


class Soak:
    """Injects ``faults`` faults into a sweep, then lets it finish."""

    def __init__(self, folder: Path, faults: int, seed: int) -> None:
        self.folder, self.faults = folder, faults
        self.draw = random.Random(seed)
        self.count: Counter[str] = Counter()
        self.disk: Path | None = None
        self.starts = 0

    def run(self, server: WandbServer) -> Path:
        """Repeat the same command until the sweep has finished; returns the sweep's folder."""
        home = (self.disk or self.folder) / "sweep"
        while True:
            self.starts += 1
            workers = self.draw.choice([0, 0, 2])
            sweep = Training(self.folder, *SWEEP, f"trainer.num_workers={workers}", f"hydra.sweep.dir={home}",
                             "skip_finished=true", **ENVIRONMENT, **server.variables)  # fmt: skip
            sweep.start()
            while sum(self.count.values()) < self.faults and sweep.is_alive():
                sweep.join(self.draw.uniform(0.2, 1.5))
                if sweep.is_alive():
                    self.disturb(sweep, server)
            if sweep.wait(600) == 0:
                return home

    def disturb(self, sweep: Training, server: WandbServer) -> None:
        """Inject one fault of a random kind; its docstring names it in the table."""
        kinds = [self.sigterm, self.sigkill, self.group, self.helper, self.server] + [self.full] * (
            self.disk is not None
        )
        kind = self.draw.choice(kinds)
        if kind(sweep, server):
            self.count[str(kind.__doc__)] += 1

    def sigterm(self, sweep: Training, server: WandbServer) -> bool:
        """SIGTERM to the process"""
        return self._ended(sweep, sweep.send(signal.SIGTERM))

    def sigkill(self, sweep: Training, server: WandbServer) -> bool:
        """SIGKILL to the process"""
        return self._ended(sweep, sweep.send(signal.SIGKILL))

    def group(self, sweep: Training, server: WandbServer) -> bool:
        """SIGTERM to the process group"""
        return self._ended(sweep, sweep.send(signal.SIGTERM, group=True))

    def helper(self, sweep: Training, server: WandbServer) -> bool:
        """SIGKILL to W&B's helper"""
        service = wandb_service(sweep.pid)
        if service is not None:
            os.kill(service, signal.SIGKILL)
        return service is not None

    def server(self, sweep: Training, server: WandbServer) -> bool:
        """W&B server: 500, 429, 401, 404, drops, hangs"""
        fault = self.draw.choice(SERVER_FAULTS)
        server.faults = {} if fault is None else {self.draw.choice(["file_stream", "/graphql"]): fault}
        return fault is not None

    def full(self, sweep: Training, server: WandbServer) -> bool:
        """Full disk, for a while"""
        assert self.disk is not None
        filler = fill(self.disk)
        time.sleep(self.draw.uniform(0.1, 2))
        filler.unlink()
        return True

    @staticmethod
    def _ended(sweep: Training, sent: bool) -> bool:
        sweep.wait(120)
        return sent


def report(soak: Soak, whole: Path, parts: Path) -> tuple[str, int]:
    """The table, and the number of values that differ from those of the undisturbed sweep."""
    lost, finished, rows = 0, 0, 0
    for job in map(str, range(JOBS)):
        a, b = left_by(whole / job), left_by(parts / job)
        lost += len(differing(a, b))
        rows += len(b[1])
        finished += '"finished"' in (parts / job / "status.json").read_text()
    lines = ["| | |", "| --- | --- |", *(f"| {kind} | {count} |" for kind, count in sorted(soak.count.items()))]
    lines += [f"| **faults injected** | **{sum(soak.count.values())}** |", f"| starts of the command | {soak.starts} |"]
    lines += [f"| runs finished | {finished} of {JOBS} |", f"| rows of metrics.jsonl compared | {rows} |"]
    return "\n".join([*lines, f"| **values lost or changed** | **{lost}** |"]), lost + JOBS - finished


def soak(faults: int, seed: int = 0) -> tuple[str, int]:
    """Run the sweep undisturbed and disturbed; see ``report``."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        soak = Soak(folder, faults, seed)
        whole = Training(folder, *SWEEP, f"hydra.sweep.dir={folder / 'whole'}", "tracker=jsonl", **ENVIRONMENT)
        whole.start()
        assert whole.wait(600) == 0, whole.log.read_text()[-2000:]
        try:
            soak.disk = stack.enter_context(small_disk(folder / "disk", megabytes=40))
        except OSError as error:
            print(f"{error}: no full disks.", file=sys.stderr)
        server = stack.enter_context(WandbServer())
        return report(soak, folder / "whole", soak.run(server))


def main() -> None:
    """Print the table; the exit code is nonzero if a value was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    table, wrong = soak(arguments.faults, arguments.seed)
    print(table)
    sys.exit("something was lost" if wrong else 0)


if __name__ == "__main__":
    main()
