"""Where a run's numbers go: metrics.jsonl always, Weights & Biases when it can."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mtl.distributed.ranks import rank
from mtl.runs.files import finite_or_null, write_json
from mtl.runs.record import Record
from mtl.runs.wandb import WandbRun
from mtl.system.signals import EXIT_CODE, Preempted

if TYPE_CHECKING:
    import numpy as np
    import plotly.graph_objects as go


class Tracker:
    """Records a run's metrics in ``metrics.jsonl`` in ``folder``, and the same rows in W&B. A context manager.

    A row holds ``step``, ``epoch``, ``split`` and the metrics. In W&B the split is a prefix of each name and
    ``trainer/step`` is the x axis. NaN and the infinities, which JSON cannot represent, are written as null.
    W&B never stops a run: if it fails, one warning is logged and the record goes on without it. While the disk is full
    the rows wait in memory; OSError at the end of the run if they still cannot be written.

    ``wandb_id``: the W&B run to resume; inside of the context the id of the current W&B run, None without W&B.
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
        """Write every row through to the disk; OSError if that fails."""
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

    def figures(self, step: int, make: Callable[[], Mapping[str, go.Figure]]) -> None:
        """Show the figures that ``make`` returns, by name, as panels in W&B; without W&B it is not called."""
        self._wandb.figures(step, make)

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json and the summary in W&B."""
        write_json(self.folder / "summary.json", summary)
        self._wandb.summarise(summary)


class NullTracker:
    """The tracker of every rank but 0, which alone records the run: it does nothing."""

    wandb_id = None

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.config = folder, config

    def __enter__(self) -> NullTracker:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def log(self, *_: Any) -> None:
        """Do nothing."""

    image = figures = summarise = log


def make_tracker(folder: Path, settings: Any, config: dict[str, Any], wandb_id: str | None) -> Tracker | NullTracker:
    """The tracker of this rank."""
    return NullTracker(folder, config) if rank() else Tracker(folder, settings, config, wandb_id)
