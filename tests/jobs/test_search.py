"""Searches with real processes: what Optuna keeps is what the runs recorded, killed and failing ones included."""

import json
import signal
from statistics import median

import optuna
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from support.processes import Training, until
from support.runs import SHORT

from mtl.config import CONF
from mtl.data.table import make_fixture
from mtl.errors import ConfigError
from mtl.jobs.search_checks import check_search
from mtl.jobs.search_space import Space
from mtl.jobs.study import check_storage
from mtl.runs.files import read_json, read_metrics

PLAIN = [*SHORT, "+backbone._target_=support.runs.Plain", "trainer.examples=0"]
RATE = "optimizer.lr=tag(log,interval(1e-3,1e-1))"
TPE = ["-m", *PLAIN, "hydra/sweeper=mtl_tpe", "hydra.sweep.dir=sweep", "hydra.sweeper.sampler.n_startup_trials=2",
       "hydra.sweeper.pruner.n_startup_trials=1"]  # fmt: skip


def studies(folder):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "study.log")))
    return {name: optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)}


def trials(folder):
    return {
        name: [(t.number, t.state.name, t.params, t.values, t.user_attrs) for t in study.trials]
        for name, study in studies(folder).items()
    }


def composed(*line, **sweeper):
    """The configuration of a search, as CheckFolder gets it; within a Hydra application."""
    config = compose("config", overrides=["hydra/sweeper=mtl_tpe"], return_hydra_config=True)
    with open_dict(config):
        config.hydra.sweeper = OmegaConf.merge(config.hydra.sweeper, sweeper)
        config.hydra.overrides.task = list(line)
        config.hydra.sweep.dir = "sweep"
    return config


@pytest.fixture
def application():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


