"""The folder of a run or a sweep: chosen, created and locked before Hydra writes into it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write

from mtl.config.redact import plain_secret_error
from mtl.distributed.ranks import has_several_ranks, rank
from mtl.errors import ConfigError
from mtl.jobs.launch import broadcast_object
from mtl.jobs.overrides import overrides, quoted
from mtl.jobs.resume import newest_run, newest_sweep

log = logging.getLogger(__name__)


LOCK_SECONDS = 8  # the loader processes of a run that was killed hold on to its folder for up to five


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a run's folder, so that no second process writes into it; ConfigError if another one does.

    The operating system lets go of the folder when the process ends, however it ends.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise ConfigError(f"{folder} is being written by another process: wait for its end, or end it.") from None
    except OSError as error:
        log.warning("%s cannot be locked (%s): see to it that no second process runs there.", folder, error)
    try:
        yield
    finally:
        lock.release()


class CheckFolder(Callback):
    """Before Hydra writes anything: which folder it is to be, whether it can be written, and that no secret will be."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a single run."""
        _prepare(config, "run", newest_run)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a sweep."""
        if config.resume not in (None, "auto"):
            sys.exit(f"resume={config.resume} is one run: in a sweep use resume=auto or skip_finished=true.")
        if "OMP_NUM_THREADS" in os.environ:  # joblib fills in MKL's for its workers, and torch goes by that one first
            os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
        _prepare(config, "sweep", newest_sweep)


def _prepare(config: DictConfig, kind: str, newest: Callable[[Path, list[str]], Path | None]) -> None:
    HydraConfig.instance().set_config(config)  # the folder's name refers to it, and Hydra sets it only later
    try:
        if (words := plain_secret_error(config, overrides(config.hydra))) is not None:
            sys.exit(words)
        if has_several_ranks():
            _share(config, kind, newest)
            return
        if config.resume == "auto" or config.skip_finished:
            _reuse_folder(config, kind, newest)
        _make_folder(config, kind)
    except Exception as error:  # which Hydra would turn into a warning, and go on
        sys.exit(f"hydra.{kind}.dir cannot be prepared ({type(error).__name__}: {error}).")


def _share(config: DictConfig, kind: str, newest: Callable[[Path, list[str]], Path | None]) -> None:
    """Have all the processes that torchrun has started write into one folder, the first one's; the first one writes."""
    if rank() == 0:
        if config.resume == "auto" or config.skip_finished:
            _reuse_folder(config, kind, newest)
        _make_folder(config, kind)
    folder = broadcast_object(str(config.hydra[kind].dir))
    with read_write(config.hydra):
        config.hydra[kind].dir = folder
        config.hydra.overrides.hydra.append(f"hydra.{kind}.dir={quoted(folder)}")
        if rank():
            config.hydra.output_subdir = None
            config.hydra.job_logging.root.level = "WARNING"
            # A sweep composes each job anew.
            config.hydra.overrides.hydra += ["hydra.output_subdir=null", "hydra.job_logging.root.level=WARNING"]


def _reuse_folder(config: DictConfig, kind: str, newest: Callable[[Path, list[str]], Path | None]) -> None:
    """Unless the folder was given, make it that of the latest run or sweep that was started with the same overrides."""
    dated = Path(config.hydra[kind].dir).parents  # <name>/<date>/<time>; another pattern is a folder of its own
    given = any(override.startswith(f"hydra.{kind}.dir=") for override in config.hydra.overrides.hydra)
    if given or len(dated) < 3:
        return
    folder = newest(dated[1], overrides(config.hydra))
    if folder is not None:
        print(f"Goes on in {folder}", file=sys.stderr)
        with read_write(config.hydra):
            config.hydra[kind].dir = str(folder)
            config.hydra.overrides.hydra.append(f"hydra.{kind}.dir={quoted(folder)}")  # a sweep composes each job anew


def _make_folder(config: DictConfig, kind: str) -> None:
    folder = config.hydra[kind].dir
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        sys.exit(f"hydra.{kind}.dir={folder} cannot be written ({error.strerror}): choose a folder that can.")
