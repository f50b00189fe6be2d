"""Where a run's numbers go: metrics.jsonl always, Weights & Biases when it can; its status and summary."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_status(folder: Path, status: str, error: str | None = None) -> None:
    """Write status.json: ``running``, ``finished`` or ``failed``, since when, and the error's first line."""
    content = {"status": status, "time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    if error is not None:
        content["error"] = error.strip().split("\n")[0]
    write_json(folder / "status.json", content)


class Tracker:
    """A run's record, as a context manager: ``metrics.jsonl`` in ``folder``, mirrored in W&B, names and all.

    A row holds ``step``, ``epoch``, ``split`` and the metrics; in W&B the split stands before each name and
    ``trainer/step`` is the x axis. A value that JSON has no number for (NaN, infinity) is written as null.
    W&B never stops a run: if it fails, one warning is logged and the record goes on without it.
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
        self._wandb.finish(0 if kind is None else 1)
        self._file.close()

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
        self._environment = _wandb_environment()
        mode = settings.mode or os.environ.get("WANDB_MODE") or None
        if mode != "disabled":
            self._guard("start", lambda: self._start(folder, settings, config, mode))

    def _start(self, folder: Path, settings: Any, config: dict[str, Any], mode: str | None) -> None:
        # What W&B would leave in the home folder (staged tables, its helper's logs) belongs to the run's.
        os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb" / "cache"))
        os.environ.pop("WANDB_MODE", None)  # it has been heard, and empty it is an error
        import wandb

        # Silent it also never prompts for a key.
        wandb.setup(settings=wandb.Settings(silent=True, mode=mode or "online"))
        # A run that something else left open would be taken for this one; login() sees no key beside it.
        wandb.finish()
        options: dict[str, Any] = {
            "mode": mode or "online",
            "project": settings.project,
            "entity": settings.entity,
            "dir": str(folder),
            "group": settings.group,
            "job_type": "train",
            "name": settings.run_name,
            "tags": [tag[:64] for tag in settings.tags],  # W&B's limit
            "config": config,
            "settings": wandb.Settings(
                console="off",
                init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", 30)),
                # W&B's own default waits for ever when the server does not answer.
                finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", 60)),
                finish_timeout_raises=True,
            ),
        }
        try:
            if mode is None and not wandb.login(prompt=False, verify=False):
                options["mode"] = "offline"
            self._run = wandb.init(**options)
        except Exception as error:
            if options["mode"] == "offline":
                raise
            reason = str(error).split("\n")[0]
            log.warning("W&B gives no run (%s): it is recorded offline, `wandb sync` sends it.", reason)
            self._run = wandb.init(**options | {"mode": "offline"})
        self._run.define_metric("trainer/step")
        self._run.define_metric("*", step_metric="trainer/step")
        log.info("W&B run %s: %s", self._run.id, self._run.url or f"offline, {self._run.sync_dir}")

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
        for name in _wandb_environment():
            del os.environ[name]
        os.environ.update(self._environment)

    def _guard(self, what: str, call: Callable[[], Any]) -> None:
        if self._run is None and what != "start":
            return
        try:
            call()
        except Exception as error:
            log.warning(
                "W&B failed to %s (%s). metrics.jsonl goes on without it%s.", what, _one_line(error),
                f"; `wandb sync {self._run.sync_dir}` sends what was saved" if self._run is not None else "",
            )  # fmt: skip
            self._run = None
            _reset()


def _reset() -> None:
    """Give the next job of a sweep a fresh W&B, whatever became of this one's."""
    try:
        import wandb

        wandb.run = None  # it would stay the dead one, and login() sees no key beside a run
        wandb.teardown()
    except (Exception, SystemExit) as error:  # teardown() calls sys.exit where its helper was killed
        log.debug("W&B could not be torn down: %s", _one_line(error))


def _wandb_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
