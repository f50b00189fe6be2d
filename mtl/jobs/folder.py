"""The folder of a run or a sweep: chosen and created before Hydra writes into it, locked during a run."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from mtl.config.checks import check
from mtl.config.file_checks import check_files
from mtl.config.redact import plain_secret_error
from mtl.distributed.ranks import has_several_ranks, rank
from mtl.errors import ConfigError
from mtl.jobs.composition import check_sweep, composed, wants_tracebacks
from mtl.jobs.overrides import config_folder, overrides, quoted
from mtl.jobs.resume import newest_run, newest_sweep
from mtl.jobs.search_checks import check_search
from mtl.jobs.study import check_storage, is_search

log = logging.getLogger(__name__)

LOCK_SECONDS = 8  # the data loader workers of a killed run keep its lock for up to five seconds

FindNewest = Callable[[Path, list[str]], Path | None]  # newest_run or newest_sweep


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock a run's folder, so that no second process writes into it; ConfigError if another process holds the lock.

    The operating system releases the lock when the process ends, whatever the cause.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise ConfigError(
            f"{folder} is being written by another process: wait for it to end, or terminate it."
        ) from None
    except OSError as error:
        log.warning("%s cannot be locked (%s): make sure that no second process runs there.", folder, error)
    try:
        yield
    finally:
        lock.release()


def remove_untrained(folder: Path) -> None:
    """Remove the folder of a run that did not start: Hydra's files and our log of it, and folders that are then empty.

    A folder in which something was trained, or that holds other files, stays.
    """
    if any((folder / name).exists() for name in ("config.yaml", "metrics.jsonl", "checkpoints")):
        return
    files = [*(folder / ".hydra").glob("*.yaml"), *folder.glob("*.log"), folder / "status.json", folder / ".lock"]
    for file in files:
        file.unlink(missing_ok=True)
    for empty in (folder / ".hydra", folder, *folder.parents[:2]):
        try:
            empty.rmdir()
        except OSError:  # it holds something else, or it is the current folder
            continue


class CheckFolder(Callback):
    """Checks the configuration, then chooses and creates the folder before Hydra writes into it.

    It refuses secrets that Hydra would write there.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Prepare the folder of a single run."""
        _prepare(config, "run", newest_run)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Prepare the folder of a sweep."""
        if config.resume not in (None, "auto"):
            sys.exit(f"resume={config.resume} is one run: in a sweep use resume=auto or skip_finished=true.")
        if "OMP_NUM_THREADS" in os.environ:  # joblib sets MKL_NUM_THREADS for its workers, which torch reads first
            os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
        _prepare(config, "sweep", newest_sweep)


def _prepare(config: DictConfig, kind: str, newest: FindNewest) -> None:
    composed()
    try:
        searches = kind == "sweep" and is_search(config.hydra)
        if searches:
            check_search(config, config_folder(sys.argv[1:]))
        elif kind == "sweep":
            check_sweep(overrides(config.hydra), config_folder(sys.argv[1:]))
        HydraConfig.instance().set_config(config)  # the folder's name refers to it, and Hydra sets it only later
        if (refusal := plain_secret_error(config, overrides(config.hydra))) is not None:
            sys.exit(refusal)
        if kind == "run":
            _check(config)
        if rank() == 0:
            if config.resume == "auto" or config.skip_finished:
                _reuse_folder(config, kind, newest)
            if searches:
                check_storage(config)
            _make_folder(config, kind)
        if has_several_ranks():
            _share_folder(config, kind)
    except ConfigError as error:
        if wants_tracebacks():
            traceback.print_exc()
        sys.exit(1 if rank() else str(error))
    except Exception as error:  # Hydra would turn it into a warning, and go on
        sys.exit(f"hydra.{kind}.dir cannot be prepared ({type(error).__name__}: {error}).")


def _check(config: DictConfig) -> None:
    """ConfigError for a mistake that can be found before anything is written."""
    own = config.copy()
    with read_write(own), open_dict(own):
        del own["hydra"]
    check(own)
    if not own.skip_finished:  # a finished run needs no data
        check_files(own.data)


def _reuse_folder(config: DictConfig, kind: str, newest: FindNewest) -> None:
    """Choose the folder of the latest run or sweep with the same overrides, unless a folder was given."""
    dated = Path(config.hydra[kind].dir).parents  # <name>/<date>/<time>; a folder of another pattern is not reused
    given = any(override.startswith(f"hydra.{kind}.dir=") for override in config.hydra.overrides.hydra)
    if given or len(dated) < 3:
        return
    folder = newest(dated[1], overrides(config.hydra))
    if folder is not None:
        print(f"Resuming in {folder}", file=sys.stderr)
        _set_folder(config, kind, str(folder))


def _make_folder(config: DictConfig, kind: str) -> None:
    folder = config.hydra[kind].dir
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        sys.exit(f"hydra.{kind}.dir={folder} cannot be written ({error.strerror}): choose another folder.")


def _share_folder(config: DictConfig, kind: str) -> None:
    """Let every rank of torchrun use the folder of rank 0, which alone lets Hydra write there."""
    from mtl.distributed.collectives import broadcast_object  # loads torch, which a single process does not need yet

    _set_folder(config, kind, broadcast_object(str(config.hydra[kind].dir)))
    if rank():
        with read_write(config.hydra):
            config.hydra.output_subdir = None
            config.hydra.job_logging.root.level = "WARNING"
            config.hydra.overrides.hydra += ["hydra.output_subdir=null", "hydra.job_logging.root.level=WARNING"]


def _set_folder(config: DictConfig, kind: str, folder: str) -> None:
    """Set the folder in the configuration, and in the overrides, from which a sweep composes each job."""
    with read_write(config.hydra):
        config.hydra[kind].dir = folder
        config.hydra.overrides.hydra.append(f"hydra.{kind}.dir={quoted(Path(folder))}")
