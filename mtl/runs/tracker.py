"""Where a run's numbers go: metrics.jsonl always, Weights & Biases when it can."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mtl.distributed.ranks import rank
from mtl.system.signals import EXIT_CODE, Preempted

if TYPE_CHECKING:
    import numpy as np

from mtl.runs.files import finite_or_null, write_json
from mtl.runs.record import Record
from mtl.runs.wandb import WandbRun


class Tracker:
    """A run's record, as a context manager: ``metrics.jsonl`` in ``folder``, mirrored in W&B, names and all.

    A row holds ``step``, ``epoch``, ``split`` and the metrics; in W&B the split stands before each name and
    ``trainer/step`` is the x axis. A value that JSON has no number for (NaN, infinity) is written as null.
    W&B never stops a run: if it fails, one warning is logged and the record goes on without it. On a full disk the
    rows wait in memory; OSError at the end if they could not be written until then.

    ``wandb_id``: the W&B run to go on with; afterwards the one that there is, None without W&B.
    """

    def __init__(self, folder: Path, settings: Any, config: dict[str, Any], wandb_id: str | None = None) -> None:
        self.folder, self.config, self.wandb_id = folder, config, wandb_id
        self._settings = settings

    def __enter__(self) -> Tracker:
        self._record = Record(self.folder / "metrics.jsonl")
        self._wandb = WandbRun(self.folder, self._settings, self.config, self.wandb_id)
        self.wandb_id = self._wandb.id
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wandb.finish(EXIT_CODE if isinstance(error, Preempted) else int(kind is not None))
        self._record.close()

    def flush(self) -> None:
        """Bring every row to the disk; OSError if that cannot be done."""
        self._record.flush()

    def log(self, split: str, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Add one row."""
        row = {"step": step, "epoch": round(epoch, 4), "split": split, **metrics}
        self._record.append(json.dumps(finite_or_null(row), allow_nan=False) + "\n")
        named = {f"{split}/{name}": value for name, value in metrics.items()}
        self._wandb.log({**named, "trainer/step": step, "trainer/epoch": epoch})

    def image(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Show an image ``[H, W, 3]`` in W&B."""
        self._wandb.image(name, step, pixels)

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, and W&B's summary."""
        write_json(self.folder / "summary.json", summary)
        self._wandb.summarise(summary)


class NullTracker:
    """The record of a rank that is not the first: nothing. Rank 0 writes the run's."""

    wandb_id = None

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.config = folder, config

    def __enter__(self) -> NullTracker:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def log(self, *_: Any) -> None:
        """Nothing."""

    image = summarise = log


def make_tracker(folder: Path, settings: Any, config: dict[str, Any], wandb_id: str | None) -> Tracker | NullTracker:
    """The record that this process keeps; see Tracker."""
    return NullTracker(folder, config) if rank() else Tracker(folder, settings, config, wandb_id)
