"""What gates and α came to, from curves with known numbers."""

import base64

import numpy as np
import pytest
from support.report_runs import write_sharing as write

from mtl.report import figures
from mtl.report.compare import compare
from mtl.report.runs import find_runs
from mtl.report.sharing import COLUMNS
from mtl.report.tables import tables


def numbers(array):
    """The values of a typed array as a figure has it."""
    return np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"]) if isinstance(array, dict) else array


def described(root):
    (comparison,) = compare(find_runs([root]))
    found = [table for table in tables(comparison) if "decided" in table.title]
    return comparison, found[0].lines if found else None


def gates(weights, entropy):
    pairs = {f"gate/left/{i}": (0.5, weight) for i, weight in enumerate(weights)}
    return pairs | {"gate_entropy/left": (1.0, entropy)}


def test_experts_are_sorted_in_each_seed_before_the_mean(tmp_path):
    """Of one seed the first expert leads, of the other the last: the mean by number would say that none does."""
    mmoe = {"_target_": "mtl.architectures.MMoE"}
    write(tmp_path / "0", 0, gates((0.8, 0.15, 0.05), 0.6), mmoe)
    write(tmp_path / "1", 1, gates((0.0, 0.1, 0.9), 0.4), mmoe)
    _, lines = described(tmp_path)
    assert lines == [["Detached", "left", "0.85 0.12 0.03", "–", "0.50", "1.10", "–"]] and len(lines[0]) == len(COLUMNS)


def test_the_part_of_a_tasks_own_experts_and_how_many_are_selected(tmp_path):
    own = gates((0.1, 0.2, 0.7), 0.8) | {"selected/left": (3.0, 2.0)}
    write(tmp_path / "0", 0, own, {"_target_": "mtl.architectures.CGC", "own": 2})
    assert described(tmp_path)[1] == [["Detached", "left", "0.70 0.20 0.10", "0.30", "0.80", "1.10", "2.00"]]


def test_one_gate_of_all_tasks(tmp_path):
    found = {"gate/0": (0.5, 0.25), "gate/1": (0.5, 0.75), "gate_entropy": (0.7, 0.56)}
    write(tmp_path / "0", 0, found, {"_target_": "mtl.architectures.OMoE"})
    assert described(tmp_path)[1] == [["Detached", "all", "0.75 0.25", "–", "0.56", "0.69", "–"]]


def test_alpha_of_the_own_column_and_of_the_others(tmp_path):
    pairs = [(task, column) for task in ("left", "right") for column in ("left", "right")]
    found = {f"alpha/{task}~{column}/1": (0.5, 0.9 if task == column else 0.2) for task, column in pairs}
    found |= {"alpha_last/left/0": (0.5, 0.7), "alpha_last/left/1": (0.5, 0.4), "alpha_last/right/0": (0.5, 0.2)}
    write(tmp_path / "0", 0, found | {"alpha_last/right/1": (0.5, 1.1)}, {"_target_": "mtl.architectures.CrossStitch"})
    assert [line[1:3] for line in described(tmp_path)[1]] == [["left", "α 0.80, 0.30"], ["right", "α 1.00, 0.20"]]


def test_runs_without_gates_have_no_such_table(tmp_path):
    write(tmp_path / "0", 0, {}, {"_target_": "mtl.architectures.Hard"})
    assert described(tmp_path)[1] is None


def test_the_page_draws_gates_of_one_seed_and_everything_else_of_all(tmp_path):
    for seed, weight in enumerate((0.9, 0.1)):
        write(tmp_path / str(seed), seed, gates((weight, 1 - weight), weight), {"_target_": "mtl.architectures.MMoE"})
    runs = described(tmp_path)[0]
    drawn = {trace.name: trace for trace in (*figures.gates(runs).data, *figures.entropies(runs).data) if trace.name}
    assert numbers(drawn["left/0"].y)[-1] == pytest.approx(0.9)
    assert numbers(drawn["left"].y)[-1] == pytest.approx(0.5)
