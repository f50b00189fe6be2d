"""Grouping, selection and references of a comparison, on runs with known numbers."""

import json

import pytest
from support.report_runs import accuracies, write_run, write_study

from mtl.report.compare import compare
from mtl.report.names import differences, row_labels
from mtl.report.runs import ReportError, find_runs
from mtl.report.statistics import interval
from mtl.report.timing import TimeRatio


def compared(path, *tune):
    (comparison,) = compare(find_runs([path]), tune)
    return comparison, {row.label: row for row in comparison.rows}


def test_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path):
    for seed, value in enumerate((0.5, 0.6, 0.7)):
        write_run(tmp_path / str(seed), seed=seed, test=accuracies(value, 0.5))
    write_run(tmp_path / "3", strategy="mgda", test=accuracies(0.9, 0.9))
    comparison, rows = compared(tmp_path)
    assert list(rows) == ["Naive", "MGDA"] and list(rows["Naive"].runs) == [0, 1, 2]
    assert rows["Naive"].metrics["left/accuracy"] == interval([0.5, 0.6, 0.7])
    assert rows["MGDA"].metrics["left/accuracy"].half is None
    assert "Fewer than 3 seeds, so no interval: MGDA." in comparison.notes


def test_what_does_not_matter_does_not_split_a_row_and_what_does_is_named(tmp_path):
    write_run(tmp_path / "0", test=accuracies(0.5, 0.5), device="cpu", name="a", conflict={"every": 1})
    write_run(tmp_path / "1", test=accuracies(0.6, 0.5), device="cuda", name="b", conflict={"every": 5}, seed=1)
    write_run(tmp_path / "2", test=accuracies(0.7, 0.5), data={"offset": 2})
    _, rows = compared(tmp_path)
    assert sorted(rows) == ["Naive data.offset=1", "Naive data.offset=2"]
    assert len(rows["Naive data.offset=1"].runs) == 2


def test_names_say_what_tells_the_rows_apart_and_no_more(tmp_path):
    write_run(tmp_path / "0", strategy="cagrad", test=accuracies(0.5, 0.5))
    write_run(tmp_path / "1", strategy="mgda", test=accuracies(0.5, 0.5))
    write_run(tmp_path / "2", strategy="mgda", test=accuracies(0.5, 0.5), optimizer={"lr": 0.3})
    write_run(tmp_path / "3", test=accuracies(0.5, 0.5), weights={"left": 0.25})
    write_run(tmp_path / "4", test=accuracies(0.5), tasks=["left"])
    _, rows = compared(tmp_path)
    # c belongs to one rule only, and optimizer.groups.backbone.lr follows optimizer.lr
    assert set(rows) == {
        "left alone optimizer.lr=0.1", "CAGrad optimizer.lr=0.1", "MGDA optimizer.lr=0.1", "MGDA optimizer.lr=0.3",
        "Static optimizer.lr=0.1",
    }  # fmt: skip


