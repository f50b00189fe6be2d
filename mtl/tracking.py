"""Where a run's numbers go: metrics.jsonl always, Weights & Biases when it can; the run's status and summary."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

log = logging.getLogger(__name__)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small JSON file whole: under another name first, then renamed."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")
    os.replace(temporary, path)


def _finite(value: Any) -> Any:
    """``value`` with null for what JSON has no number for: NaN and the infinities."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_status(folder: Path, status: str, error: str | None = None) -> None:
    """Write status.json: ``running``, ``finished`` or ``failed``, since when, and the error's first line."""
    content = {"status": status, "time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    if error is not None:
        content["error"] = error.strip().split("\n")[0]
    write_json(folder / "status.json", content)


class Tracker:
    """A run's record, as a context manager: ``metrics.jsonl`` in ``folder``, mirrored in W&B under the same names.

    A row holds ``step``, ``epoch``, ``split`` and the metrics; in W&B the split stands before each name and
    ``trainer/step`` is the x axis. A value that JSON has no number for (NaN, infinity) is written as null. W&B never
    stops a run: if it fails, one warning is logged and the record goes on without it.
    """

    def __init__(self, folder: Path, settings: Any, config: dict[str, Any]) -> None:
        self.folder = folder
        self._settings, self._config = settings, config

    def __enter__(self) -> Tracker:
        self._file = (self.folder / "metrics.jsonl").open("a", buffering=1)
        self._wandb = _WandB(self.folder, self._settings, self._config)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._wandb.finish(0 if kind is None else 1)

    def log(self, split: str, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Add one row."""
        row = {"step": step, "epoch": round(epoch, 4), "split": split, **metrics}
        self._file.write(json.dumps(_finite(row), allow_nan=False) + "\n")
        named = {f"{split}/{name}": value for name, value in metrics.items()}
        self._wandb.log({**named, "trainer/step": step, "trainer/epoch": epoch})

    def image(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Show an image ``[H, W, 3]`` in W&B."""
        self._wandb.image(name, step, pixels)

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, and W&B's summary."""
        write_json(self.folder / "summary.json", summary)
        self._wandb.summarise(summary)


class _WandB:
    """The W&B side. Every call is guarded; after the first failure the run goes on without W&B."""

    def __init__(self, folder: Path, settings: Any, config: dict[str, Any]) -> None:
        self._run: Any = None
        if settings.mode == "disabled" or (settings.mode is None and os.environ.get("WANDB_MODE") == "disabled"):
            return
        self._guard("start", lambda: self._start(folder, settings, config))

    def _start(self, folder: Path, settings: Any, config: dict[str, Any]) -> None:
        # Tables and media are staged here, so that a copied run folder is whole.
        os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
        (folder / "wandb").mkdir(exist_ok=True)
        import wandb

        wandb.setup(settings=wandb.Settings(silent=True))
        options = dict(
            project=settings.project,
            entity=settings.entity,
            dir=str(folder),
            group=settings.group,
            job_type="train",
            name=settings.run_name,
            tags=list(settings.tags),
            config=config,
            # Without it, a run that an earlier job of the sweep left open would be taken for this one.
            reinit="finish_previous",
            settings=wandb.Settings(
                console="off",
                init_timeout=30,
                finish_timeout=60,  # W&B's own default waits for ever when the server does not answer
                max_end_of_run_history_metrics=0,
                max_end_of_run_summary_metrics=0,
            ),
        )
        # The argument beats WANDB_MODE, so it must not be given where the environment should decide.
        mode = settings.mode or os.environ.get("WANDB_MODE") or ("online" if _knows_a_key() else "offline")
        try:
            self._run = wandb.init(mode=mode, **options)
        except Exception as error:
            if mode != "online":
                raise
            log.warning("W&B cannot be reached (%s): the run is recorded offline; `wandb sync` sends it.", error)
            self._run = wandb.init(mode="offline", **options)
        self._run.define_metric("trainer/step")
        self._run.define_metric("*", step_metric="trainer/step")
        if not self._run.disabled:
            where = self._run.url or f"offline, {self._run.sync_dir}"
            log.info("W&B run %s: %s", self._run.id, where)

    def log(self, row: dict[str, Any]) -> None:
        self._guard("log", lambda: self._run.log(row))

    def image(self, name: str, step: int, pixels: np.ndarray) -> None:
        def send() -> None:
            import wandb

            self._run.log({name: wandb.Image(pixels), "trainer/step": step})

        self._guard("log an image", send)

    def summarise(self, summary: Mapping[str, Any]) -> None:
        self._guard("write the summary", lambda: self._run.summary.update(dict(summary)))

    def finish(self, exit_code: int) -> None:
        self._guard("finish", lambda: self._run.finish(exit_code=exit_code))
        self._run = None

    def _guard(self, what: str, call: Any) -> None:
        if self._run is None and what != "start":
            return
        try:
            call()
        except Exception as error:
            log.warning(
                "W&B failed to %s (%s: %s): metrics.jsonl goes on without it.",
                what,
                type(error).__name__,
                error,
            )
            self._run = None
            try:
                import wandb

                wandb.teardown()  # so that the next job of a sweep gets a fresh one
            except Exception as trouble:
                log.debug("W&B could not be torn down: %s", trouble)


def _knows_a_key() -> bool:
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except Exception:
        return False
