"""The record and its copy in W&B, row by row; no part of wandb is mocked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.recording import CONFIG, INF, NAN, not_json, rows_of, settings, tear_down
from support.wandb_run import recorded_run

from mtl.config import load
from mtl.runs.files import write_json, write_status
from mtl.runs.tracker import Tracker


@pytest.fixture(scope="module")
def mirrored(isolated_module: None, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """An offline run with every kind of row, an image and a summary."""
    folder = tmp_path_factory.mktemp("mirrored")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    told = settings("offline", group="a-sweep", run_name="strategy=naive,seed=1", tags=["digits", "t" * 70])
    with Tracker(folder, told, CONFIG) as tracker:
        tracker.log("train", 1, 0.25, {"loss/left": 0.5, "conflict/cos/left~right": -0.1, "lr": 1e-3})
        tracker.log("train", 2, 0.5, {"loss/left": NAN, "conflict/cos/left~right": INF, "lr": -INF})
        tracker.log("val", 2, 0.5, {"loss/left": 0.75, "left/accuracy": 0.5})
        tracker.image("conflict/cos", 3, pixels)
        tracker.log("train", 3, 0.75, {"loss/left": 0.25})
        tracker.log("test", 2, 0.5, {"loss/left": 0.625})
        tracker.summarise({"steps": 3, "test": {"loss/left": 0.625}, "best": NAN, "each": [INF, 1.0]})
    tear_down()
    return SimpleNamespace(folder=folder, run=recorded_run(folder), rows=rows_of(folder), pixels=pixels)


def test_every_row_of_the_record_is_in_wandb_under_its_split(mirrored: SimpleNamespace) -> None:
    assert [(row["split"], row["step"], row["epoch"]) for row in mirrored.rows] == [
        ("train", 1, 0.25), ("train", 2, 0.5), ("val", 2, 0.5), ("train", 3, 0.75), ("test", 2, 0.5),
    ]  # fmt: skip
    scalars = [row for row in mirrored.run.rows if "conflict/cos.path" not in row]
    for row, mirror in zip(mirrored.rows, scalars, strict=True):
        metrics = {name: value for name, value in row.items() if name not in ("step", "epoch", "split")}
        shown = {name: value for name, value in mirror.items() if not name.startswith("_")}
        finite = {name: value if math.isfinite(value) else None for name, value in shown.items()}
        named = {f"{row['split']}/{name}": value for name, value in metrics.items()}
        assert finite == {**named, "trainer/step": row["step"], "trainer/epoch": row["epoch"]}


def test_the_step_is_the_x_axis_of_everything(mirrored: SimpleNamespace) -> None:
    assert mirrored.run.axes == {"*": "trainer/step"}
    assert mirrored.run.column("trainer/step") == [1, 2, 2, 3, 3, 2]


def test_the_heat_map_is_an_image_at_its_step_with_its_own_colours(mirrored: SimpleNamespace) -> None:
    from matplotlib.image import imread

    (row,) = [row for row in mirrored.run.rows if "conflict/cos.path" in row]
    assert (row["conflict/cos._type"], row["trainer/step"]) == ("image-file", 3)
    png = mirrored.run.folder / "files" / row["conflict/cos.path"]
    assert np.array_equal(np.rint(imread(png) * 255).astype(np.uint8), mirrored.pixels)


def test_what_tells_the_runs_of_a_sweep_apart_is_stored(mirrored: SimpleNamespace) -> None:
    run = mirrored.run
    assert (run.project, run.group, run.job_type) == ("mtl", "a-sweep", "train")
    assert run.name == "strategy=naive,seed=1"
    assert run.tags == ["digits", "t" * 64], "a longer tag is an error in W&B"


def test_the_configuration_is_stored(mirrored: SimpleNamespace) -> None:
    assert {key: mirrored.run.config[key] for key in CONFIG} == CONFIG


def test_what_json_has_no_number_for_is_null_in_the_record_and_itself_in_wandb(
    mirrored: SimpleNamespace,
) -> None:
    row = mirrored.rows[1]
    assert [row["loss/left"], row["conflict/cos/left~right"], row["lr"]] == [None, None, None]
    assert repr(mirrored.run.column("train/loss/left")) == "[0.5, nan, 0.25]"
    assert mirrored.run.column("train/conflict/cos/left~right") == [-0.1, INF]


def test_the_summary_is_strict_json_and_in_wandb(mirrored: SimpleNamespace) -> None:
    summary = json.loads((mirrored.folder / "summary.json").read_text(), parse_constant=not_json)
    assert summary["best"] is None and summary["each"] == [None, 1.0]
    assert mirrored.run.summary["steps"] == 3 and mirrored.run.summary["test"] == {"loss/left": 0.625}


def test_training_shows_a_heat_map_at_each_evaluation_and_stores_the_resolved_config(tmp_path: Path) -> None:
    from mtl.train import train

    few = ["trainer.max_steps=4", "trainer.val_every=2", "trainer.log_every=1", "trainer.limit_val_batches=1"]
    cfg = load(["tracker.mode=offline", "conflict.every=1", "device=cpu", *few])
    train(cfg, tmp_path)
    tear_down()
    run = recorded_run(tmp_path)
    images = [row for row in run.rows if "image-file" in row.values()]
    assert [row["trainer/step"] for row in images] == [2, 4]
    assert all(any(name.startswith("train/conflict/cos.") for name in row) for row in images)
    (panels,) = [row for row in run.rows if "plotly-file" in row.values()]
    shown = {name.removesuffix("._type") for name, kind in panels.items() if kind == "plotly-file"}
    assert shown == {"figures/cosines", "figures/conflict", "figures/norms", "figures/weights"}
    assert panels["trainer/step"] == 4
    drawn = json.loads((run.folder / "files" / panels["figures/cosines.path"]).read_text())
    cosines = [row["conflict/cos/left~right"] for row in rows_of(tmp_path) if "conflict/cos/left~right" in row]
    assert [frame["data"][0]["z"][0][1] for frame in drawn["frames"]] == pytest.approx(cosines)
    assert len(run.column("train/conflict/cos/left~right")) == 4
    assert set(run.axes.values()) == {"trainer/step"} and run.exit_code == 0
    assert run.config["trainer"]["max_steps"] == 4
    assert "${" not in json.dumps({key: run.config[key] for key in cfg})


def test_status_says_how_a_run_stands_and_the_first_line_of_its_error(tmp_path: Path) -> None:
    write_status(tmp_path, "running")
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "running"
    write_status(tmp_path, "failed", "\nthe first\nthe second")
    told = json.loads((tmp_path / "status.json").read_text())
    assert (told["status"], told["error"]) == ("failed", "the first")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"], "no temporary file stays"


def test_a_json_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_json(tmp_path / "it.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "it.json", {"new": object()})
    assert json.loads((tmp_path / "it.json").read_text()) == {"old": 1}
