"""Step times are compared with their spread, and only where the machine allows it."""

import json

import pytest
from support.report_runs import accuracies, write_run

from mtl.report.compare import compare
from mtl.report.runs import find_runs
from mtl.report.tables import tables
from mtl.report.timing import BUSY, ELSEWHERE, FEW, IN_TURN, SHARED, UNKNOWN, shared_machine


def sweep(root, starts, slow=0.1, **more):
    """Naive and MGDA with three seeds each; ``starts``: of the naive runs, then of MGDA's."""
    for i, start in enumerate(starts):
        strategy = "naive" if i < 3 else "mgda"
        own = {"step_time": slow} | more if strategy == "mgda" else {}
        write_run(root / str(i), strategy, i % 3, accuracies(0.5, 0.5), start=start, **own)
    (comparison,) = compare(find_runs([root]))
    return comparison, {row.label: row for row in comparison.rows}


ALONE, BLOCKS, AT_ONCE = (0, 200, 400, 100, 300, 500), (0, 100, 200, 300, 400, 500), (0, 200, 400, 30, 230, 430)


@pytest.mark.parametrize(
    ("starts", "doubts"),
    [(ALONE, ()), (BLOCKS, (IN_TURN,)), (AT_ONCE, (SHARED,)), ((None,) * 6, (UNKNOWN,)), ((0,) * 6, (SHARED,))],
)
def test_how_the_runs_were_run_is_known(tmp_path, starts, doubts):
    comparison, rows = sweep(tmp_path, starts)
    assert rows["MGDA"].time.doubts == doubts
    assert any(note.startswith("†") for note in comparison.notes) == bool(doubts)
    line = next(line for line in tables(comparison)[0].lines if line[0] == "MGDA")
    assert any("†" in cell for cell in line) == bool(doubts)


@pytest.mark.parametrize("recorded", [{"device": "cuda: H"}, {"threads": 4}])
def test_runs_on_other_devices_or_threads_do_not_compare_in_time(tmp_path, recorded):
    assert sweep(tmp_path, ALONE, recorded=recorded)[1]["MGDA"].time.doubts == (ELSEWHERE,)


def test_a_busy_machine_and_a_single_run_are_no_measure(tmp_path):
    sweep(tmp_path, ALONE, recorded={"threads": 2})
    for i in range(6):
        (tmp_path / str(i) / "summary.json").write_text(json.dumps({"test": accuracies(0.5, 0.5), "threads": 2}))
        status = json.loads((tmp_path / str(i) / "status.json").read_text())
        (tmp_path / str(i) / "status.json").write_text(json.dumps(status | {"load": 3.9 if i else 9.6}))
    (comparison,) = compare(find_runs([tmp_path]))
    assert {row.label: row.time.doubts for row in comparison.rows} == {"Naive": (BUSY,), "MGDA": (BUSY,)}
    first = find_runs([tmp_path / "0", tmp_path / "3"])
    assert FEW in compare(first)[0].rows[1].time.doubts
    assert [run.is_busy for run in find_runs([tmp_path])] == [True] + 5 * [False]


def test_a_second_of_rounding_and_another_host_are_no_sharing(tmp_path):
    for name, start in (("0", 0), ("1", 59), ("2", 61)):
        write_run(tmp_path / name, start=start)
    status = json.loads((tmp_path / "2" / "status.json").read_text())
    (tmp_path / "2" / "status.json").write_text(json.dumps(status | {"host": "elsewhere"}))
    assert [shared_machine(run, runs) for runs in [find_runs([tmp_path])] for run in runs] == [False] * 3
    write_run(tmp_path / "3", status="failed", start=50)
    assert [shared_machine(run, runs) for runs in [find_runs([tmp_path])] for run in runs] == [True, True, False, True]


def test_equal_time_is_compared_only_where_a_step_clearly_costs_another_time(tmp_path):
    titles = {}
    for name, starts, slow in (("slow", ALONE, 0.2), ("same", ALONE, 0.1), ("blocks", BLOCKS, 0.2)):
        comparison, _ = sweep(tmp_path / name, starts, slow)
        titles[name] = [table.title for table in tables(comparison)]
        if name == "slow":
            (equal,) = [table for table in tables(comparison) if "equal time" in table.title]
            assert {line[0]: line[1] for line in equal.lines} == {"Naive": "40", "MGDA": "20"}
    assert "Digits: at equal time, validation" in titles["slow"]
    assert not any("equal time" in title for name in ("same", "blocks") for title in titles[name])


def test_readings_that_stray_are_in_the_ratio(tmp_path):
    sweep(tmp_path, ALONE)
    for i, times in ((0, (9, 0.1, 0.1, 0.1, 0.3)), (3, (9, 0.1, 0.1, 0.4, 0.2))):
        lines = [{"step": k, "split": "train", "time/step": t} for k, t in enumerate(times, 1)]
        for seed in range(3):
            (tmp_path / str(i + seed) / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (comparison,) = compare(find_runs([tmp_path]))
    ratio = {row.label: row for row in comparison.rows}["MGDA"].time
    assert ratio.value == pytest.approx(1.5)  # medians 0.15 and 0.1; the first reading, of 9 s, does not count
    assert ratio.low < 1 < ratio.high and not ratio.is_clear


def test_runs_that_are_far_apart_widen_the_spread_though_each_is_steady(tmp_path):
    for i in range(6):
        slow = (0.1, 0.3, 0.1, 0.2, 0.1, 0.2)[i]
        write_run(
            tmp_path / str(i), ("naive", "mgda")[i % 2], i // 2, accuracies(0.5, 0.5), start=100 * i, step_time=slow
        )
    ratio = next(row for row in compare(find_runs([tmp_path]))[0].rows if row.label == "MGDA").time
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 3)) and ratio.is_clear
