import json

import numpy as np
import pytest

from mtl.descriptions import describe
from mtl.runs.figures import CELL, draw_run, heat_map
from mtl.runs.files import read_metrics
from mtl.runs.terminal import conflict_table, overview, task_table


def write_run(folder, status="finished", overrides=(), test=None, error=None):
    folder.mkdir(parents=True)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {o}\n" for o in overrides) or "[]\n")
    content = {"status": status} | ({"error": error} if error else {})
    (folder / "status.json").write_text(json.dumps(content))
    if test:
        (folder / "summary.json").write_text(json.dumps({"test": test}))


def write_rows(folder, *rows, tail=""):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def train_row(step, cos, **more):
    return {"step": step, "epoch": 0.1, "split": "train", "loss/a": 1.0, "loss/b": 2.0, "loss/total": 3.0,
            "conflict/cos/a~b": cos, "conflict/cos_mean": cos, **more}  # fmt: skip


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    write_rows(tmp_path, train_row(1, 0.5), {"split": "val", "step": 1}, tail='{"step": 2, "spl')
    assert [row["step"] for row in read_metrics(tmp_path, "train")] == [1]


def test_the_task_table_has_a_line_a_task_and_a_dash_where_a_metric_is_another_tasks():
    text = task_table(
        "step 3: val", {"loss/a": 0.5, "loss/b": 1.25, "loss/total": 1.75, "a/accuracy": 1.0, "b/mae": 3.0}
    )
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["step", "3:", "val", "loss", "accuracy", "mae"]
    assert lines[2:] == [["a", "0.5000", "1.0000", "–"], ["b", "1.2500", "–", "3.0000"]]


def test_conflict_is_averaged_over_the_run_and_its_last_quarter(tmp_path):
    write_rows(tmp_path, *(train_row(step, cos) for step, cos in enumerate([1.0, 0.0, 0.0, -0.5])))
    lines = [line.split() for line in conflict_table(tmp_path).splitlines()]
    assert ["cos_mean", "0.1250", "-0.5000", "0.0000", *describe("conflict/cos_mean").words.split()] in lines
    assert "conflict.tolerance=0.05. " in conflict_table(tmp_path)
    (tmp_path / "config.yaml").write_text("conflict: {tolerance: 0.2}")
    assert "conflict.tolerance=0.2. " in conflict_table(tmp_path)
    write_rows(tmp_path, {"split": "train", "step": 1, "loss/a": 1.0})
    assert conflict_table(tmp_path) is None


def test_of_many_pairs_those_with_the_lowest_cosines_are_shown(tmp_path):
    cosines = {f"conflict/cos/{i}~9": 0.1 * i for i in range(9)}
    write_rows(tmp_path, {"split": "train", "step": 1, **cosines})
    shown = [line.split()[0] for line in conflict_table(tmp_path).splitlines() if line.startswith("cos/")]
    assert shown == [f"cos/{i}~9" for i in range(6)]
    assert "The 6 lowest of 9 cosines are shown." in conflict_table(tmp_path)


def test_the_overview_names_what_differs_and_what_failed(tmp_path):
    write_run(tmp_path / "0", overrides=["seed=0", "strategy=naive"], test={"loss/a": 0.25})
    write_run(tmp_path / "1", overrides=["seed=1", "strategy=naive"], status="failed", error="RuntimeError: no")
    write_run(tmp_path / "10", overrides=["seed=2", "strategy=naive"], status="running")
    lines = overview(tmp_path).splitlines()
    assert [line.split() for line in lines[2:5]] == [
        ["0", "seed=0", "finished", "0.2500"], ["1", "seed=1", "failed", "–"], ["10", "seed=2", "running", "–"],
    ]  # fmt: skip
    assert lines[5:] == ["job 1: RuntimeError: no"]
    assert overview(tmp_path / "nothing") is None


def test_a_heat_map_is_blue_where_tasks_agree_and_red_where_they_fight():
    pixels = heat_map([[1.0, -0.8], [float("nan"), 1.0]])
    size = CELL
    assert pixels.shape == (2 * size, 2 * size, 3) and pixels.dtype == np.uint8
    blue, red, unknown = pixels[0, 0].astype(int), pixels[0, -1].astype(int), pixels[-1, 0].astype(int)
    assert blue[2] > blue[0] + 50 and red[0] > red[2] + 50 and unknown[0] == unknown[1] == unknown[2]


@pytest.mark.parametrize("tasks", [1, 2, 14])
def test_the_picture_is_drawn_also_with_gaps(tmp_path, tasks):
    names = [f"t{i}" for i in range(tasks)]
    losses = {f"loss/{name}": 1.0 for name in names}
    pairs = {"conflict/cos/t0~t1": -0.3} if tasks > 1 else {}
    write_rows(
        tmp_path,
        {"split": "train", "step": 1, "epoch": 0, **losses, **pairs},
        {"split": "train", "step": 2, "epoch": 0, **losses, "loss/t0": None},
        {"split": "val", "step": 2, "epoch": 0, **losses, "t0/accuracy": 0.5},
    )
    from matplotlib.image import imread

    pixels = imread(draw_run(tmp_path))
    assert pixels.shape[0] > 500 and pixels.std() > 0.05
