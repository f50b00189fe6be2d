"""The study experiments/cost: its steps compute what they are said to, and its command measures and says it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

STUDY = Path(__file__).parents[2] / "experiments" / "cost"


@pytest.fixture(autouse=True)
def study(monkeypatch):
    """Its modules can be imported by their plain names, in the test alone."""
    monkeypatch.syspath_prepend(str(STUDY))
    yield
    for name in [name for name, module in sys.modules.items() if str(STUDY) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def gradients(problem, step):
    problem.model.zero_grad()
    step()
    return [parameter.grad.clone() for parameter in problem.model.parameters()]


@pytest.mark.parametrize("heads", ["linear", "dense"])
def test_by_hand_is_the_same_step(heads):
    from problems import problem
    from steps import core_steps

    own = problem("test_resnet-32", heads, 2, 4)
    found = {name: gradients(own, step) for name, step in core_steps(own).items()}
    for row in ("plain PyTorch: sum of losses", "by hand: detached", "detached", "detached, conflict metrics"):
        torch.testing.assert_close(found[row], found["naive"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found["MGDA, features"], found["by hand: MGDA, features"], rtol=1e-3, atol=1e-5)
    with pytest.raises(AssertionError):  # the control: another direction
        torch.testing.assert_close(found["MGDA, features"], found["naive"], rtol=1e-3, atol=1e-5)


def test_the_layer_is_the_strategies_step():
    from layer import layer_step, rules
    from problems import problem
    from steps import balanced, ours, sum_of_losses

    own = problem("test_resnet-32", "linear", 3, 4)
    found = gradients(own, layer_step(own, None)), gradients(own, layer_step(own, rules()["UPGrad"]))
    plain, upgrad = (gradients(own, step) for step in (sum_of_losses(own), ours(own, balanced(own, rules()["UPGrad"]))))
    torch.testing.assert_close(found, (plain, upgrad), rtol=1e-3, atol=1e-5)
    with pytest.raises(AssertionError):  # the control: another direction
        torch.testing.assert_close(plain, upgrad, rtol=1e-3, atol=1e-5)


def test_a_cell_has_every_rows_ratio():
    from measure import measure
    from results import ratio

    arguments = dict(trunk="scale", heads="mlp", tasks=4, batch=64, groups=["core", "rules", "parameters"])
    cell = measure("steps", arguments | {"without": ["GradDrop*"]}, seconds=0.2)
    rows = cell["rows"]
    assert ratio(rows, "naive") == (1, 1, 1)
    for name in rows:
        low, middle, high = ratio(rows, name)
        assert 0 < low <= middle <= high, name
        assert sum(value is not None for value in rows[name]["seconds"]) >= 3, name
    assert rows["detached"]["peak"] < rows["naive"]["peak"]  # one head's graph, not four
    assert rows["plain PyTorch: sum of losses"]["peak"] == pytest.approx(rows["naive"]["peak"], rel=0.01)
    assert {"UPGrad, features", "PCGrad, parameters", "detached, audit"} < set(rows) and "GradDrop, rows" not in rows


def test_the_layers_cells_make_its_tables():
    from measure import measure
    from tables import document

    problem = dict(trunk="scale", heads="mlp", tasks=2, batch=8)
    cells = {kind: measure(kind, problem, seconds=0) for kind in ("layer", "lightning")}
    assert set(cells["layer"]["rows"]) > {"mtl.Balance(MGDA())", "mtl.Balance(UPGrad())", "mtl.Balance(None)"}
    assert all(min(times) > 0 for times in cells["layer"]["alone"].values()) and len(cells["layer"]["alone"]) == 6
    assert {"mtl.Balance(UPGrad())", "TorchJD's recipe"} < set(cells["lightning"]["rows"])
    assert min(min(row["seconds"]) for row in cells["lightning"]["rows"].values()) > 0
    tables = document(cells)
    for words in ("| the layer over the sum of the losses, K ≤ 16 |", "| by hand, K = 2 | Lightning, K = 2 |"):
        assert words in tables


def test_a_peer_that_fails_costs_its_row_and_one_of_ours_the_cell():
    from timing import interleaved

    def fail():
        raise RuntimeError("no\nmore")

    model = torch.nn.Linear(2, 2)
    rows = interleaved({"naive": lambda: None, "LibMTL MGDA": fail}, model, seconds=0)
    assert rows["LibMTL MGDA"] == {"failed": "RuntimeError: no"} and len(rows["naive"]["seconds"]) >= 3
    with pytest.raises(RuntimeError):
        interleaved({"naive": lambda: None, "detached": fail}, model, seconds=0)


def test_the_parts_of_a_step_come_to_the_whole():
    from measure import measure
    from parts import PARTS

    found = measure("parts", dict(trunk="scale", heads="mlp", tasks=2, batch=8), seconds=0)["parts"]
    missing = {"detached, conflict metrics": {"rule", "direction"}, "MGDA, features": {"conflict metrics"}}
    for step, parts in found.items():
        assert {part for part in PARTS if max(parts[part]) == 0} == missing[step]
        for times in zip(*(parts[part] for part in [*PARTS, "the rest", "the whole step"]), strict=True):
            assert sum(times[:-1]) == pytest.approx(times[-1])


def test_the_command_writes_what_it_has_measured(monkeypatch, tmp_path, capsys):
    import benchmark
    from cells import Cell, steps

    cells = [steps("scale", "binary", tasks, 8, seconds=0.1) for tasks in (1, 2)]
    cells += [Cell("heads-alone-b8", "heads_alone", dict(tasks=3, batch=8), 0.1), Cell("broken", "steps", {}, 0)]
    monkeypatch.setattr(benchmark, "short", lambda: cells)
    monkeypatch.setattr(benchmark, "in_a_process", lambda function, *arguments: function(*arguments))
    assert benchmark.main(["--out", str(tmp_path)]) == 1  # one cell is broken
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["cells"]) == [cell.name for cell in cells]
    tables = (tmp_path / "tables.md").read_text()
    assert tables in capsys.readouterr().out
    for words in ("| detached over naive | ≤ 1.02 |", "| 40 linear heads, packed over looped |", "- broken: TypeError"):
        assert words in tables
    assert (tmp_path / "cost.png").stat().st_size > 10_000


def test_a_goal_is_met_or_not():
    from goals import Goal
    from results import Spread

    found = {"a": Spread(1.0, 1.01, 1.02), "b": Spread(1.0, 1.024, 1.3)}
    assert Goal("x", 1.02, found).row() == "| x | ≤ 1.02 | 1.02 | 1.02 (1.00–1.30) | b | yes |"
    assert "| within the spread in 1 of 2 |" in Goal("x", 1.01, found).row()  # b's lower quartile is on the right side
    assert (
        "| **no** in 1, within the spread in 1 of 2 |"
        in Goal("x", 0.99 + 0.005, found | {"a": Spread(0.9, 1.2, 1.2), "b": Spread(1.1, 1.2, 1.3)}).row()
    )
    assert "| 1.01 (1.00–1.02) | a | within the spread in 1 of 2 |" in Goal("x", 1.02, found, at_least=True).row()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "start"], "--only start matches no cell; the closest of 37 are start-up, "),
        (["--threads", "0"], "--threads 0 must be 1 or more."),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(arguments, words, capsys):
    import benchmark

    assert benchmark.main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith(words) and output.err.count("\n") == 1 and not output.out


def test_the_cells_have_names_of_their_own():
    from cells import chosen, long, on_gpu, short

    for cells in (short(), long()):
        assert len({cell.name for cell in cells}) == len(cells)
        assert 0 < len(chosen(["resnet18-64-*"], cells)) < len(cells)
    assert {cell.kind for cell in on_gpu(short())} == {"steps", "heads_alone", "parts", "bf16"}


def test_the_study_is_also_a_configuration(train_tiny):
    folder = train_tiny("+experiment=cost", "strategy=mgda")
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-3])
    assert row["split"] == "train" and row["time/step"] > 0 and row["memory/peak"] > 0


@pytest.mark.slow
def test_a_cell_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, STUDY / "benchmark.py", "--only", "heads-alone-b32", "high-water-*", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    peaks = {cell["row"]: cell["bytes"] for cell in cells.values() if cell["kind"] == "high_water"}
    assert peaks["detached"] < peaks["naive"]
