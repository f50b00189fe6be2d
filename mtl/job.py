"""A job, alone or one of a sweep: who it is, how it ended, and what a person is told when it fails."""

from __future__ import annotations

import gc
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
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from mtl import allocator
from mtl.config import ConfigError
from mtl.launch import RankFailed, from_first, is_one_of_several, meeting, rank
from mtl.report import best_value, overview, read_status
from mtl.resume import expand, is_finished, newest_run, newest_sweep, quoted
from mtl.secrecy import refusal
from mtl.signals import Preempted, StopSignal, handled, leave
from mtl.tracking import write_json, write_status

log = logging.getLogger(__name__)

LOCK_SECONDS = 8  # the loader processes of a run that was killed hold on to its folder for up to five


class JobFailed(CompactHydraException):
    """A job ended by an error that is in its log. Hydra prints this one without a traceback."""


def identify(cfg: DictConfig) -> DictConfig:
    """Give the tracker what tells this run from others: its name, the sweep as its group, its choices as tags."""
    hydra_cfg, tracker = HydraConfig.get(), cfg.tracker
    choices = hydra_cfg.runtime.choices
    if tracker.run_name is None:
        own = [text for text in overrides() if not text.startswith(("resume=", "skip_finished="))]
        tracker.run_name = (",".join(own) or f"{cfg.name}-{choices.strategy}-seed={cfg.seed}")[:128]  # W&B's limit
    if tracker.group is None and hydra_cfg.mode == RunMode.MULTIRUN:
        tracker.group = "-".join(Path(hydra_cfg.sweep.dir).parts[-3:])[:128]
    if tracker.group is None:  # an agent of W&B's starts each run of its sweep alone
        tracker.group = os.environ.get("WANDB_SWEEP_ID") or None
    named = (choices.get(group) for group in ("data", "backbone", "strategy"))  # none where one was written in full
    tracker.tags = [*tracker.tags, *(str(choice) for choice in named if choice is not None)]
    return cfg


def overrides(composed: Any = None) -> list[str]:
    """What a job (this one, unless told) was started with on the command line, to the letter."""
    given = (HydraConfig.get() if composed is None else composed).overrides.task
    texts: Any = OmegaConf.to_container(given, resolve=False)  # a list of OmegaConf's would give references resolved
    return texts


