"""mtl-report from the command line."""

import csv
import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from support.report_runs import accuracies, write_run, write_study
from support.wandb_run import recorded_run

from mtl.report.command import report

ROOT = Path(__file__).parents[2]


def test_a_study_from_the_command_line(tmp_path, command):
    study = write_study(tmp_path / "study")
    done = command("mtl.report.command", "study", "--tune", "optimizer.lr", "weighting.weights")
    assert done.returncode == 0, done.stderr
    assert (study / "report.md").read_text() in done.stdout
    lines = done.stdout.splitlines()
    (header,) = [line for line in lines if line.startswith("|") and "selected on validation" in line]
    assert "left/accuracy ↑" in header and "Δm by metric, % ↓" in header and "Δm by task, % ↑" in header
    (naive,) = [line for line in lines if line.startswith("| Naive") and "lr 0.2" in line]
    assert "0.730 ± 0.025" in naive and "1.00" in naive
    assert "A mean rank depends on the set of rows" in done.stdout
    table = list(csv.DictReader((study / "results.csv").open()))
    assert len(table) == 42 and {line["selected"] for line in table} == {"True", "False"}
    assert {line["optimizer.lr"] for line in table} == {"0.1", "0.2"}
    (row,) = [
        r for r in json.loads((study / "results.json").read_text())["comparisons"][0]["rows"] if r["label"] == "MGDA"
    ]
    assert row["difference"]["left/accuracy"]["count"] == 3 and row["reference"] == "Naive"


def test_it_loads_no_torch(tmp_path):
    write_study(tmp_path / "study", seeds=1)
    code = (
        "import sys; from pathlib import Path; from mtl.report.command import report; "
        f"report([Path({str(tmp_path / 'study')!r})]); "
        "print([name for name in ('torch', 'hydra', 'wandb', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "mtl-report: nowhere does not exist: give the folder of a run, or of a sweep."),
        (["file"], "mtl-report: file is a file: give the folder of a run, or of a sweep."),
        (["empty"], "mtl-report: empty holds no run: no folder in it has a status.json or a metrics.jsonl."),
        (["run", "--tune", "seed"], "mtl-report: --tune seed: no two runs differ in it; they differ in nothing."),
        (["run", "--out", "file/inside"], "mtl-report: --out file/inside cannot be written (Not a directory)"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, command, arguments, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "run", test=accuracies(0.5, 0.5))
    done = command("mtl.report.command", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(message) and len(done.stderr.splitlines()) == 1


def test_runs_that_have_not_come_to_an_end(tmp_path):
    write_run(tmp_path / "a" / "0", status="running", rows=1)
    (tmp_path / "a" / "1").mkdir()
    (tmp_path / "a" / "1" / "status.json").write_text('{"status": "failed", "error": "no | more"}')
    text, folder = report([tmp_path / "a"])
    assert folder == tmp_path / "a" and (folder / "report.html").exists()
    assert "is running, or was killed" in text and "is failed: no | more" in text


def test_several_paths_meet_in_the_folder_above_them(tmp_path):
    for name, strategy in (("x", "naive"), ("y", "mgda")):
        write_run(tmp_path / name / "0", strategy=strategy, test=accuracies(0.5, 0.5))
    text, folder = report([tmp_path / "x", tmp_path / "y" / "0", tmp_path / "y"])
    assert folder == tmp_path and "Digits: 2 runs (2 finished)" in text
    assert report([tmp_path / "x"], tmp_path / "out")[1] == tmp_path / "out"


def test_a_configuration_that_cannot_be_read_or_holds_a_date(tmp_path):
    write_run(tmp_path / "0", test=accuracies(0.5, 0.5))
    (tmp_path / "0" / "config.yaml").write_text("a: [1,")
    write_run(tmp_path / "1", test=accuracies(0.5, 0.5), data={"since": date(2024, 1, 1), "x": []})
    write_run(tmp_path / "2", test=accuracies(0.5, 0.5), data={"since": date(2025, 1, 1), "x": []})
    text, _ = report([tmp_path], tune=["data.since"])
    assert "0 has no readable config.yaml" in text and "since 2024-01-01" in text


@pytest.mark.slow
def test_the_run_of_a_real_training(train_tiny):
    for task in ("left", "right"):
        train_tiny(f"tasks=[{task}]", folder=f"sweep/{task}")
    train_tiny("strategy=mgda", folder="sweep/mgda")
    train_tiny("strategy=naive", folder="sweep/naive")
    folder = Path(train_tiny("strategy=detached", "weighting=log", folder="sweep/log")).parent
    text, _ = report([folder])
    labels = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert {"left alone", "right alone", "Naive", "MGDA", "Log"} <= set(labels)
    (naive,) = [
        r for r in json.loads((folder / "results.json").read_text())["comparisons"][0]["rows"] if r["label"] == "Naive"
    ]
    test = json.loads((folder / "naive" / "summary.json").read_text())["test"]
    assert naive["test"]["left/accuracy"]["mean"] == test["left/accuracy"]
    assert naive["delta_m"]["by_metric_lower_is_better"] is not None


def test_the_report_as_a_wandb_run(tmp_path, monkeypatch):
    import wandb

    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    study = write_study(tmp_path / "study", seeds=1)
    text, folder = report([study], wandb=True)
    wandb.teardown()
    run = recorded_run(folder)
    assert run.job_type == "report" and run.project == "mtl" and run.exit_code == 0
    assert f"W&B run {run.id}: offline" in text
    logged = {name for row in run.rows for name in row}
    assert any(name.startswith("report") for name in logged) and any("results/Digits" in name for name in logged)
    (page,) = run.folder.glob("files/media/html/*.html")
    assert page.stat().st_size > 1000
    panels = {name.removesuffix("._type") for row in run.rows for name, kind in row.items() if kind == "plotly-file"}
    assert {f"figures/Digits/{name}" for name in ("tradeoffs", "cost", "curves", "cosines", "weights")} <= panels
    for file in run.folder.glob("files/media/plotly/**/*.plotly.json"):  # W&B's own Plotly may not know typed arrays
        assert "bdata" not in file.read_text() and json.loads(file.read_text())["data"]
