"""What is not alike, or flatters, is said; a plain sweep is left in peace."""

import pytest
from support.report_runs import accuracies, write_run

from mtl.report.compare import compare
from mtl.report.runs import find_runs
from mtl.report.tables import summary_line, tables


def pair(root, first=None, second=None, test=None):
    """One comparison of Naive and MGDA with three seeds each, in turn; ``first`` and ``second`` change their runs."""
    for i in range(6):
        strategy, more = (("naive", first), ("mgda", second))[i % 2]
        found = test or accuracies(0.5 + 0.01 * i, 0.5)
        write_run(root / str(i), strategy, i // 2, start=100 * i, **{"test": found, **(more or {})})
    (comparison,) = compare(find_runs([root]))
    return comparison


def recorded(**content):
    return {"recorded": content}


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (recorded(versions={"git": "aaa"}), recorded(versions={"git": "bbb"}), "code (git): aaa (3 runs), bbb"),
        (recorded(device="cpu"), recorded(device="cuda: H200"), "different devices: cpu (3 runs), cuda: H200 (3 runs)"),
        (recorded(samples={"test": 9}), recorded(samples={"test": 8}), "different numbers of samples: 9 (3 runs), 8"),
        ({"trainer": {"max_steps": 100}}, {"trainer": {"max_steps": 200}}, "trainer.max_steps (100, 200)"),
        ({"trainer": {"precision": "32"}}, {"trainer": {"precision": "bf16"}}, "trainer.precision (32, bf16)"),
        ({}, {"conflict": {"tolerance": 0.1}}, "tolerances of conflict/fraction: 0.05 (3 runs), 0.1"),
        ({"conflict": {"tolerance": None}}, {}, "counts every negative cosine"),
        ({"data": {"validation": 0}}, {"data": {"validation": 0}}, "selected on the test split"),
        ({"trainer": {"overfit_batches": 2}}, {"trainer": {"overfit_batches": 2}}, "overfit_batches is set"),
        ({}, {"rows": 9}, "The runs were evaluated 4 to 9 times"),
        (recorded(skipped={"samples": {"test": [3]}}), {}, "left out 1 samples of test"),
    ],
)  # fmt: skip
def test_what_is_not_alike_or_flatters_is_said(tmp_path, first, second, said):
    comparison = pair(tmp_path, first, second)
    assert any(said in note for note in comparison.notes), comparison.notes


def test_a_plain_sweep_gets_only_the_note_on_baselines(tmp_path):
    assert [note[:6] for note in pair(tmp_path).notes] == ["No Δm:"]


def test_a_mean_of_fewer_seeds_says_so(tmp_path):
    for seed in range(4):
        test = accuracies(0.5, 0.5 + seed) | ({"right/accuracy": float("nan")} if seed == 3 else {})
        write_run(tmp_path / str(seed), seed=seed, test=test)
    (comparison,) = compare(find_runs([tmp_path]))
    (line,) = tables(comparison)[0].lines
    assert line[2].startswith("0.5") and line[3].startswith("1.5") and line[3].endswith("(3 of 4)")
    assert any("Naive has no finite right/accuracy with seed 3" in note for note in comparison.notes)


def test_a_failed_run_is_in_no_mean_and_no_ratio(tmp_path):
    write_run(tmp_path / "0", test=accuracies(0.5, 0.5))
    write_run(tmp_path / "1", seed=1, test=accuracies(0.9, 0.9), status="preempted", step_time=7.0)
    (comparison,) = compare(find_runs([tmp_path]))
    (row,) = comparison.rows
    assert row.metrics["left/accuracy"].mean == 0.5 and row.step_seconds == 0.1 and row.peak_memory == 1000
    assert "1 is preempted." in comparison.notes and any("in no mean" in note for note in comparison.notes)