def test_the_best_on_validation_is_selected_and_not_the_best_on_test(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", seed=seed, best=0.2, test=accuracies(0.5, 0.5), optimizer={"lr": 0.1})
        write_run(tmp_path / f"b{seed}", seed=seed, best=0.3, test=accuracies(0.9, 0.9), optimizer={"lr": 0.2})
    comparison, rows = compared(tmp_path, "optimizer.lr")
    assert rows["Naive"].tuned == {"optimizer.lr": 0.1}
    assert rows["Naive"].metrics["left/accuracy"].mean == 0.5 and len(comparison.candidates) == 2


def test_with_mode_max_the_highest_is_selected(tmp_path):
    for lr, best in ((0.1, 0.2), (0.2, 0.3)):
        write_run(tmp_path / str(lr), best=best, test=accuracies(lr, lr), optimizer={"lr": lr}, trainer={"mode": "max"})
    _, rows = compared(tmp_path, "optimizer.lr")
    assert rows["Naive"].metrics["left/accuracy"].mean == 0.2


@pytest.mark.parametrize(("mode", "selected"), [("max", 0.2), ("min", 0.1), (None, 0.1)])
def test_the_direction_is_the_summarys_where_the_configuration_leaves_it_open(tmp_path, mode, selected):
    for lr, best in ((0.1, 0.2), (0.2, 0.3)):
        folder = write_run(
            tmp_path / str(lr), best=best, test=accuracies(lr, lr), optimizer={"lr": lr}, trainer={"mode": None}
        )
        summary = json.loads((folder / "summary.json").read_text())
        summary["best"] |= {"mode": mode} if mode else {}
        (folder / "summary.json").write_text(json.dumps(summary))
    _, rows = compared(tmp_path, "optimizer.lr")
    assert rows["Naive"].metrics["left/accuracy"].mean == selected


def test_a_setting_with_a_seed_missing_is_not_selected(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", seed=seed, best=0.5, test=accuracies(0.5, 0.5), optimizer={"lr": 0.1})
    write_run(tmp_path / "b", best=0.1, test=accuracies(0.9, 0.9), optimizer={"lr": 0.2})
    comparison, rows = compared(tmp_path, "optimizer.lr")
    assert rows["Naive"].metrics["left/accuracy"].mean == 0.5
    assert any("fewer finished seeds" in note for note in comparison.notes)


def test_a_whole_study(tmp_path):
    comparison, rows = compared(write_study(tmp_path), "optimizer.lr", "weighting.weights")
    assert set(rows) == {"left alone", "right alone", "Naive", "Static", "CAGrad", "MGDA"}
    assert rows["Static"].tuned["weighting.weights.left"] == 1.5  # the smaller loss on validation
    naive, mgda = rows["Naive"], rows["MGDA"]
    # single-task: 0.80 and 0.60, +0.02 at the selected rate, +0.01 on average over the seeds
    expected = [-100 * ((0.70 - 0.80) / 0.83), -100 * ((0.70 - 0.60) / 0.63)]
    assert naive.delta_metric.mean == pytest.approx(sum(expected) / 2)
    assert naive.delta_task.mean == pytest.approx(-sum(expected) / 2)
    # every seed moves all by as much: the pairs agree to rounding, though the seeds are far apart
    assert mgda.differences["left/accuracy"].mean == pytest.approx(0.02)
    assert mgda.differences["left/accuracy"].half < 1e-9 < 0.02 < mgda.metrics["left/accuracy"].half
    assert mgda.reference is naive and mgda.time == TimeRatio(1, 1, 1) and mgda.memory_ratio == 1
    assert [row.rank for row in comparison.methods] == pytest.approx(
        [{"Naive": 2.5, "Static": 2.5, "CAGrad": 3.5, "MGDA": 1.5}[row.label] for row in comparison.methods]
    )
    note, budgets = comparison.notes  # two rates, the higher of which is the better; and three static weightings
    assert budgets.startswith("‡ The budgets differ")
    assert note.startswith(
        "Selected at the edge of what was tried, so a further value may be better: optimizer.lr=0.2 of"
    )


def test_the_time_of_a_step_is_the_median_reading_of_runs_that_do_the_same_work(tmp_path):
    write_run(tmp_path / "0", test=accuracies(0.5, 0.5), best=0.1, step_time=0.3)
    write_run(tmp_path / "1", test=accuracies(0.5, 0.5), best=0.1, step_time=0.2, seed=1)
    write_run(tmp_path / "2", test=accuracies(0.5, 0.5), best=0.5, step_time=0.1, optimizer={"lr": 0.2})
    lighter = write_run(tmp_path / "3", test=accuracies(0.5, 0.5), best=0.5, step_time=0.01, optimizer={"lr": 0.3})
    (lighter / "summary.json").write_text((lighter / "summary.json").read_text().replace("1000", "500"))
    write_run(tmp_path / "4", status="failed", seed=2, step_time=9.0)
    assert compared(tmp_path, "optimizer.lr")[1]["Naive"].step_seconds == 0.2
    rows = compared(tmp_path)[1]
    assert rows["Naive optimizer.lr=0.1"].step_seconds == 0.25


def test_without_tuning_every_row_meets_the_baseline_with_its_own_settings(tmp_path):
    _, rows = compared(write_study(tmp_path))
    low = rows["MGDA optimizer.lr=0.1"]
    assert low.reference.label == "Naive optimizer.lr=0.1"
    assert low.delta_metric.mean == pytest.approx(-50 * ((0.72 - 0.80) / 0.81 + (0.71 - 0.60) / 0.61))


def test_what_is_missing_is_said(tmp_path):
    write_run(tmp_path / "0", test=accuracies(0.5, 0.5))
    write_run(tmp_path / "1", seed=1, status="failed", error="RuntimeError: the head exploded")
    write_run(tmp_path / "2", seed=2, status="running")
    write_run(tmp_path / "3", strategy="mgda", seed=3, test=accuracies(0.5, 0.5))
    write_run(tmp_path / "4", strategy="mgda", seed=3, test=accuracies(0.5, 0.5))
    write_run(tmp_path / "5", tasks=["left"], test=accuracies(0.5))
    with (tmp_path / "0" / "metrics.jsonl").open("a") as file:
        file.write('nonsense\n{"step": 50, "cut off')
    comparison, rows = compared(tmp_path)
    assert len(rows["Naive"].finished) == 1 and len(rows["Naive"].runs) == 3
    told = "\n".join(comparison.notes)
    assert "1 is failed: RuntimeError: the head exploded." in told
    assert "2 is running, or was killed." in told
    assert "3 and 4 are the same run twice" in told
    assert "metrics.jsonl has 1 malformed lines" in told
    assert "no single-task baseline of right here (also run tasks=[right])" in told
    assert "MGDA and Naive have different seeds" in told


def test_a_strategy_from_elsewhere_is_no_reference_for_others(tmp_path):
    write_run(tmp_path / "0", test=accuracies(0.5, 0.5), strategy="surgery")
    write_run(tmp_path / "1", strategy="mgda", test=accuracies(0.5, 0.5))
    _, rows = compared(tmp_path)
    assert set(rows) == {"Surgery", "MGDA"} and not any(row.is_static for row in rows.values())
    assert rows["MGDA"].reference is None


def test_two_data_sets_are_two_comparisons(tmp_path):
    write_run(tmp_path / "0", test=accuracies(0.5, 0.5))
    write_run(tmp_path / "1", test=accuracies(0.5, 0.5), data={"_target_": "mtl.data.scenes.Scenes"})
    assert [c.data for c in compare(find_runs([tmp_path]))] == ["Digits", "Scenes"]


def test_a_run_that_failed_before_it_was_configured_is_told_of_but_is_no_row(tmp_path):
    write_run(tmp_path / "1", test=accuracies(0.5, 0.5))
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "status.json").write_text('{"status": "failed", "error": "trainer.mode=up must be min or max."}')
    comparison, rows = compared(tmp_path)
    assert list(rows) == ["Naive"] and "0 is failed: trainer.mode=up must be min or max." in comparison.notes


def test_a_task_without_a_metric_is_judged_by_its_loss(tmp_path):
    run = write_run(tmp_path / "0", test={"loss/left": 0.5, "loss/right": 0.4, "loss/total": 0.9, "left/accuracy": 0.7})
    comparison, _ = compared(run)
    assert comparison.metrics == {"left/accuracy": True, "loss/right": False}


def test_a_metric_whose_direction_nobody_knows_is_shown_but_not_ranked(tmp_path):
    run = write_run(tmp_path / "0", test=accuracies(0.5, 0.5) | {"left/u": 3.0})
    comparison, _ = compared(run)
    assert comparison.metrics["left/u"] is None and "left/u" not in comparison.directed
    assert any("left/u" in note for note in comparison.notes)


def test_a_key_that_is_the_same_everywhere_cannot_be_tuned(tmp_path):
    write_study(tmp_path, seeds=1)
    with pytest.raises(
        ReportError, match=r"--tune optimizer.rate: no two runs differ in it; they differ in .*optimizer.lr"
    ):
        compare(find_runs([tmp_path]), ["optimizer.rate"])


def test_architectures_are_told_apart():
    hard = {"architecture._target_": "mtl.architectures.Hard", "strategy._target_": "mtl.strategies.Detached"}
    mmoe = hard | {"architecture._target_": "mtl.architectures.MMoE", "architecture.experts": 3}
    assert row_labels([hard, mmoe], set()) == ["Hard", "MMoE"]
    assert differences([hard, mmoe]) == ["architecture (Hard, MMoE)"]
    assert differences([mmoe, mmoe | {"architecture.experts": 8}]) == ["architecture.experts (3, 8)"]
