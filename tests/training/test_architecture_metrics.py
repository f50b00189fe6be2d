"""What a run records of its architecture: gates, penalties, parameters and multiply-adds."""

import json
import math

import pytest

from mtl.runs.files import read_metrics

MLP = ["backbone=mlp", "data.image_size=8", "trainer.log_every=1"]
ONE = 64 * 256 + 256 * 256 + 256 * 96  # multiply-adds of one backbone, and its weights
BIASES = 256 + 256 + 96
HEAD = 96 * 10


def recorded(folder):
    return read_metrics(folder, "train"), json.loads((folder / "summary.json").read_text())


def gates(row, task, count):
    return [row[f"architecture/gate{task}/{i}"] for i in range(count)]


def of_architecture(row):
    return {name for name in row if name.startswith("architecture/")}


@pytest.mark.parametrize("name", ["hard", "ensemble"])
def test_without_gates_nothing_is_said_of_them(name, train_tiny):
    rows, summary = recorded(train_tiny(*MLP, f"architecture={name}"))
    assert not any(of_architecture(row) for row in rows)
    experts = 3 if name == "ensemble" else 1
    shared = experts * (ONE + BIASES)
    assert summary["parameters"] == {
        "shared": shared, "readers": {}, "heads": {"left": HEAD + 10, "right": HEAD + 10},
        "total": shared + 2 * (HEAD + 10),
    }  # fmt: skip
    assert summary["multiply_adds"] == experts * ONE + 2 * HEAD


@pytest.mark.parametrize(("name", "count"), [("mmoe", 3), ("cgc", 3), ("ple", 3), ("dselect_k", 4)])
def test_the_gates_of_each_task(name, count, train_tiny):
    rows, _ = recorded(train_tiny(*MLP, f"architecture={name}"))
    for row in rows:
        for task in ("/left", "/right"):
            assert sum(gates(row, task, count)) == pytest.approx(1, abs=1e-5)
            assert 0 <= row[f"architecture/gate_entropy{task}"] <= math.log(count) + 1e-5
        extra = {f"architecture/selected/{task}" for task in ("left", "right")} if name == "dselect_k" else set()
        assert len(of_architecture(row)) == 2 * (count + 1) + len(extra) and extra <= row.keys()
    assert len({tuple(gates(row, "/left", count)) for row in rows}) == len(rows)


def test_the_one_gate_of_all_tasks(train_tiny):
    rows, _ = recorded(train_tiny(*MLP, "architecture=omoe"))
    assert of_architecture(rows[0]) == {"architecture/gate_entropy", *(f"architecture/gate/{i}" for i in range(3))}
    assert sum(gates(rows[0], "", 3)) == pytest.approx(1, abs=1e-5)


def test_the_columns_that_are_drawn_and_how_likely_each_is(train_tiny):
    rows, _ = recorded(train_tiny(*MLP, "architecture=ltb", "architecture.warm_up=0.5"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        drawn, likely = ({n: v for n, v in row.items() if f"/{kind}" in n} for kind in ("selected", "parent"))
        assert len(drawn) == len(likely) == 2 * 2 * 2 + 2 * 2  # two stages read another, and so does each head
        assert {"architecture/selected/left~right/1", "architecture/selected_last/right/0"} <= drawn.keys()
        assert set(drawn.values()) == ({0.5} if row["step"] <= 2 else {0.0, 1.0})  # the loop has told the step
        pair = [row[f"architecture/parent/right~{column}/2"] for column in ("left", "right")]
        assert sum(pair) == pytest.approx(1) and pair[0] == pytest.approx(0.5, abs=0.01)


def test_penalties_are_recorded_beside_the_losses(train_tiny):
    entropy = ["architecture=dselect_k", "architecture.entropy=0.5"]
    rows, _ = recorded(train_tiny(*MLP, *entropy))
    plain, _ = recorded(train_tiny(*MLP, "architecture=dselect_k", folder="plain"))
    first = rows[0]
    assert first["architecture/penalty/left"] == pytest.approx(0.5 * 2 * math.log(4), rel=1e-2)  # nothing is decided
    assert first["loss/left"] == plain[0]["loss/left"] and "architecture/penalty/left" not in plain[0]
    assert first["loss/total"] == pytest.approx(first["loss/left"] + first["loss/right"])


def test_the_size_of_experts_gates_and_heads(train_tiny):
    _, summary = recorded(train_tiny(*MLP, "architecture=mmoe"))
    gate = 64 * 3
    assert summary["parameters"] == {
        "shared": 3 * (ONE + BIASES),
        "readers": {"left": gate + 3, "right": gate + 3},
        "heads": {"left": HEAD + 10, "right": HEAD + 10},
        "total": 3 * (ONE + BIASES) + 2 * (gate + 3 + HEAD + 10),
    }
    assert summary["multiply_adds"] == 3 * ONE + 2 * (gate + 3 * 96 + HEAD)  # the mixture as well


def test_a_learning_rate_for_what_decides_the_sharing(train_tiny, caplog):
    rows, _ = recorded(train_tiny(*MLP, "architecture=mmoe", "optimizer.sharing.lr=0.5", "scheduler=constant"))
    assert rows[0]["lr/sharing"] == 0.5 and rows[0]["lr/heads"] == 0.002
    rows, _ = recorded(train_tiny(*MLP, "architecture=mmoe", folder="plain"))
    assert "lr/sharing" not in rows[0]
    assert "optimizer.sharing" not in caplog.text
    rows, _ = recorded(train_tiny(*MLP, "optimizer.sharing.lr=0.5", folder="hard"))
    assert "lr/sharing" not in rows[0]
    assert "the architecture has no parameter that decides the sharing" in caplog.text