@pytest.mark.parametrize("baseline", [0.0, -0.2])
def test_a_baseline_that_no_change_is_a_share_of_gives_no_delta_and_says_so(tmp_path, baseline):
    for i, (tasks, left, right) in enumerate([(None, 0.5, 0.5), (["left"], baseline, None), (["right"], None, 0.6)]):
        write_run(tmp_path / str(i), tasks=tasks, test=accuracies(left, right))
    (comparison,) = compare(find_runs([tmp_path]))
    assert all(row.delta_metric is None for row in comparison.rows)
    assert f"No Δm of Naive: left/accuracy is 0.5, and no share of a baseline of {baseline:.3g}." in comparison.notes


def test_the_summary_names_the_strategies_and_no_arguments_of_one_class_alone(tmp_path):
    assert (
        summary_line(pair(tmp_path))
        == "Digits: 6 runs (6 finished), 2 settings; they differ in strategy (Naive, MGDA)."
    )


def test_nothing_is_bold_of_two_seeds_nor_where_intervals_overlap_and_a_clear_winner_is(tmp_path):
    clear, noisy = (0.70, 0.71, 0.72), (0.4, 0.7, 0.95)
    for name, values, seeds in (("two", clear, 2), ("noise", noisy, 3), ("clear", clear, 3)):
        for seed in range(seeds):
            shift = 0.005 * (seed == 1)
            write_run(tmp_path / name / f"n{seed}", "naive", seed, accuracies(0.5 + shift, 0.5))
            write_run(tmp_path / name / f"m{seed}", "mgda", seed, accuracies(values[seed], 0.5))
    found = {name: compare(find_runs([tmp_path / name]))[0] for name in ("two", "noise", "clear")}
    bold = {
        name: [(c.rows[i].label, tables(c)[0].header[j]) for i, j in tables(c)[0].bold] for name, c in found.items()
    }
    assert bold == {"two": [], "noise": [], "clear": [("MGDA", "left/accuracy ↑")]}
    assert any("show nothing about a difference" in note for note in found["two"].notes)
    assert "mean rank" not in tables(found["two"])[0].header and "mean rank" in tables(found["clear"])[0].header


@pytest.mark.parametrize(("best", "said"), [(0.01, ["optimizer.lr=0.01 of 0.01 to 1 (Naive)"]), (0.1, [])])
def test_a_learning_rate_that_was_selected_at_the_edge_of_the_grid_is_named(tmp_path, best, said):
    for lr in (0.01, 0.1, 1.0):
        write_run(tmp_path / str(lr), best=float(lr != best), test=accuracies(0.5, 0.5), optimizer={"lr": lr})
    (comparison,) = compare(find_runs([tmp_path]), ["optimizer.lr"])
    edge = "Selected at the edge of what was tried, so a further value may be better: "
    assert [note.removeprefix(edge).rstrip(".") for note in comparison.notes if note.startswith(edge)] == said


def test_an_architecture_is_a_method_and_not_what_the_rows_differ_in_besides(tmp_path):
    def of(name):
        return {"architecture": {"_target_": f"mtl.architectures.{name}"}}

    assert not any("more than the method" in note for note in pair(tmp_path / "a", of("Hard"), of("MMoE")).notes)
    wider = pair(tmp_path / "b", of("Hard") | {"backbone": {"width": 8}}, of("MMoE") | {"backbone": {"width": 4}})
    assert any("The rows differ in more than the method: backbone.width (8, 4)." in note for note in wider.notes)


def test_rows_that_train_different_tasks_are_warned_of_and_baselines_are_not(tmp_path):
    found = pair(tmp_path / "different", second={"heads": {"middle": {"out_features": 2}}})
    (said,) = [warning for warning in found.warnings if "different tasks" in warning]
    assert "trains left, right; MGDA" in said and "trains left, middle, right. Their total losses" in said
    same = pair(tmp_path / "same", first={"tasks": ["left"]})
    assert not any("different tasks" in warning for warning in same.warnings)
