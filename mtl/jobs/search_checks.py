"""Mistakes of a search, told before its folder is made and before any run."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, read_write

from mtl.distributed.ranks import has_several_ranks
from mtl.errors import ConfigError, first_line, suggestion
from mtl.jobs.composition import compose_job
from mtl.jobs.search_space import Space


def check_search(config: DictConfig, folder: Path | None) -> None:
    """ConfigError for a mistake in a search; fills in ``hydra.sweeper.directions``. ``folder`` is the one of ``-cd``.

    The first setting of each arm is built, so that an objective that the run lacks is told here.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "hydra/sweeper: a search needs Optuna, which is not installed; pip install 'mtl-torch[optuna]'."
        )
    sweeper = config.hydra.sweeper
    _check_options(sweeper, str(OmegaConf.select(config, "hydra.launcher._target_")))
    space = Space.of(config.hydra)
    space.distributions()
    space.check_numbers(compose_job(space.overrides(space.arms[0], {}), folder))
    found = [_objectives(compose_job(space.overrides(arm, space.first()), folder), sweeper) for arm in space.arms]
    for objectives, arm in zip(found, space.arms, strict=True):
        if objectives != found[0]:
            raise ConfigError(
                f"{' '.join(arm)} has the objectives {_words(objectives)}, and {' '.join(space.arms[0])} has "
                f"{_words(found[0])}: arms that are compared have the same."
            )
    if len(found[0]) > 1 and sweeper.pruner is not None:
        raise ConfigError(f"hydra.sweeper.pruner: a search for {_words(found[0])} cannot prune; use pruner=null.")
    with read_write(config.hydra):
        sweeper.objectives, sweeper.directions = list(found[0]), list(found[0].values())


def _check_options(sweeper: DictConfig, launcher: str) -> None:
    for key in ("n_trials", "n_jobs"):
        if not isinstance(sweeper[key], int) or sweeper[key] < 1:
            raise ConfigError(f"hydra.sweeper.{key}={sweeper[key]} must be a whole number of 1 or more.")
    if sweeper.n_jobs > 1 and launcher.endswith(".BasicLauncher"):
        raise ConfigError(
            f"hydra.sweeper.n_jobs={sweeper.n_jobs}: the basic launcher runs one job at a time; add "
            "hydra/launcher=joblib."
        )
    if has_several_ranks():
        raise ConfigError("A search under torchrun would be one search a rank: start it alone, with trainer.devices=….")
    _check_component("sampler", sweeper.sampler)
    if sweeper.pruner is not None:
        _check_component("pruner", sweeper.pruner)


def _check_component(name: str, node: Any) -> None:
    """ConfigError for a sampler or a pruner that cannot be made; a sampler is made anew for each trial."""
    from mtl.config.instantiate import make

    key = f"hydra.sweeper.{name}"
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ConfigError(f"{key}={node} must be a mapping with the _target_ of a class of optuna.{name}s.")
    made = make(key, node)
    if name == "sampler" and not callable(made):
        raise ConfigError(f"{key} must have _partial_: true: it is given a seed for each trial.")
    try:
        made(seed=0) if name == "sampler" else made
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {first_line(error)}.") from error


def _objectives(config: DictConfig, sweeper: DictConfig) -> dict[str, str]:
    """The objectives of a search with their directions, ``minimize`` or ``maximize``."""
    from mtl.config.build import build
    from mtl.config.table_heads import take_targets
    from mtl.training.monitor import directions

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the runs will say the same again
    try:
        data = take_targets(config)
        _, state = build(config, data=data)
    finally:
        logging.disable(before)
    known = directions(state.tasks) | {state.monitor.name: state.monitor.mode}
    asked = sweeper.objectives
    if asked is None:
        asked = [state.monitor.name]
    elif asked == "tasks":
        asked = [_first_metric(task.name, known) for task in state.tasks]
    elif isinstance(asked, str):
        asked = [asked]
    for name in asked:
        if known.get(name) is None:
            names = [name for name, mode in known.items() if mode is not None]
            raise ConfigError(f"hydra.sweeper.objectives: {name} is no metric of the val split that says whether "
                              f"higher is better; {suggestion(name, names)}.")  # fmt: skip
    return {name: f"{known[name]}imize" for name in asked}


def _first_metric(task: str, known: Mapping[str, str | None]) -> str:
    own = [name for name, mode in known.items() if name.startswith(f"{task}/") and mode is not None]
    return (own or [f"loss/{task}"])[0]


def _words(objectives: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({direction})" for name, direction in objectives.items())
