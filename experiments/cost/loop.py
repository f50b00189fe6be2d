"""The whole training loop beside the bare step, in turn in one run."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

from mtl.config import load
from mtl.config.build import build
from mtl.data.loader import closing
from mtl.jobs.overrides import config_to_record
from mtl.runs.tracker import make_tracker
from mtl.training.loaders import eval_batches
from mtl.training.loop import fit
from mtl.training.state import Parts, TrainState

BATCH, CHUNK = 32, 10  # samples; steps in turn
RUN = [
    "data=digits", "data.image_size=64", f"data.batch_size={BATCH}", "backbone=resnet18", "tracker=jsonl",
    "trainer.val_every=1000000", f"trainer.limit_val_batches={CHUNK}", "trainer.examples=0",
]  # fmt: skip


class Ready:
    """Training samples of which whole batches wait in memory: those that come next, whatever is asked for."""

    def __init__(self, samples: Any) -> None:
        self._samples = samples
        places = (range(i * BATCH, (i + 1) * BATCH) for i in range(CHUNK))
        self._batches = itertools.cycle([samples.batch(list(indices), epoch=0) for indices in places])

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, indices: Any, epoch: int) -> Any:
        """The next one."""
        return next(self._batches)


class Bare:
    """What ``fit`` asks after each of its steps: now and then, it takes as many steps without it, on ready batches.

    The loop's time is all that passes between two questions: loading, the step, what is logged of it. The evaluation
    and the checkpoint at the end come after the last one.
    """

    def __init__(self, state: TrainState, parts: Parts, cfg: Any) -> None:
        self.state, self.steps = state, 0
        with closing(eval_batches(parts.data, "train", cfg, state.tasks)) as batches:
            self.batches = itertools.cycle(list(itertools.islice(batches, CHUNK)))
        self.loop: list[float] = []  # seconds of CHUNK steps each
        self.bare: list[float] = []
        self.left = time.perf_counter()

    def __call__(self) -> bool:
        """Whether the run must end: it must not."""
        self.steps += 1
        if self.steps % CHUNK == 0:
            self.loop.append(time.perf_counter() - self.left)
            self.bare.append(self.run())
            self.left = time.perf_counter()
        return False

    def run(self) -> float:
        """Take the bare steps; their seconds."""
        start = time.perf_counter()
        for inputs, targets in itertools.islice(self.batches, CHUNK):
            self.state.optimizer.zero_grad()
            self.state.strategy.step(self.state.model, self.state.tasks, inputs, targets)
            self.state.optimizer.step()
        return time.perf_counter() - start


def loop(ready: bool, seconds: float, device: str) -> dict[str, Any]:
    """Seconds of chunks of steps, in ``fit`` and bare: rows as of other cells, a chunk a round.

    ``ready``: the batches wait in memory for ``fit``, too, or it makes them as always.
    """
    with tempfile.TemporaryDirectory() as folder:
        cfg = load([*RUN, f"device={device}", "trainer.max_steps=1000000"])
        parts, state = build(cfg)
        if ready:
            parts.data.train = Ready(parts.data.train)
        bare = Bare(state, parts, cfg)
        bare.run()
        chunks = max(4, round(seconds / 2 / bare.run()))
        cfg.trainer.max_steps = CHUNK * chunks + 1  # the last one evaluates
        with make_tracker(Path(folder), cfg.tracker, config_to_record(cfg, None), wandb_id=None) as tracker:
            fit(state, parts, cfg, tracker, bare)
    rows = {"bare step": bare.bare[1:], "mtl.training.loop.fit": bare.loop[1:]}  # the first ones warm up
    return {"rows": {name: {"seconds": values} for name, values in rows.items()}, "images": BATCH * CHUNK}
