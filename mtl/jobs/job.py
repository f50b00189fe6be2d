"""A Hydra job, alone or one of a sweep: how it ended, and what a person is told when it fails."""

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
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mtl.distributed.ranks import has_several_ranks, rank
from mtl.errors import ConfigError
from mtl.jobs.folder import folder_lock
from mtl.jobs.launch import RankFailed, process_group_of_torchrun
from mtl.jobs.overrides import expand_resume
from mtl.jobs.resume import is_finished
from mtl.report import best_value, overview, read_status
from mtl.runs.files import write_json, write_status
from mtl.system import allocator
from mtl.system.signals import Preempted, StopSignal, exit_process, signal_handlers

log = logging.getLogger(__name__)


class JobFailed(CompactHydraException):
    """A job ended by an error that is in its log. Hydra prints this one without a traceback."""


def run_job(body: Callable[[DictConfig, Path, StopSignal], Any], cfg: DictConfig) -> Any:
    """Run ``body(cfg, folder, stop)`` in Hydra's output folder, and leave there how it ended: status.json and the log.

    A user's mistake is logged in one line, any other error with its traceback; a mistake leaves the status of a run
    that is already there as it was. What is raised then refers to nothing: Hydra keeps every failed job's exception to
    the end of a sweep, with all that its frames hold. With ``skip_finished`` a run that is finished is left alone.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    if rank():
        return _run_other_rank(body, cfg, folder)
    before: dict[str, Any] | None = None
    stop, ours = StopSignal(), False  # the folder, once it is locked
    try:
        with folder_lock(folder), stop:
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
        if ours and not (has_several_ranks() and (read_status(folder) or {}).get("status") in ("failed", "oom")):
            _write_final_status(folder, before if mistake else None, "failed" if mistake else _kind_of(error), words)
        told = mistake or isinstance(error, RankFailed)
        log.error("%s", words, exc_info=not told or bool(os.environ.get("HYDRA_FULL_ERROR")))
        _clear_frames(error)
        raise _end(f"The run did not start: {folder}" if mistake else f"The run failed: {folder}") from None
    except Preempted:
        _write_final_status(folder, None, "preempted")
        raise
    except BaseException as error:
        _write_final_status(folder, None, "failed", type(error).__name__)
        raise
    finally:
        _free_memory()
    if stop() and HydraConfig.get().mode == RunMode.MULTIRUN:  # too late for this run, but no other must begin
        raise Preempted
    return value


def _run_other_rank(body: Callable[[DictConfig, Path, StopSignal], Any], cfg: DictConfig, folder: Path) -> Any:
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
            _write_final_status(folder, None, _kind_of(error), words)
        raise _end(f"Rank {rank()} failed: {folder}") from None


def _end(words: str) -> BaseException:
    """What a failed job raises. It ends the sweep of processes that run it together: the others may still be in it."""
    together = has_several_ranks() and HydraConfig.get().mode == RunMode.MULTIRUN
    return SystemExit(1) if together else JobFailed(words)


def _kind_of(error: Exception) -> str:
    from mtl.system.memory import is_out_of_memory  # loads torch, which a mistake on the command line must not wait for

    return "oom" if is_out_of_memory(error) else "failed"


def _write_final_status(folder: Path, before: dict[str, Any] | None, status: str, words: str | None = None) -> None:
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
    allocator.trim_heap()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def command(hydra_main: Callable[[], None]) -> None:
    """Run a Hydra application; after a sweep, also one with failed jobs, print what came of each job."""
    sys.argv[1:] = expand_resume(sys.argv[1:])
    try:
        with (
            signal_handlers(exit_process),
            process_group_of_torchrun(),
        ):  # before a job, between two, and while other processes run them
            hydra_main()
    finally:
        composed = HydraConfig.instance().cfg
        if composed is not None and composed.hydra.mode == RunMode.MULTIRUN and rank() == 0:
            table = overview(Path(composed.hydra.sweep.dir))
            print(f"\n{table}\n\nEverything is in {composed.hydra.sweep.dir}" if table else "No job was run.")
