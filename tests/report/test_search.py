"""What the report says of searches: their budgets, the best setting of each arm, and how much each key matters."""

import json
from math import inf

import optuna
import pytest
from support.report_runs import accuracies, write_run

from mtl.report.compare import compare
from mtl.report.runs import find_runs
from mtl.report.search import Budget
from mtl.report.tables import markdown, results, tables

ARMS = ("naive", "mgda")


def write_search(root, trials=12, pruned=(), more=0, objectives=("loss/total",), momentums=1.0):
    """A search as mtl-train leaves it: a rate that matters, a momentum that does not, ``more`` trials of mgda."""
    root.mkdir()
    backend = optuna.storages.journal.JournalFileBackend(str(root / "study.log"))
    storage, job = optuna.storages.JournalStorage(backend), 0
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for arm in ARMS:
        study = optuna.create_study(
            study_name=arm, storage=storage, directions=["minimize"] * len(objectives),
            sampler=optuna.samplers.RandomSampler(seed=1),
        )  # fmt: skip
        study.set_user_attr("search", {"objectives": objectives})
        for number in range(trials + more * (arm == "mgda")):
            trial = study.ask()
            rate = trial.suggest_float("optimizer.lr", 0, 1)
            momentum = trial.suggest_float("optimizer.momentum", 0, momentums) if momentums else 0.0
            trial.set_user_attr("folder", str(root / str(job)))
            best, ends = (rate - 0.3) ** 2, number in pruned
            write_run(
                root / str(job), arm, test=accuracies(1 - best, 0.5), best=best, rows=2 if ends else 4,
                recorded={"pruned": True} if ends else {}, optimizer={"lr": rate, "momentum": momentum},
                trainer={"max_steps": 40},
            )  # fmt: skip
            if ends:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, [best, rate][: len(objectives)])
            job += 1
    told = {"keys": ["optimizer.lr", "optimizer.momentum"], "storage": None, "studies": list(ARMS)}
    (root / "search.json").write_text(json.dumps(told))
    return root


def compared(root):
    (comparison,) = compare(find_runs([root]))
    return comparison


def cells(comparison, title):
    (table,) = [table for table in tables(comparison) if table.title.endswith(title)]
    return [dict(zip(table.header, line, strict=True)) for line in table.lines]


def test_each_arm_has_its_best_trial_and_its_budget(tmp_path):
    comparison = compared(write_search(tmp_path / "search", pruned=(3, 4)))
    assert [row.label for row in comparison.rows] == ["Naive", "MGDA"]
    for row in comparison.rows:
        everything = [other for other in (row, *row.others) if other.first.status != "pruned"]
        best = min(everything, key=lambda other: abs(other.settings["optimizer.lr"] - 0.3))
        assert row is best and row.budget == Budget(12, 40, 10 * 40 + 2 * 20)
    lines = cells(comparison, "test metrics")
    assert [line["budget: trials × steps"] for line in lines] == ["12 × 40 (440 steps)"] * 2
    assert "4 runs were pruned by a search." in comparison.notes
    assert not any("budgets differ" in note or "is pruned" in note for note in comparison.notes)


def test_a_mean_with_the_selected_trial_in_it_says_so(tmp_path):
    root = write_search(tmp_path / "search", trials=3)
    (best,) = [row.first for row in compared(root).rows if row.label == "MGDA"]
    assert not any("The trial that a search selected" in note for note in compared(tmp_path).notes)
    for seed in (1, 2, 3):
        write_run(
            tmp_path / "again" / str(seed), "mgda", seed, accuracies(0.9, 0.5), best=0.1, trainer={"max_steps": 40},
            optimizer={key: best.config["optimizer"][key] for key in ("lr", "momentum")},
        )  # fmt: skip
    comparison = compared(tmp_path)
    assert {row.label: len(row.finished) for row in comparison.rows} == {"Naive": 1, "MGDA": 4}
    (note,) = [note for note in comparison.notes if note.startswith("The trial that a search selected is in the mean")]
    assert "the mean: MGDA. Give" in note


def test_unequal_budgets_are_marked(tmp_path):
    comparison = compared(write_search(tmp_path / "search", more=1))
    lines = cells(comparison, "test metrics")
    assert [line["budget: trials × steps"] for line in lines] == ["12 × 40 ‡", "13 × 40 ‡"]
    assert any(note.startswith("‡ The budgets differ") for note in comparison.notes)


def test_the_key_that_matters_is_important(tmp_path):
    comparison = compared(write_search(tmp_path / "search", trials=30))
    for search in comparison.searches:
        assert search.ends == {"COMPLETE": 30} and not search.few
        assert search.importances["optimizer.lr"] > 0.8 > 0.2 > search.importances["optimizer.momentum"]
    assert "importance of optimizer.lr" in markdown([comparison], "search")
    assert results([comparison])["comparisons"][0]["searches"][0]["ends"] == {"COMPLETE": 30}


def test_a_single_key_has_no_share(tmp_path):
    comparison = compared(write_search(tmp_path / "search", momentums=0))
    assert [search.importances for search in comparison.searches] == [{}, {}]
    assert "importance of" not in markdown([comparison], "search")


def test_few_trials_are_said_to_say_nothing(tmp_path):
    said = [markdown([compared(write_search(tmp_path / str(trials), trials))], "") for trials in (5, 10)]
    assert "Of fewer than 10 completed trials it is noise." in said[0] and "it is noise" not in said[1]


def test_the_front_of_a_search_for_two_objectives(tmp_path):
    comparison = compared(write_search(tmp_path / "search", objectives=("loss/left", "loss/right")))
    shown = [line["at"] for line in cells(comparison, "Pareto fronts of searches") if line["search"] == "naive"]
    study = optuna.load_study(
        study_name="naive",
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(tmp_path / "search" / "study.log"))
        ),
    )
    front, lowest = [], inf
    for trial in sorted(study.trials, key=lambda trial: trial.values):
        if trial.values[1] < lowest:
            front, lowest = [*front, trial.params["optimizer.lr"]], trial.values[1]
    assert sorted(shown) == sorted(text for text in shown if any(f"lr={rate:.4g} " in text for rate in front))
    assert len(shown) == len(front) > 1


def test_a_study_that_is_gone_is_a_note(tmp_path):
    folder = write_search(tmp_path / "search", trials=2)
    (folder / "study.log").unlink()
    comparison = compared(folder)
    assert not comparison.searches and any("its study cannot be read" in note for note in comparison.notes)
    assert len(comparison.rows) == 2


@pytest.mark.parametrize("installed", [True, False])
def test_without_optuna_the_rest_of_the_report_is_there(tmp_path, monkeypatch, installed):
    folder = write_search(tmp_path / "search", trials=3)
    monkeypatch.setattr("mtl.report.search.find_spec", lambda name: installed or None)
    comparison = compared(folder)
    assert bool(comparison.searches) == installed
    assert any("pip install 'mtl-torch[optuna]'" in note for note in comparison.notes) != installed
    assert len(comparison.rows) == 2
