"""A Hydra job, alone or in a sweep: its status, its errors, and the message that the user sees."""

from __future__ import annotations

import gc
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mtl.distributed.ranks import has_several_ranks, process_group, rank
from mtl.errors import ConfigError, RunError, first_line
from mtl.jobs.composition import composition_errors, wants_tracebacks
from mtl.jobs.folder import folder_lock, remove_untrained
from mtl.jobs.launch import RankFailed
from mtl.jobs.overrides import TAGGED, command_line, config_folder, expand_resume, flags_first
from mtl.jobs.resume import is_finished
from mtl.runs.files import read_json, read_status, write_json, write_status
from mtl.runs.targets import find_own_code
from mtl.runs.terminal import overview
from mtl.system import allocator
from mtl.system.signals import Preempted, StopSignal, exit_process, signal_handlers

log = logging.getLogger(__name__)

Body = Callable[[DictConfig, Path, StopSignal], Any]  # of a job: body(cfg, folder, stop)


class JobFailed(CompactHydraException):
    """A job failed, and its error is in its log. Hydra prints an exception of this kind without a traceback."""


class DidNotStart(JobFailed):
    """A job failed for a mistake in its configuration."""


def run_job(body: Body, cfg: DictConfig) -> Any:
    """Run ``body(cfg, folder, stop)`` in Hydra's output folder, and record its log and its status there.

    A user's mistake is logged in one line, any other error with its traceback; both are raised as JobFailed. A mistake
    in a single run ends the process instead, and leaves no folder. With ``skip_finished`` a finished run is not run
    again. The frames of an error are cleared: Hydra keeps the exception of every failed job until the end of a sweep,
    and the frames would keep the job's model in memory.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    find_own_code(config_folder(command_line()))
    stop = StopSignal()
    if rank():
        with stop:
            return _run_other_rank(body, cfg, folder, stop)
    try:
        with folder_lock(folder), stop, _recorded_status(folder):
            value = _run_or_skip(body, cfg, folder, stop)
    except Exception as error:
        mistake = _is_mistake(error)
        expected = mistake or isinstance(error, RankFailed | RunError)
        log.error("%s", _message(error), exc_info=not expected or wants_tracebacks())
        _clear_frames(error)
        if mistake and HydraConfig.get().mode == RunMode.RUN:
            remove_untrained(folder)
            sys.exit(1)
        raise (
            _job_failed(f"The run did not start: {folder}", DidNotStart)
            if mistake
            else _job_failed(f"The run failed: {folder}")
        ) from None
    finally:
        _free_memory()
    if stop() and HydraConfig.get().mode == RunMode.MULTIRUN:  # too late to stop this run, but no other one must start
        raise Preempted
    return value


def _run_other_rank(body: Body, cfg: DictConfig, folder: Path, stop: StopSignal) -> Any:
    """Run the job on a rank of torchrun other than 0, which keeps the folder and the status.

    If this rank fails first, it writes the status: the other ranks will only find that it is gone.
    """
    try:
        if cfg.skip_finished and is_finished(cfg, folder):
            return _best_value(folder)
        return body(cfg, folder, stop)
    except Exception as error:
        message = f"rank {rank()}: {_message(error)}"
        log.error("%s", message, exc_info=not _is_mistake(error))
        if not _is_mistake(error):
            _write_final_status(folder, _failure_status(error), message)
        raise _job_failed(f"Rank {rank()} failed: {folder}") from None


def _run_or_skip(body: Body, cfg: DictConfig, folder: Path, stop: StopSignal) -> Any:
    if cfg.skip_finished and is_finished(cfg, folder):
        log.info("%s is finished, and skipped", folder)
        return _best_value(folder)
    write_status(folder, "running")
    log.info("building %s", _choices())
    value = body(cfg, folder, stop)
    write_status(folder, "finished")
    return value


def _choices() -> str:
    """The options that name a run, as ``data=digits, backbone=tiny_resnet, …``."""
    choices = HydraConfig.get().runtime.choices
    named = {group: choices.get(group) for group in TAGGED}
    return ", ".join(f"{group}={option}" for group, option in named.items() if option is not None)


@contextmanager
def _recorded_status(folder: Path) -> Iterator[None]:
    """Write the status of a job that ends with an error. After a user's mistake an earlier run keeps its status."""
    before = read_status(folder)
    try:
        yield
    except Exception as error:
        written_by_other_rank = has_several_ranks() and read_status(folder).get("status") in ("failed", "oom")
        if not written_by_other_rank:
            mistake = _is_mistake(error)
            status = "failed" if mistake else _failure_status(error)
            _write_final_status(folder, status, _message(error), before if mistake else None)
        raise
    except Preempted:
        _write_final_status(folder, "preempted")
        raise
    except BaseException as error:
        _write_final_status(folder, "failed", type(error).__name__)
        raise


def _write_final_status(
    folder: Path, status: str, message: str | None = None, before: dict[str, Any] | None = None
) -> None:
    try:
        if before:
            write_json(folder / "status.json", before)
        else:
            write_status(folder, status, message)
    except OSError as error:  # a full disk must not hide the job's own error
        log.error("status.json cannot be written (%s)", error)


def _is_mistake(error: Exception) -> bool:
    """Whether an error is a mistake in the configuration, and no failure of a run."""
    return isinstance(error, ConfigError | OmegaConfBaseException)


def _message(error: Exception) -> str:
    if isinstance(error, RunError) and not wants_tracebacks():
        return first_line(error)
    return str(error) if _is_mistake(error) else f"{type(error).__name__}: {error}"


def _failure_status(error: Exception) -> str:
    from mtl.system.memory import is_out_of_memory  # loads torch, which a mistake on the command line must not wait for

    return "oom" if is_out_of_memory(error) else "failed"


def _job_failed(message: str, kind: type[JobFailed] = JobFailed) -> BaseException:
    """The exception of a failed job. In a sweep on several ranks it ends the sweep: other ranks may be in the job."""
    together = has_several_ranks() and HydraConfig.get().mode == RunMode.MULTIRUN
    return SystemExit(1) if together else kind(message)


def _best_value(folder: Path) -> float | None:
    """The monitored metric's best value in a finished run."""
    return read_json(folder / "summary.json").get("best", {}).get("monitor")


def _clear_frames(error: BaseException | None) -> None:
    """Release the local variables in the tracebacks of an error and of its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _free_memory() -> None:
    gc.collect()  # the model and its graph refer to each other, and the next job of a sweep needs their memory
    allocator.trim_heap()
    torch = sys.modules.get("torch")
    for gpu in () if torch is None else (torch.cuda, torch.xpu):
        if gpu.is_initialized():
            gpu.empty_cache()
            gpu.reset_peak_memory_stats()


def command(hydra_main: Callable[[], None]) -> None:
    """Run a Hydra application; after a sweep, also one with failed jobs, print a table of its jobs."""
    sys.argv[1:] = flags_first(expand_resume(sys.argv[1:]))
    find_own_code(config_folder(sys.argv[1:]))
    try:
        # The handlers hold between jobs, and while other processes run them; a job sets its own.
        with signal_handlers(exit_process), process_group(), composition_errors(sys.argv[1:]):
            hydra_main()
    finally:
        composed = HydraConfig.instance().cfg
        if composed is not None and composed.hydra.mode == RunMode.MULTIRUN and rank() == 0:
            table = overview(Path(composed.hydra.sweep.dir))
            print(f"\n{table}\n\nEverything is in {composed.hydra.sweep.dir}" if table else "No job was run.")