# --------------------------------------------------------------------------------------------- what is searched


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        (RATE, FloatDistribution(1e-3, 1e-1, log=True)),
        ("optimizer.lr=interval(0,1)", FloatDistribution(0, 1)),
        ("data.batch_size=int(interval(8,64))", IntDistribution(8, 64)),
        ("data.batch_size=tag(log,int(interval(8,64)))", IntDistribution(8, 64, log=True)),
        ("data.batch_size=range(8,65,8)", IntDistribution(8, 64, step=8)),
        ("optimizer.lr=range(0.5,2,0.5)", FloatDistribution(0.5, 1.5, step=0.5)),
        ("head@heads.left=choice(mlp,linear)", CategoricalDistribution(["mlp", "linear"])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_sweep_is_a_distribution(application, sweep, expected):
    space = Space.parse(["seed=3", sweep])
    assert [*space.distributions().values()] == [expected] and space.fixed == ["seed=3"] and space.arms == [[]]


def test_comma_lists_make_arms_and_the_rest_is_searched(application):
    space = Space.parse(["strategy=naive,mgda", "weighting=glob(u*)", "+a=choice(x,y)", "seed=1"])
    assert space.arms == [
        [f"strategy={strategy}", f"weighting={weighting}"]
        for strategy in ("naive", "mgda")
        for weighting in ("uw", "uw_so")
    ]
    assert space.overrides(space.arms[0], {"+a": "y"}) == ["seed=1", "strategy=naive", "weighting=uw", "+a=y"]


# --------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("line", "sweeper", "words"),
    [
        (["strategy=naive,mgda"], {}, "A search needs a key to search, as 'optimizer.lr=tag(log"),
        (["seed=0,1", RATE], {}, "seed=0,1: a search trains each setting once"),
        (["strategy=interval(0,1)"], {}, "an interval is for a number, and strategy is a group of options"),
        (["strategy=mgda", "strategy.space=interval(0,1)"], {}, "strategy.space is features, which is no number"),
        (["trainer.compile=interval(0,1)"], {}, "trainer.compile is False, which is no number"),
        (["optimizer.lrr=interval(0,1)"], {}, "did you mean optimizer.lr"),
        (["optimizer.lr=interval(1,0)"], {}, "optimizer.lr=interval(1,0) is nothing to search: "),
        (["optimizer.lr=tag(log,interval(0,1))"], {}, "is nothing to search: "),
        (["optimizer.lr=tag(lot,interval(0,1))"], {}, "the only tag of a search is log"),
        (["data.batch_size=interval(8,64)"], {}, "data.batch_size=8.0 has the wrong type"),
        (["weighting=static", "+weighting.weights.lft=interval(0.1,1)"], {}, "weights.lft names no task"),
        ([RATE], {"objectives": ["left/acuracy"]}, "left/acuracy is no metric of the val split that says whether"),
        ([RATE, "tasks=[left],[right]"], {"objectives": "tasks"}, "arms that are compared have the same"),
        ([RATE], {"objectives": "tasks"}, "hydra.sweeper.pruner: a search for left/accuracy (maximize), right/"),
        ([RATE], {"n_trials": 0}, "hydra.sweeper.n_trials=0 must be a whole number of 1 or more."),
        ([RATE], {"n_jobs": 2}, "hydra.sweeper.n_jobs=2: the basic launcher runs one job at a time"),
        ([RATE], {"sampler": "tpe"}, "hydra.sweeper.sampler=tpe must be a mapping with the _target_"),
        ([RATE], {"sampler": {"n_start_trials": 3}}, "n_start_trials is not an argument of optuna.samplers.TPESampler"),
        ([RATE], {"sampler": {"_partial_": False}}, "hydra.sweeper.sampler must have _partial_: true"),
        ([RATE], {"pruner": {"n_startup_trials": -1}}, "hydra.sweeper.pruner: "),
    ],
    ids=[
        "no key", "seeds", "group", "text", "bool", "typo", "empty", "log of 0", "tag", "float for int", "no task",
        "no metric", "other objectives", "prunes two", "trials", "launcher", "sampler", "argument", "whole", "pruner",
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_before_any_run(application, line, sweeper, words):
    with pytest.raises(ConfigError) as caught:
        check_search(composed(*PLAIN, *line, **sweeper), None)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_check_fills_in_what_the_metrics_say_of_themselves(application):
    config = composed(*PLAIN, RATE, objectives="tasks", pruner=None)
    check_search(config, None)
    assert config.hydra.sweeper.objectives == ["left/accuracy", "right/accuracy"]
    assert config.hydra.sweeper.directions == ["maximize", "maximize"]
    config = composed(*PLAIN, RATE)
    check_search(config, None)
    assert (config.hydra.sweeper.objectives, config.hydra.sweeper.directions) == (["loss/total"], ["minimize"])


def test_a_table_is_asked_for_its_tasks(application, tmp_path):
    make_fixture(tmp_path / "shop")
    line = ["data=table", f"data.root={tmp_path / 'shop'}", "data.targets=[basket,again]", "device=cpu", RATE]
    config = composed(*line, objectives="tasks", pruner=None)
    check_search(config, None)
    assert config.hydra.sweeper.objectives == ["basket/accuracy", "again/accuracy"]


def test_a_storage_that_is_none_is_refused(application, tmp_path):
    (tmp_path / "notes.txt").write_text("no journal\n")
    for storage, words in ((tmp_path / "notes.txt", "cannot be opened"), (tmp_path / "no" / "study.log", "its folder")):
        with pytest.raises(ConfigError) as caught:
            check_storage(composed(*PLAIN, RATE, storage=str(storage)))
        assert words in str(caught.value) and str(storage) in str(caught.value) and "\n" not in str(caught.value)
    check_storage(composed(*PLAIN, RATE, storage=str(tmp_path / "study.log")))
    assert not (tmp_path / "study.log").exists()


# --------------------------------------------------------------------------------------------- whole searches


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search of two arms that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    search = Training(folder, *TPE, RATE, "strategy=detached,mgda", "hydra.sweeper.n_trials=4", "skip_finished=true")
    search.start()
    assert search.wait() == 0, search.log.read_text()
    return folder


def test_the_study_has_what_the_runs_recorded(whole):
    found = trials(whole / "sweep")
    assert [*found] == ["strategy=detached", "strategy=mgda"]
    assert [len(own) for own in found.values()] == [4, 4]
    for arm, own in found.items():
        for _, state, params, values, attributes in own:
            run = whole / attributes["folder"]
            assert {arm, f"optimizer.lr={params['optimizer.lr']}"} < set(overrides_of(run))
            if state == "COMPLETE":
                assert values == [min(row["loss/total"] for row in read_metrics(run, "val"))]
    assert read_json(whole / "sweep" / "search.json")["keys"] == ["optimizer.lr"]
    said = (whole / "console.log").read_text()
    best = min(own[3][0] for own in found["strategy=mgda"] if own[1] == "COMPLETE")
    assert f"{best:.4g}" in said and "seed=1,2,3" in said


def overrides_of(run):
    return json.loads((run / "config.yaml").read_text().splitlines()[0].removeprefix("# overrides: "))


def test_a_pruned_run_ends_where_the_pruner_says(whole):
    """The median pruner written down: the best value so far is above the median of completed trials at this step."""
    ends = set()
    for study in studies(whole / "sweep").values():
        completed = []
        for trial in study.trials:
            run = whole / trial.user_attrs["folder"]
            values = {row["step"]: row["loss/total"] for row in read_metrics(run, "val")}
            assert trial.intermediate_values == {step: value for step, value in values.items() if step < 10}
            bad = [
                step
                for step in values
                if step < 10
                and completed
                and min(v for s, v in values.items() if s <= step) > median(other[step] for other in completed)
            ]
            assert bad in ([], [max(values)]), "it ends at the first evaluation that is bad"
            assert max(values) == 10 or bad
            assert read_json(run / "summary.json")["pruned"] == bool(bad) == (trial.state.name == "PRUNED")
            completed += [] if bad else [values]
            ends.add(trial.state.name)
    assert ends == {"COMPLETE", "PRUNED"}


def test_a_killed_search_goes_on_as_if_it_never_had_been(tmp_path, whole):
    line = [*TPE, RATE, "strategy=detached,mgda", "skip_finished=true"]
    killed = Training(tmp_path, *line, "hydra.sweeper.n_trials=4")
    killed.start()
    until(lambda: (tmp_path / "sweep" / "3" / "metrics.jsonl").is_file())
    killed.send(signal.SIGKILL, group=True)
    killed.join()
    states = [trial[1] for own in trials(tmp_path / "sweep").values() for trial in own]
    assert states.count("RUNNING") == 1 and len(states) == 4
    again = Training(tmp_path, *line, "hydra.sweeper.n_trials=4")
    again.start()
    assert again.wait() == 0, again.log.read_text()
    assert trials(tmp_path / "sweep") == trials(whole / "sweep")
    assert len([*(tmp_path / "sweep").glob("*/status.json")]) == 8


def test_a_search_goes_on_with_more_trials_and_not_by_accident(tmp_path, whole, forked):
    done = forked("mtl.train", *TPE, RATE, "strategy=detached,mgda", f"hydra.sweep.dir={whole}/sweep")
    assert done.returncode == 1 and "sweep already holds a search: skip_finished=true goes on with it" in done.stderr
    storage = f"hydra.sweeper.storage={whole}/sweep/study.log"
    done = forked("mtl.train", *TPE, RATE, "strategy=detached,mgda", storage, "data.batch_size=5")
    assert (
        done.returncode == 1 and "holds the study 'strategy=detached' of another search (overrides are" in done.stderr
    )
    assert not [*tmp_path.rglob("status.json")]


def test_the_command_at_its_end_names_the_folder_of_configurations(tmp_path, forked):
    """With a flag between the overrides, where argparse would stop."""
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\ntrainer: {max_steps: 2}\n")
    done = forked("mtl.train", *TPE, RATE, "hydra.sweeper.n_trials=1", "-cd", "own", "+experiment=mine")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("mtl-train -m")]
    assert f"--config-dir={tmp_path / 'own'}" in line and "+experiment=mine" in line


def test_a_failing_trial_is_no_end_of_a_search(tmp_path, forked):
    fails = "+backbone.rank=choice(0,1)"
    line = ["+backbone.after=6", fails, "hydra.sweeper.n_trials=4", "backbone._target_=support.runs.Fails"]
    done = forked("mtl.train", *TPE, *line)
    assert "of 4 trials failed; see sweep/" in done.stderr, done.stderr
    (own,) = trials(tmp_path / "sweep").values()
    ends = {params["+backbone.rank"]: state for _, state, params, _, _ in own}
    assert ends == {"0": "FAIL", "1": "COMPLETE"} and len(own) == 4
    assert done.returncode == 1


def test_trade_offs_between_tasks(tmp_path, forked):
    line = [RATE, "hydra/sweeper=mtl_nsga2", "hydra.sweeper.n_trials=3", "hydra.sweep.dir=sweep"]
    done = forked("mtl.train", "-m", *PLAIN, *line)
    assert done.returncode == 0, done.stderr
    (study,) = studies(tmp_path / "sweep").values()
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MAXIMIZE"]
    for trial in study.trials:
        best = read_json(tmp_path / trial.user_attrs["folder"] / "summary.json")["best"]["val"]
        assert trial.values == [best["left/accuracy"], best["right/accuracy"]]
