"""The command mtl-train. torch is imported when a run is built, not before: help and mistakes answer at once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from mtl.config import CONF, build, check
from mtl.job import command, identify, run_job


def train(cfg: DictConfig, folder: Path) -> float | None:
    """Train what ``cfg`` describes, record it in ``folder``, and return the monitored metric's best value.

    Callable without Hydra's command line: ``train(mtl.config.load(["seed=1"]), Path("here"))``. Raises ConfigError
    (a ValueError), before anything is trained, for every mistake in the configuration.
    """
    check(cfg)
    parts, state = build(cfg)
    from mtl.checkpoint import carry_over
    from mtl.loop import fit, summarise
    from mtl.report import closing_words, draw_run
    from mtl.tracking import Tracker

    folder.mkdir(parents=True, exist_ok=True)
    if cfg.trainer.fast_dev_run:
        cfg.tracker.mode = "disabled"
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    if cfg.resume is not None:
        carry_over(Path(cfg.resume), folder)
    start = time.perf_counter()
    with Tracker(folder, cfg.tracker, config) as tracker:
        test = fit(state, parts, cfg, tracker)
        tracker.summarise(summarise(state, test, folder, time.perf_counter() - start))
    draw_run(folder)
    print(closing_words(folder))
    return state.best


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(cfg: DictConfig) -> float | None:
    return run_job(lambda cfg, folder: train(identify(cfg), folder), cfg)


def main() -> None:
    """The command line: Hydra composes the configuration, one job or a sweep of them runs it."""
    command(_job)


if __name__ == "__main__":
    main()