def run_job(body: Callable[[DictConfig, Path, StopSignal], Any], cfg: DictConfig) -> Any:
    """Run ``body(cfg, folder, stop)`` in Hydra's output folder, and leave there how it ended: status.json and the log.

    A user's mistake is logged in one line, any other error with its traceback; a mistake leaves the status of a run
    that is already there as it was. What is raised then refers to nothing: Hydra keeps every failed job's exception to
    the end of a sweep, with all that its frames hold. With ``skip_finished`` a run that is finished is left alone.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    if rank():
        return _follow(body, cfg, folder)
    before: dict[str, Any] | None = None
    stop, ours = StopSignal(), False  # the folder, once it is locked
    try:
        with the_only_one(folder), stop:
            before, ours = read_status(folder), True
            if cfg.skip_finished and is_finished(cfg, folder):
                log.info("%s is finished, and skipped", folder)
                return best_value(folder)
            write_status(folder, "running")
            value = body(cfg, folder, stop)
            write_status(folder, "finished")
    except Exception as error:
        mistake = isinstance(error, ConfigError | OmegaConfBaseException)
        words = str(error) if mistake else f"{type(error).__name__}: {error}"
        if ours and not (is_one_of_several() and (read_status(folder) or {}).get("status") in ("failed", "oom")):
            _leave_status(folder, before if mistake else None, "failed" if mistake else _kind_of(error), words)
        told = mistake or isinstance(error, RankFailed)
        log.error("%s", words, exc_info=not told or bool(os.environ.get("HYDRA_FULL_ERROR")))
        _clear_frames(error)
        raise _end(f"The run did not start: {folder}" if mistake else f"The run failed: {folder}") from None
    except Preempted:
        _leave_status(folder, None, "preempted")
        raise
    except BaseException as error:
        _leave_status(folder, None, "failed", type(error).__name__)
        raise
    finally:
        _free_memory()
    if stop() and HydraConfig.get().mode == RunMode.MULTIRUN:  # too late for this run, but no other must begin
        raise Preempted
    return value


def _follow(body: Callable[[DictConfig, Path, StopSignal], Any], cfg: DictConfig, folder: Path) -> Any:
    """The job of a process that torchrun has started beside the first one, which keeps the folder and the status.

    Where this one fails first, the status says why: the others will only find that it is gone.
    """
    try:
        with StopSignal() as stop:
            if cfg.skip_finished and is_finished(cfg, folder):
                return best_value(folder)
            return body(cfg, folder, stop)
    except Exception as error:
        mistake = isinstance(error, ConfigError | OmegaConfBaseException)
        words = f"rank {rank()}: {error}" if mistake else f"rank {rank()}: {type(error).__name__}: {error}"
        log.error("%s", words, exc_info=not mistake)
        if not mistake:
            _leave_status(folder, None, _kind_of(error), words)
        raise _end(f"Rank {rank()} failed: {folder}") from None


def _end(words: str) -> BaseException:
    """What a failed job raises. It ends the sweep of processes that run it together: the others may still be in it."""
    together = is_one_of_several() and HydraConfig.get().mode == RunMode.MULTIRUN
    return SystemExit(1) if together else JobFailed(words)


def _kind_of(error: Exception) -> str:
    from mtl.memory import is_out_of_memory  # loads torch, which a mistake on the command line must not wait for

    return "oom" if is_out_of_memory(error) else "failed"


def _leave_status(folder: Path, before: dict[str, Any] | None, status: str, words: str | None = None) -> None:
    try:
        if before is None:
            write_status(folder, status, words)
        else:
            write_json(folder / "status.json", before)
    except OSError as error:  # a full disk must not hide what went wrong
        log.error("status.json cannot be written (%s)", error)


def _clear_frames(error: BaseException | None) -> None:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _free_memory() -> None:
    gc.collect()  # the model and its graph refer to each other; the next job of a sweep needs their memory
    allocator.give_back()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextmanager
def the_only_one(folder: Path) -> Iterator[None]:
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


def command(hydra_main: Callable[[], None]) -> None:
    """Run a Hydra application; after a sweep, also one with failed jobs, print what came of each job."""
    sys.argv[1:] = expand(sys.argv[1:])
    try:
        with handled(leave), meeting():  # before a job, between two, and while other processes run them
            hydra_main()
    finally:
        composed = HydraConfig.instance().cfg
        if composed is not None and composed.hydra.mode == RunMode.MULTIRUN and rank() == 0:
            table = overview(Path(composed.hydra.sweep.dir))
            print(f"\n{table}\n\nEverything is in {composed.hydra.sweep.dir}" if table else "No job was run.")


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
        if (words := refusal(config, overrides(config.hydra))) is not None:
            sys.exit(words)
        if is_one_of_several():
            _share(config, kind, newest)
            return
        if config.resume == "auto" or config.skip_finished:
            _go_on(config, kind, newest)
        _make_folder(config, kind)
    except Exception as error:  # which Hydra would turn into a warning, and go on
        sys.exit(f"hydra.{kind}.dir cannot be prepared ({type(error).__name__}: {error}).")


def _share(config: DictConfig, kind: str, newest: Callable[[Path, list[str]], Path | None]) -> None:
    """Have all the processes that torchrun has started write into one folder, the first one's; the first one writes."""
    if rank() == 0:
        if config.resume == "auto" or config.skip_finished:
            _go_on(config, kind, newest)
        _make_folder(config, kind)
    folder = from_first(str(config.hydra[kind].dir))
    with read_write(config.hydra):
        config.hydra[kind].dir = folder
        config.hydra.overrides.hydra.append(f"hydra.{kind}.dir={quoted(folder)}")
        if rank():
            config.hydra.output_subdir = None
            config.hydra.job_logging.root.level = "WARNING"
            # A sweep composes each job anew.
            config.hydra.overrides.hydra += ["hydra.output_subdir=null", "hydra.job_logging.root.level=WARNING"]


def _go_on(config: DictConfig, kind: str, newest: Callable[[Path, list[str]], Path | None]) -> None:
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
