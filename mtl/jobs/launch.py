"""The processes of one run: torchrun's own agent starts them, watches them and ends them. Loads torch when it does."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig

from mtl.distributed.ranks import has_several_ranks, rank
from mtl.errors import ConfigError, first_line
from mtl.system.signals import EXIT_CODE, Preempted, StopSignal

log = logging.getLogger(__name__)


class RankFailed(RuntimeError):
    """One of a run's processes failed; its own traceback is in the log."""


@contextmanager
def process_group_of_torchrun() -> Iterator[None]:
    """Meet the other processes that torchrun has started, for as long as the block lasts; nothing for one alone."""
    if not has_several_ranks():
        yield
        return
    from mtl.distributed.collectives import process_group

    with process_group():
        yield


def broadcast_object(value: Any) -> Any:
    """What the first process has."""
    from mtl.distributed.collectives import broadcast_object

    return broadcast_object(value)


def check_devices(devices: int) -> None:
    """ConfigError where torchrun has started another number of processes than ``trainer.devices`` asks for."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if has_several_ranks() and devices not in (1, started):
        raise ConfigError(f"trainer.devices={devices}, but torchrun has started {started} processes: leave it out.")


def launch(cfg: DictConfig, folder: Path, command_line: Sequence[str] | None) -> float | None:
    """Train in ``trainer.devices`` processes on this machine; returns the monitored metric's best value.

    If one fails or is killed the others are ended within half a minute, and RankFailed says which one and why. A
    signal to this process is passed on to them: they save once, and Preempted is raised.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=cfg.trainer.devices, run_id=uuid.uuid4().hex, max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost",
        signals_to_handle="SIGTERM,SIGINT,SIGUSR1",
    )  # fmt: skip
    log.info("%d processes", cfg.trainer.devices)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it has to say is said below
    body = elastic_launch(config, _run_rank)
    try:
        answers = body(cfg, HydraConfig.instance().cfg, folder, command_line and list(command_line))
    except SignalException as error:
        raise KeyboardInterrupt if error.sigval == signal.SIGINT else Preempted from None
    except ChildFailedError as error:
        failed, failure = error.get_first_failure()
        if failure.exitcode == EXIT_CODE:
            raise Preempted from None
        raise _failure_error(f"rank {failed}: {_failure_message(failure)}") from None
    kind, value = answers[0]
    if kind == "mistake":
        raise ConfigError(value)
    if kind == "preempted":
        raise Preempted
    return value


def _failure_message(failure: Any) -> str:
    """What a process that failed has said, or which signal it died of."""
    message = failure.message
    text = message["message"] if isinstance(message, dict) else str(message)
    return first_line(text)


def _failure_error(words: str) -> Exception:
    from mtl.system.memory import OutOfMemory

    return OutOfMemory(words) if OutOfMemory.__name__ in words else RankFailed(words)


def _run_rank(cfg: DictConfig, hydra: Any, folder: Path, command_line: list[str] | None) -> tuple[str, Any]:
    """The body of one process. What is no failure is returned, for the agent takes every exception for one."""
    import torch

    from mtl.train import train

    setup_globals()  # the references to Hydra's own configuration
    HydraConfig.instance().cfg = hydra
    log_rank(folder / "train.log")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["WORLD_SIZE"])))
    try:
        with StopSignal() as stop:
            return "best", train(cfg, folder, stop, command_line)
    except ConfigError as error:
        return "mistake", str(error)
    except Preempted:
        return "preempted", None
    except Exception as error:
        log.exception("%s: %s", type(error).__name__, error)
        raise


def log_rank(file: Path) -> None:
    """Have this process log as the command line does; rank 0 everything, the others what goes wrong."""
    own = f"[rank {rank()}] " if rank() else ""
    console, record = logging.StreamHandler(sys.stderr), logging.FileHandler(file)
    console.setFormatter(logging.Formatter(f"{own}%(message)s"))
    record.setFormatter(logging.Formatter(f"[%(asctime)s][%(name)s][%(levelname)s] {own}%(message)s"))
    logging.basicConfig(level=logging.WARNING if rank() else logging.INFO, handlers=[console, record], force=True)
