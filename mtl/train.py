"""The command mtl-train. torch is imported when a run is built, not before: help and mistakes answer at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from mtl import resume
from mtl.config import CONF, build, check
from mtl.job import command, identify, overrides, run_job
from mtl.launch import check_devices, is_one_of_several, launch


def train(
    cfg: DictConfig,
    folder: Path,
    stop: Callable[[], bool] = lambda: False,
    command_line: Sequence[str] | None = None,
) -> float | None:
    """Train what ``cfg`` describes, record it in ``folder``, and return the monitored metric's best value.

    With ``trainer.devices`` above 1 it starts that many processes, each of which does the same with a part of the data.
    Callable without Hydra's command line: ``train(mtl.config.load(["seed=1"]), Path("here"))``. After each step
    ``stop`` is asked whether to save and end (mtl.signals); ``command_line`` is kept with the configuration. Raises
    ConfigError (a ValueError), before anything is trained, for every mistake in the configuration.
    """
    check(cfg)
    check_devices(cfg.trainer.devices)
    if cfg.trainer.devices > 1 and not is_one_of_several():
        return launch(cfg, folder, command_line)
    from mtl.distributed import joined

    with joined():
        return _train(cfg, folder, stop, command_line)


def _train(cfg: DictConfig, folder: Path, stop: Callable[[], bool], command_line: Sequence[str] | None) -> float | None:
    found = resume.find(cfg, folder)
    parts, state = build(cfg)
    from mtl.loop import fit, summarise
    from mtl.memory import explained
    from mtl.tracking import tracker_of

    resume.take_up(state, found, folder)
    config = resume.recorded(cfg, found)
    resume.save_config(folder, config, command_line)
    with tracker_of(folder, cfg.tracker, config, resume.wandb_id(cfg, found)) as tracker, explained(state):
        test = fit(state, parts, cfg, tracker, stop)
        tracker.summarise(summarise(state, test, folder))
    tracker.show()
    return state.best


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(cfg: DictConfig) -> float | None:
    return run_job(lambda cfg, folder, stop: train(identify(cfg), folder, stop, overrides()), cfg)


def main() -> None:
    """The command line: Hydra composes the configuration, one job or a sweep of them runs it."""
    command(_job)


if __name__ == "__main__":
    main()
