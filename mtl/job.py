"""A job, alone or one of a sweep: who it is, how it ended, and what a person is told when it fails."""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mtl.config import ConfigError
from mtl.report import overview
from mtl.tracking import write_status

log = logging.getLogger(__name__)


class JobFailed(CompactHydraException):
    """A job ended by an error that is in its log. Hydra prints this one without a traceback."""


def identify(cfg: DictConfig) -> DictConfig:
    """Give the tracker what tells this run from others: its name, the sweep as its group, its choices as tags."""
    hydra_cfg, tracker = HydraConfig.get(), cfg.tracker
    choices = hydra_cfg.runtime.choices
    if tracker.run_name is None:
        overrides = ",".join(hydra_cfg.overrides.task)
        tracker.run_name = (overrides or f"{cfg.name}-{choices.strategy}-seed={cfg.seed}")[:128]  # W&B's limit
    if tracker.group is None and hydra_cfg.mode == RunMode.MULTIRUN:
        tracker.group = "-".join(Path(hydra_cfg.sweep.dir).parts[-3:])[:128]
    tracker.tags = [*tracker.tags, *(str(choices[group]) for group in ("data", "backbone", "strategy"))]
    return cfg


def run_job(body: Callable[[DictConfig, Path], Any], cfg: DictConfig) -> Any:
    """Run ``body(cfg, folder)`` in Hydra's output folder, and leave there how it ended: status.json and the log.

    A user's mistake is logged in one line, any other error with its traceback. What is raised then refers to
    nothing: Hydra keeps every failed job's exception to the end of a sweep, with all that its frames hold.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    write_status(folder, "running")
    try:
        value = body(cfg, folder)
    except Exception as error:
        mistake = isinstance(error, ConfigError | OmegaConfBaseException)
        words = str(error) if mistake else f"{type(error).__name__}: {error}"
        write_status(folder, "failed", words)
        log.error("%s", words, exc_info=not mistake or bool(os.environ.get("HYDRA_FULL_ERROR")))
        traceback.clear_frames(error.__traceback__)
        raise JobFailed(f"The run did not start: {folder}" if mistake else f"The run failed: {folder}") from None
    except BaseException as error:
        write_status(folder, "failed", type(error).__name__)
        raise
    finally:
        gc.collect()  # the model and its graph refer to each other; the next job of a sweep needs their memory
    write_status(folder, "finished")
    return value


def command(hydra_main: Callable[[], None]) -> None:
    """Run a Hydra application; after a sweep, also one with failed jobs, print what came of each job."""
    try:
        hydra_main()
    finally:
        composed = HydraConfig.instance().cfg
        if composed is not None and composed.hydra.mode == RunMode.MULTIRUN:
            table = overview(Path(composed.hydra.sweep.dir))
            print(f"\n{table}\n\nEverything is in {composed.hydra.sweep.dir}" if table else "No job was run.")


class CheckFolder(Callback):
    """Says in one sentence that the output folder cannot be written, before Hydra fails with a traceback."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a single run."""
        _make_folder(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a sweep."""
        _make_folder(config, "sweep")


def _make_folder(config: DictConfig, kind: str) -> None:
    HydraConfig.instance().set_config(config)  # the folder's name refers to it, and Hydra sets it only later
    folder = config.hydra[kind].dir
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        sys.exit(f"hydra.{kind}.dir={folder} cannot be written ({error.strerror}): choose a folder that can.")
