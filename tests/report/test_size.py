"""Parameters and multiply-adds beside the results, and the warning where rows differ in them."""

import csv
import io
import json

import pytest
from support.report_runs import accuracies, write_run

from mtl.report.command import report
from mtl.report.compare import compare
from mtl.report.runs import find_runs
from mtl.report.size import unit_of
from mtl.report.tables import tables


def sized(shared, readers=0, heads=100, tasks=("left", "right"), multiply_adds=5000):
    """What summary.json says of a model with as large a reader and head for every task."""
    own = {task: readers for task in tasks if readers}
    total = shared + (readers + heads) * len(tasks)
    parts = {"shared": shared, "readers": own, "heads": dict.fromkeys(tasks, heads), "total": total}
    return {"parameters": parts, "multiply_adds": multiply_adds}


def write_arms(root, ensemble=1100, mmoe=1000, baselines=True):
    """Hard sharing, an ensemble and MMoE, in turn, and the plain and the MMoE network of each task."""
    for seed in range(3):
        for name, (architecture, size) in {
            "hard": ("Hard", sized(1000)),
            "ensemble": ("Ensemble", sized(ensemble)),
            "mmoe": ("MMoE", sized(mmoe, readers=50)),
        }.items():
            gain = 0.1 * (name == "mmoe") + 0.01 * seed
            write_run(
                root / f"{name}{seed}", "detached", seed, accuracies(0.5 + gain, 0.6 + gain), recorded=size,
                architecture={"_target_": f"mtl.architectures.{architecture}"},
            )  # fmt: skip
        for task, left, right in [("left", 0.5, None), ("right", None, 0.5)] if baselines else []:
            for architecture, gain, shared in (("Hard", 0.0, 500), ("MMoE", 0.2, 1000)):
                test = accuracies(*(value and value + gain for value in (left, right)))
                own = {"_target_": f"mtl.architectures.{architecture}"}
                write_run(
                    root / f"{architecture}_{task}{seed}", "detached", seed, test, tasks=[task],
                    recorded=sized(shared, tasks=[task]), architecture=own,
                )  # fmt: skip
    return root


def compared(root):
    (comparison,) = compare(find_runs([root]))
    return comparison, {row.label: row for row in comparison.rows}


def test_the_columns_are_the_models_sizes(tmp_path):
    comparison, _ = compared(write_arms(tmp_path))
    table = tables(comparison)[0]
    first = table.header.index("parameters, k")
    assert table.header[first : first + 3] == ["parameters, k", "of single networks ×", "multiply-adds, k"]
    cells = {line[0]: line[first : first + 3] for line in table.lines}
    assert cells["Detached Hard"] == ["1.2", "1.00", "5"]  # 1000 + 2 · 100, of two networks of 500 + 100
    assert cells["Detached Ensemble"] == ["1.3", "1.08", "5"]
    assert cells["left alone Hard"] == ["0.6", "1.00", "5"] and cells["left alone MMoE"] == ["1.1", "1.83", "5"]
    (parts,) = [table for table in tables(comparison) if table.title == "Digits: parameters by part"]
    assert parts.header == ["", "shared, k", "a reader", "a head"]
    assert ["Detached MMoE", "1", "50", "100"] in parts.lines and ["Detached Hard", "1", "–", "100"] in parts.lines


def test_an_architecture_is_compared_with_hard_sharing_and_with_plain_single_networks(tmp_path):
    comparison, rows = compared(write_arms(tmp_path))
    assert {row.reference.label for row in comparison.methods} == {"Detached Hard"}
    assert rows["Detached MMoE"].differences["left/accuracy"].mean == pytest.approx(0.1)
    # (0.61 - 0.5) / 0.5 and (0.71 - 0.5) / 0.5, and not those of the MMoE networks of one task, which have 0.7
    assert rows["Detached MMoE"].delta_task.mean == pytest.approx(100 * (0.22 + 0.42) / 2)
    (caption,) = [table.caption for table in tables(comparison) if "differences" in table.title]
    assert caption.endswith("Equal weighting under an architecture is compared with that under hard sharing.")


def test_a_strategy_is_compared_with_equal_weighting_of_its_own_architecture(tmp_path):
    for i, (strategy, architecture) in enumerate([(s, a) for s in ("naive", "mgda") for a in ("Hard", "MMoE")]):
        own = {"_target_": f"mtl.architectures.{architecture}"}
        write_run(tmp_path / str(i), strategy, test=accuracies(0.5, 0.5), architecture=own)
    _, rows = compared(tmp_path)
    against = {label: row.reference.label for label, row in rows.items()}
    assert against["MGDA MMoE"] == "Naive MMoE" and against["MGDA Hard"] == "Naive Hard"
    assert against["Naive MMoE"] == "Naive Hard"


def test_rows_that_differ_by_more_than_a_tenth_are_named_with_the_factor_before_the_tables(tmp_path):
    root = write_arms(tmp_path, ensemble=3400)
    text, _ = report([root])
    before = text.split("## ")[0]
    assert (
        "**Warning: The rows differ in parameters by more than a tenth: Detached Ensemble has 3 times those of"
        in before
    )
    assert "architecture=ensemble" in before and "MMoE has" not in before
    assert json.loads((root / "results.json").read_text())["comparisons"][0]["warnings"]
    lines = list(csv.DictReader(io.StringIO((root / "results.csv").read_text())))
    assert {line["parameters"] for line in lines if "Ensemble" in line["label"]} == {"3600"}


@pytest.mark.parametrize(("ensemble", "warned"), [(1119, False), (1121, True)])
def test_a_tenth_is_the_limit(tmp_path, ensemble, warned):
    """Of the 1,200 parameters of hard sharing: 1,319 or 1,321."""
    comparison, _ = compared(write_arms(tmp_path, ensemble=ensemble, baselines=False))
    assert bool(comparison.warnings) is warned


def test_more_operations_are_warned_of_as_well(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", "naive", seed, accuracies(0.5, 0.5), recorded=sized(1000))
        more = sized(1000, multiply_adds=10_000)
        write_run(tmp_path / f"b{seed}", "mgda", seed, accuracies(0.5, 0.5), recorded=more)
    (warning,) = compared(tmp_path)[0].warnings
    assert warning.startswith("The rows differ in multiply-adds by more than a tenth: MGDA has 2 times those of Naive.")


def test_strategies_of_one_size_have_no_columns_and_one_sentence(tmp_path):
    for i, strategy in enumerate(("naive", "mgda")):
        write_run(tmp_path / str(i), strategy, test=accuracies(0.5, 0.5), recorded=sized(1000))
    comparison, _ = compared(tmp_path)
    table = tables(comparison)[0]
    assert "All strategies have 1,200 parameters and 5,000 multiply-adds a sample." in table.caption
    assert not any("parameters" in title for title in table.header) and not comparison.warnings


def test_runs_that_do_not_say_their_size_are_compared_without(tmp_path):
    for i, strategy in enumerate(("naive", "mgda")):
        write_run(tmp_path / str(i), strategy, test=accuracies(0.5, 0.5))
    comparison, _ = compared(tmp_path)
    assert "parameters" not in str(tables(comparison)[0]) and not comparison.warnings


@pytest.mark.parametrize(
    ("largest", "unit"),
    [(999, ""), (1000, "k"), (41_619, "k"), (1e6, "M"), (2e10, "G"), (float("nan"), "")],
    ids=["999", "1000", "41619", "a_million", "billions", "unknown"],
)
def test_a_column_has_one_unit(largest, unit):
    assert unit_of([largest, 1.0])[1] == unit
