"""The command experiments/gpu: every part of it, in its tiny form on the CPU."""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
STUDY = EXPERIMENTS / "gpu"


@pytest.fixture(autouse=True)
def study(monkeypatch):
    """Its modules, and those of the study of costs, can be imported by their plain names, in the test alone."""
    for folder in (EXPERIMENTS / "cost", STUDY):
        monkeypatch.syspath_prepend(str(folder))
    yield
    for name, module in list(sys.modules.items()):
        if str(EXPERIMENTS) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


def test_every_part_runs_and_is_in_the_tables(monkeypatch, tmp_path, capsys):
    import gpu
    import ranks

    def here(part, device, tiny, limit):
        gpu.work(part, device, tiny, tmp_path / part)
        return [json.loads(line) for line in (tmp_path / part).read_text().splitlines()[1:]]

    def one_process(name, device, backend):  # two are a matter of the slow test
        own = ranks.problem(*ranks.PROBLEM, device)
        return ranks.flat_gradient(ranks.Engine(own.model, own.tasks), own, ranks.strategy(name, own), slice(None))

    monkeypatch.setattr(gpu, "run", here)
    monkeypatch.setattr(ranks, "in_two_processes", one_process)
    assert gpu.main(["--device", "cpu", "--tiny", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["parts"]) == list(gpu.LIMITS) and sum(gpu.LIMITS.values()) <= 600
    assert all(row["ok"] for rows in results["parts"].values() for row in rows)
    rows = {part: {row["name"]: row for row in rows} for part, rows in results["parts"].items()}
    assert rows["parity"]["detached, float64"]["relative distance"] < 1e-12
    assert rows["parity"]["detached, bf16"]["relative distance"] > 1e-4  # the control: it is another arithmetic
    assert {"naive GiB", "detached ms", "TorchJD / naive"} < set(*[rows["speed"]["test_resnet-32 linear K=2 batch 2"]])
    table = (tmp_path / "results.md").read_text()
    assert table in capsys.readouterr().out and table.count("\n## ") == len(gpu.LIMITS) and "**no**" not in table


def hanging(part, device, tiny, path):
    with path.open("w") as file:
        print(json.dumps(["quick", "slow", "never"]), file=file)
        print(json.dumps({"name": "quick", "ok": True}), file=file, flush=True)
        time.sleep(60)


def ending(part, device, tiny, path):
    os._exit(3)


def test_a_part_that_hangs_or_dies_costs_itself_only(monkeypatch):
    import gpu

    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(fork, "set_forkserver_preload", lambda names: None, raising=False)
    monkeypatch.setattr(gpu.multiprocessing, "get_context", lambda method: fork)
    monkeypatch.setattr(gpu, "work", hanging)
    quick, *others = gpu.run("smoke", "cpu", True, limit=1)
    assert quick == {"name": "quick", "ok": True}
    reason = "the part's limit of 1 s was over"
    assert others == [{"name": name, "ok": False, "failed": reason} for name in ("slow", "never")]
    monkeypatch.setattr(gpu, "work", ending)
    assert gpu.run("smoke", "cpu", True, limit=20) == [
        {"name": "smoke", "ok": False, "failed": "the process ended with 3"}
    ]


def test_a_row_that_fails_keeps_its_reason():
    import gpu

    def fail():
        raise RuntimeError("no kernel\nfor this")

    assert gpu.attempt(fail) | {"seconds": 0} == {"ok": False, "failed": "RuntimeError: no kernel", "seconds": 0}


def test_a_device_that_is_not_there_is_answered_in_one_sentence(tmp_path, capsys):
    import gpu

    assert gpu.main(["--device", "xpu", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("--device=xpu is not on this machine; there are ")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_on_one_device():
    import ranks

    row = ranks.two("MGDA", "cpu", ["gloo"])
    assert row["ok"] and row["backend"] == "gloo"
