"""A search: Optuna proposes settings, Hydra's launcher runs them as the jobs of a sweep, their values go to a study.

The plugin for Optuna that Hydra 1.3 has is of Optuna 2, whose studies today's SQLAlchemy cannot keep. A study here is
kept in a file, ``study.log`` in the sweep's folder, and a search that was killed goes on as if it never had been: the
sampler of a trial follows from ``seed`` and the trial's number alone, and a job that was stopped is resumed.
"""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from mtl.jobs.job import DidNotStart, JobFailed
from mtl.jobs.overrides import config_flags, key_of, without
from mtl.jobs.search_space import Space
from mtl.jobs.study import make_study, open_storage, state
from mtl.runs.files import read_json, write_json
from mtl.runs.terminal import table

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)


@dataclass
class Options:
    """The keys of ``hydra.sweeper``, see conf/hydra/sweeper/mtl_tpe.yaml."""

    n_trials: int
    n_jobs: int
    objectives: Sequence[str]
    directions: Sequence[str]
    storage: str | None
    seed: int
    sampler: Callable[..., Any]  # makes the sampler of one trial, given its seed
    pruner: Any
    params: Any


@dataclass(eq=False)
class Arm:
    """A study, and the overrides that all its trials have."""

    overrides: list[str]
    study: Study

    @property
    def trials(self) -> list[FrozenTrial]:
        """The trials that became jobs."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if "folder" in trial.user_attrs]


def search(config: DictConfig, launcher: Any, options: Options) -> list[JobReturn]:
    """Run the search, the arms in turn, and print what is best; JobFailed at its end if jobs failed."""
    folder = Path(config.hydra.sweep.dir)
    space = Space.of(config.hydra)
    OmegaConf.save(config, folder / "multirun.yaml")
    found = _Search(folder, launcher, space, options)
    keys = [element.lstrip("+").rpartition("@")[2] for element in space.searched]  # head@heads.left is heads.left
    studies = [arm.study.study_name for arm in found.arms]
    write_json(folder / "search.json", {"keys": keys, "storage": options.storage, "studies": studies})
    found.go_on()
    found.run()
    print(f"\n{_overview(found.arms, space, options, config_flags(config.hydra))}")
    failed = [trial.user_attrs["folder"] for arm in found.arms for trial in arm.trials if trial.state.name == "FAIL"]
    if failed:
        raise JobFailed(f"{len(failed)} of {sum(len(arm.trials) for arm in found.arms)} trials failed; see {failed[0]}")
    return found.done


class _Search:
    def __init__(self, folder: Path, launcher: Any, space: Space, options: Options) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self._launcher, self._space, self._options = folder, launcher, space, options
        self.done: list[JobReturn] = []
        self._distributions = space.distributions()
        storage = open_storage(options.storage, folder)
        self.arms = [Arm(arm, make_study(storage, arm, space, options)) for arm in space.arms]

    def go_on(self) -> None:
        """Finish the trials of this folder whose jobs were stopped."""
        for arm in self.arms:
            for trial in arm.study.get_trials(states=(state("RUNNING"),)):
                job = trial.user_attrs.get("folder")
                if job is None:  # stopped before it became a job
                    arm.study.tell(trial.number, state=state("FAIL"))
                elif Path(job).parent == self.folder:
                    self._launch(arm, [trial], int(Path(job).name))

    def run(self) -> None:
        """Give every arm its trials, in turn, so that a search that is stopped has been fair as well."""
        while waiting := [arm for arm in self.arms if len(arm.trials) < self._options.n_trials]:
            for arm in waiting:
                job = self._next_job()
                count = min(self._options.n_jobs, self._options.n_trials - len(arm.trials))
                self._launch(arm, [self._ask(arm, job + index) for index in range(count)], job)

    def _ask(self, arm: Arm, job: int) -> FrozenTrial:
        arm.study.sampler = self._options.sampler(seed=self._options.seed + len(arm.study.get_trials(deepcopy=False)))
        trial = arm.study.ask(self._distributions)
        trial.set_user_attr("folder", str(self.folder / str(job)))
        return arm.study.get_trials(deepcopy=False)[trial.number]

    def _next_job(self) -> int:
        folders = [Path(trial.user_attrs["folder"]) for arm in self.arms for trial in arm.trials]
        return 1 + max((int(folder.name) for folder in folders if folder.parent == self.folder), default=-1)

    def _launch(self, arm: Arm, trials: Sequence[FrozenTrial], first: int) -> None:
        jobs = [self._space.overrides(arm.overrides, trial.params) for trial in trials]
        self.done += self._launcher.launch(jobs, initial_job_idx=first)
        for trial, job in zip(trials, self.done[-len(trials) :], strict=True):
            self._tell(arm, trial, job)

    def _tell(self, arm: Arm, trial: FrozenTrial, job: JobReturn) -> None:
        if job.status == JobStatus.FAILED:
            arm.study.tell(trial.number, state=state("FAIL"))
            if isinstance(job._return_value, DidNotStart):  # a mistake that every trial would make again
                raise job._return_value
            return
        summary = read_json(Path(trial.user_attrs["folder"]) / "summary.json")
        best = summary.get("best", {})
        known = {**best.get("val", {}), best.get("metric"): best.get("monitor")}
        values: list[Any] = [known.get(name) for name in self._options.objectives]
        if summary.get("pruned"):
            arm.study.tell(trial.number, state=state("PRUNED"))
        elif all(value is not None and math.isfinite(value) for value in values):
            arm.study.tell(trial.number, values)
        else:
            log.warning("%s has no value of %s: its trial counts as failed", *trial.user_attrs.values(), values)
            arm.study.tell(trial.number, state=state("FAIL"))


def _overview(arms: Sequence[Arm], space: Space, options: Options, flags: Sequence[str]) -> str:
    """The best trial of each arm, and how to train it again; ``flags`` name the folder of configurations."""
    lines, commands = [], []
    for arm in arms:
        states = [trial.state.name for trial in arm.trials]
        best = arm.study.best_trials if "COMPLETE" in states else []
        cells = [", ".join(f"{value:.4g}" for value in best[0].values), _settings(best[0])] if len(best) == 1 else []
        cells = cells or ["–", f"{len(best)} trials that none beats: see mtl-report"]
        lines.append([arm.study.study_name, len(states), states.count("PRUNED"), states.count("FAIL"), *cells])
        commands += [_again(space, arm, best[0], flags)] if len(best) == 1 else []
    found = table(["arm", "trials", "pruned", "failed", f"best {', '.join(options.objectives)}", "at"], lines)
    if commands:
        found += "\n\nThe best of many trials flatters. With seeds that the search has not seen:"
    return "\n".join([found, *commands])


def _settings(trial: FrozenTrial) -> str:
    return " ".join(f"{key.lstrip('+')}={f'{v:.4g}' if isinstance(v, float) else v}" for key, v in trial.params.items())


def _again(space: Space, arm: Arm, trial: FrozenTrial, flags: Sequence[str]) -> str:
    """The command line that trains the setting of a trial with three other seeds."""
    line = space.overrides(arm.overrides, trial.params)
    seed = next((int(text.partition("=")[2]) for text in line if key_of(text) == "seed"), 0)
    seeds = ",".join(str(seed + 1 + index) for index in range(3))
    return shlex.join(["mtl-train", "-m", *flags, *without(line, ("seed", "resume", "skip_finished")), f"seed={seeds}"])
