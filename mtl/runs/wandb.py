"""Weights & Biases: every call is guarded, and a failure there never stops a run."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


log = logging.getLogger(__name__)


class WandbRun:
    """The W&B side. Every call is guarded; after the first failure the run goes on without W&B."""

    def __init__(self, folder: Path, settings: Any, config: dict[str, Any], run_id: str | None) -> None:
        self.id = run_id
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
            # The same run again; W&B's own count of steps would be renumbered, trainer/step says where a row belongs.
            **({} if self.id is None else {"id": self.id, "resume": "allow"}),
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
        self.id = self._run.id
        self._run.define_metric("trainer/step")
        self._run.define_metric("*", step_metric="trainer/step")
        log.info("W&B run %s: %s", self._run.id, self._run.url or f"offline, {self._run.sync_dir}")

    def log(self, row: dict[str, Any]) -> None:
        """Send one row."""
        self._guard("log", lambda: self._run.log(row))

    def image(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Send one picture ``[H, W, 3]``."""

        def send() -> None:
            import wandb

            self._run.log({name: wandb.Image(pixels), "trainer/step": step})

        self._guard("log an image", send)

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Write the run's summary."""
        self._guard("write the summary", lambda: self._run.summary.update(dict(summary)))

    def finish(self, exit_code: int) -> None:
        """Close the run, and leave the environment as it was."""
        self._guard("finish", lambda: self._run.finish(exit_code=exit_code))
        self._run = None
        for name in _wandb_environment():
            del os.environ[name]
        os.environ.update(self._environment)

    def _guard(self, what: str, call: Callable[[], Any]) -> None:
        if self._run is None and what != "start":
            return
        # Where W&B tries again it waits for a random time, drawn from the generator that the run draws from as well.
        state = random.getstate()
        try:
            call()
        except Exception as error:
            log.warning(
                "W&B failed to %s (%s). metrics.jsonl goes on without it%s.", what, _one_line(error),
                f"; `wandb sync {self._run.sync_dir}` sends what was saved" if self._run is not None else "",
            )  # fmt: skip
            self._run = None
            _reset()
        finally:
            random.setstate(state)


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
