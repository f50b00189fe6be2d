"""Searches among the runs: the keys that they searched, what they spent, and what their studies say of the keys."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl.report.runs import Run
from mtl.runs.files import read_json

if TYPE_CHECKING:
    from optuna import Study

FEW = 10  # completed trials below which importances are noise
MISSING = "What a search's keys matter needs Optuna: pip install 'mtl-torch[optuna]'."


@dataclass
class Budget:
    """What a row's selection has cost: its runs, pruned and failed ones included, and their optimizer steps."""

    trials: int
    planned: int  # steps of a run that goes to its end
    steps: int  # of all runs together

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Budget:
        """The budget of all runs among which a row was selected."""
        whole = [_steps(run) for run in runs if run.finished] or [_planned(run) for run in runs]
        return cls(len(runs), max(whole), sum(map(_steps, runs)))

    @property
    def offered(self) -> tuple[int, int]:
        """Trials and their planned steps: what must be the same for a fair comparison."""
        return self.trials, self.planned

    def __str__(self) -> str:
        pruned = f" ({self.steps:,} steps)" if self.steps != self.trials * self.planned else ""
        return f"{self.trials} × {self.planned}{pruned}"


def _steps(run: Run) -> int:
    """The steps of a run; of one without a summary, up to its last metric."""
    last = max((int(steps[-1]) for steps, _ in run.series.values() if len(steps)), default=0)
    return int(run.summary.get("steps") or last)


def _planned(run: Run) -> int:
    """The steps that a run which was pruned or failed would have gone, as far as its configuration says."""
    limit = (run.config.get("trainer") or {}).get("max_steps")
    return limit if isinstance(limit, int) else _steps(run)


def searched_keys(runs: Sequence[Run]) -> list[str]:
    """The keys that the searches of these runs have searched."""
    return list(dict.fromkeys(key for folder in _folders(runs) for key in read_json(folder / "search.json")["keys"]))


def _folders(runs: Sequence[Run]) -> list[Path]:
    parents = dict.fromkeys(run.folder.parent for run in runs)
    return [folder for folder in parents if "keys" in read_json(folder / "search.json")]


def is_trial(run: Run) -> bool:
    """Whether the run is a trial of a search, by whose value its setting may have been selected."""
    return "keys" in read_json(run.folder.parent / "search.json")


@dataclass
class Searched:
    """An objective of one arm's study: how its trials ended, and how much of its variance each key explains."""

    arm: str
    objective: str
    ends: dict[str, int]  # COMPLETE, PRUNED, FAIL, RUNNING → trials
    importances: dict[str, float] = field(default_factory=dict)
    front: list[tuple[list[float], dict[str, Any]]] = field(default_factory=list)  # values and settings, of several

    @property
    def few(self) -> bool:
        """Whether the importances are of too few trials to mean anything."""
        return self.ends.get("COMPLETE", 0) < FEW


def searches(runs: Sequence[Run], notes: list[str]) -> list[Searched]:
    """Every study of these runs' searches, an entry an objective; without Optuna none, and a note."""
    folders = _folders(runs)
    if folders and find_spec("optuna") is None:
        notes.append(MISSING)
        return []
    studies: dict[Any, tuple[str, Study]] = {}
    for folder in folders:
        for study in _studies(folder, notes):
            storage = read_json(folder / "search.json")["storage"] or folder  # two searches may go on in one study
            prefix = f"{folder.name}: " if len(folders) > 1 else ""
            studies.setdefault((storage, study.study_name), (prefix, study))
    return [found for prefix, study in studies.values() for found in _searched(study, prefix)]


def _studies(folder: Path, notes: list[str]) -> Iterator[Study]:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    stored = read_json(folder / "search.json")
    storage = stored["storage"] or str(folder / "study.log")
    try:
        if "://" not in storage and not Path(storage).is_file():
            raise FileNotFoundError(f"there is no {storage}")
        opened = storage if "://" in storage else optuna.storages.JournalStorage(JournalFileBackend(storage))
        for name in stored["studies"]:
            yield optuna.load_study(study_name=name, storage=opened)
    except Exception as error:  # a database has errors of its own
        notes.append(f"{folder.name}: its study cannot be read ({str(error).splitlines()[0]}).")


def _searched(study: Study, prefix: str) -> Iterator[Searched]:
    names = study.user_attrs["search"]["objectives"]
    states = [trial.state.name for trial in study.trials if "folder" in trial.user_attrs]
    ends: dict[str, int] = dict(Counter(states))
    several = len(names) > 1 and "COMPLETE" in ends
    front = [(list(trial.values), trial.params) for trial in study.best_trials] if several else []
    for index, name in enumerate(names):
        yield Searched(prefix + study.study_name, name, ends, _importances(study, index), front)


def _importances(study: Study, objective: int) -> dict[str, float]:
    """By functional ANOVA (Hutter et al. 2014), over the completed trials; none of a single key, which has all."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    done = study.get_trials(states=(TrialState.COMPLETE,))
    values = [trial.values[objective] for trial in done]
    if len(set(values)) < 2 or len(done[0].params) < 2:
        return {}
    evaluator = FanovaImportanceEvaluator(seed=0)
    found = get_param_importances(study, evaluator=evaluator, target=lambda trial: trial.values[objective])
    return {key.lstrip("+"): value for key, value in found.items() if math.isfinite(value)}


def settings(params: dict[str, Any]) -> str:
    """A trial's settings in words."""
    return " ".join(f"{key.lstrip('+')}={f'{v:.4g}' if isinstance(v, float) else v}" for key, v in params.items())


def as_json(found: Searched) -> dict[str, Any]:
    """One entry of results.json."""
    return json.loads(json.dumps(found, default=vars))
