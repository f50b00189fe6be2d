"""The studies of a search: where they are kept, what makes two searches one study, and the trial that a job is."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mtl.config.schema import keys_that_are
from mtl.distributed.ranks import rank
from mtl.errors import ConfigError, first_line
from mtl.jobs.overrides import without
from mtl.jobs.search_space import Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

SWEEPER = "hydra_plugins.mtl_search.Search"
FILE = "study.log"  # the default storage, in the sweep's folder
# What two searches may differ in and be one study.
FREE = tuple(key for key in keys_that_are("irrelevant") if key != "seed")

Prune = Callable[[int, float], bool]  # told an evaluation's step and value: does the run end here?


def is_search(hydra: Any) -> bool:
    """Whether the Hydra configuration is that of a search."""
    return OmegaConf.select(hydra, "sweeper._target_") == SWEEPER


def state(name: str) -> Any:
    """Optuna's state of a trial by its name."""
    from optuna.trial import TrialState

    return TrialState[name]


def open_storage(storage: str | None, folder: Path) -> BaseStorage:
    """The storage of a search in ``folder``; ConfigError for a file or a database that is none."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    try:
        if storage is not None and "://" in storage:
            return optuna.storages.get_storage(storage)
        file = Path(storage or folder / FILE)
        with contextlib.suppress(FileNotFoundError), file.open() as lines:
            json.loads(lines.readline() or "{}")  # Optuna forgives a broken last line, and so takes a line of any text
        return optuna.storages.JournalStorage(JournalFileBackend(str(file)))
    except Exception as error:
        raise ConfigError(
            f"hydra.sweeper.storage={storage} cannot be opened ({first_line(error)}): give a file that Optuna has "
            "written or that is not there yet, or the URL of a database."
        ) from error


def check_storage(config: DictConfig) -> None:
    """ConfigError where the storage has a study of another search, or the folder a search that is not gone on with."""
    folder, storage = Path(config.hydra.sweep.dir), config.hydra.sweeper.storage
    if (folder / FILE).is_file() and config.resume != "auto" and not config.skip_finished:
        raise ConfigError(
            f"{folder} already holds a search: skip_finished=true goes on with it; or choose another folder with "
            "hydra.sweep.dir."
        )
    file = Path(storage or folder / FILE)
    if "://" not in str(storage) and not (file.is_file() and file.stat().st_size):
        if not os.access(file.parent, os.W_OK) and storage is not None:
            raise ConfigError(f"hydra.sweeper.storage={storage}: its folder {file.parent} cannot be written.")
        return
    found, space = open_storage(storage, folder), Space.of(config.hydra)
    for arm in space.arms:
        _existing(found, arm, space, config.hydra.sweeper)


def make_study(storage: BaseStorage, arm: Sequence[str], space: Space, options: Any) -> Study:
    """The arm's study in the storage, a new one if there is none; ``options``: the keys of ``hydra.sweeper``."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _existing(storage, arm, space, options)
    if study is None:
        study = optuna.create_study(study_name=_name(arm), storage=storage, directions=list(options.directions))
        study.set_user_attr("search", _description(space, options.objectives))
    study.pruner = options.pruner or optuna.pruners.NopPruner()
    return study


def _name(arm: Sequence[str]) -> str:
    return " ".join(arm) or "search"


def _existing(storage: BaseStorage, arm: Sequence[str], space: Space, options: Any) -> Study | None:
    """The arm's study in the storage, None if there is none; ConfigError if it is of another search."""
    import optuna

    if _name(arm) not in optuna.get_all_study_names(storage):
        return None
    study = optuna.load_study(study_name=_name(arm), storage=storage)
    was, now = study.user_attrs.get("search") or {}, _description(space, options.objectives)
    changes = [
        f"{part} {_words(was.get(part))} there and {_words(now[part])} here"
        for part in now
        if was.get(part) != now[part]
    ]
    if not changes and [direction.name.lower() for direction in study.directions] != [*options.directions]:
        changes = ["the objectives have other directions"]
    if changes:
        raise ConfigError(
            f"hydra.sweeper.storage={options.storage or FILE} holds the study {_name(arm)!r} of another search "
            f"({'; '.join(changes)}): give another storage."
        )
    return study


def _description(space: Space, objectives: Sequence[str]) -> dict[str, Any]:
    """What the trials of one study have in common: beside the arm, all that decides what a value means."""
    searched = [text.input_line for text in space.searched.values()]
    return {
        "overrides": sorted(without(space.fixed, FREE)),
        "searched keys": sorted(searched),
        "objectives": [*objectives],
    }


def _words(values: Sequence[str] | None) -> str:
    return f"are {', '.join(values)}" if values else "are none"


def pruning() -> Prune:
    """The question whether to prune, for the job that runs here; never, where it is no trial of a search that prunes.

    Only rank 0 of a job asks. A job that is resumed by itself is no trial any more, and runs to its end.
    """
    never: Prune = lambda step, value: False  # noqa: E731
    if not HydraConfig.initialized() or rank():
        return never
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN or not is_search(hydra) or hydra.sweeper.pruner is None:
        return never
    import optuna

    from mtl.config.instantiate import make

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(hydra.sweeper.storage, Path(hydra.sweep.dir))
    pruner = make("hydra.sweeper.pruner", hydra.sweeper.pruner)
    own = str(Path(hydra.sweep.dir) / str(hydra.job.num))
    for name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
        for found in study.get_trials(states=(state("RUNNING"),)):
            if found.user_attrs.get("folder") == own:
                return _prune_of(optuna.trial.Trial(study, found._trial_id), found.intermediate_values)
    return never


def _prune_of(trial: Any, reported: Mapping[int, float]) -> Prune:
    def prune(step: int, value: float) -> bool:
        if step not in reported:  # a resumed job may evaluate a step again
            trial.report(value, step)
        return bool(trial.should_prune())

    return prune
