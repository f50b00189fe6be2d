"""The processes of a run with ``trainer.devices`` above 1: torchrun's agent starts, watches and ends them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig

from mtl.distributed.ranks import has_several_ranks, rank, world_size
from mtl.errors import ConfigError, first_line
from mtl.system.signals import EXIT_CODE, Preempted, StopSignal

log = logging.getLogger(__name__)

Train = Callable[[DictConfig, Path, StopSignal, Sequence[str] | None], float | None]  # mtl.train.train


class RankFailed(RuntimeError):
    """A rank failed; its traceback is in the log."""


def check_devices(devices: int) -> None:
    """ConfigError if torchrun has started another number of processes than ``trainer.devices``."""
    started = world_size()
    if has_several_ranks() and devices not in (1, started):
        raise ConfigError(f"trainer.devices={devices}, but torchrun has started {started} processes: leave it out.")


def launch(train: Train, cfg: DictConfig, folder: Path, arguments: Sequence[str] | None) -> float | None:
    """Call ``train`` in ``trainer.devices`` processes on this machine; returns the monitored metric's best value.

    If a rank fails or is killed, the others are ended within half a minute, and RankFailed names the rank and the
    cause. A signal to this process is forwarded to the ranks: they save one checkpoint, and Preempted is raised.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=cfg.trainer.devices, run_id=uuid.uuid4().hex, max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost",
        signals_to_handle="SIGTERM,SIGINT,SIGUSR1",
    )  # fmt: skip
    log.info("starting %d processes", cfg.trainer.devices)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its messages are repeated below
    agent = elastic_launch(config, _run_rank)
    try:
        results = agent(train, cfg, HydraConfig.instance().cfg, folder, arguments and list(arguments))
    except SignalException as error:
        raise KeyboardInterrupt if error.sigval == signal.SIGINT else Preempted from None
    except ChildFailedError as error:
        failed, failure = error.get_first_failure()
        if failure.exitcode == EXIT_CODE:
            raise Preempted from None
        raise _failure_error(f"rank {failed}: {_failure_message(failure)}") from None
    outcome, value = results[0]
    if outcome == "mistake":
        raise ConfigError(value)
    if outcome == "preempted":
        raise Preempted
    return value


def _failure_message(failure: Any) -> str:
    """The first line of a failed rank's error, or the signal that killed it."""
    message = failure.message
    text = message["message"] if isinstance(message, dict) else str(message)
    return first_line(text)


def _failure_error(message: str) -> Exception:
    from mtl.system.memory import OutOfMemory

    return OutOfMemory(message) if OutOfMemory.__name__ in message else RankFailed(message)


def _run_rank(train: Train, cfg: DictConfig, hydra: Any, folder: Path, arguments: list[str] | None) -> tuple[str, Any]:
    """Train as one rank; returns the outcome and its value.

    A mistake and a preemption are returned and not raised: the agent takes every exception for a failed rank.
    """
    import torch

    setup_globals()  # Hydra's resolvers, such as ${hydra:…}
    HydraConfig.instance().cfg = hydra
    _configure_logging(folder / "train.log")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size()))
    try:
        with StopSignal() as stop:
            return "best", train(cfg, folder, stop, arguments)
    except ConfigError as error:
        return "mistake", str(error)
    except Preempted:
        return "preempted", None
    except Exception as error:
        log.exception("%s: %s", type(error).__name__, error)
        raise


def _configure_logging(file: Path) -> None:
    """Log as the command line does, to stderr and ``file``; ranks other than 0 log only warnings and errors."""
    prefix = f"[rank {rank()}] " if rank() else ""
    console, record = logging.StreamHandler(sys.stderr), logging.FileHandler(file)
    console.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    record.setFormatter(logging.Formatter(f"[%(asctime)s][%(name)s][%(levelname)s] {prefix}%(message)s"))
    logging.basicConfig(level=logging.WARNING if rank() else logging.INFO, handlers=[console, record], force=True)
