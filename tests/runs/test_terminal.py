import json
from itertools import combinations

import numpy as np
import pytest

from mtl.descriptions import describe
from mtl.runs.figures import CELL, LINES, draw_run, heat_map, spread
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


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The figure of a run of 20 tasks with long names and 190 pairs, as it was saved, and the boxes of texts in it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    names = [f"wearing_necktie_{i}" for i in range(20)]
    losses = {f"loss/{name}": 1.0 + 0.01 * i for i, name in enumerate(names)}
    pairs = {f"conflict/cos/{a}~{b}": 0.001 * (i - 95) for i, (a, b) in enumerate(combinations(names, 2))}
    weights = dict.fromkeys((f"weight/{name}" for name in names), 1.0)
    rows = [{"split": split, "step": step, "epoch": 0, **losses} for step in (1, 2) for split in ("train", "val")]
    folder, kept = tmp_path_factory.mktemp("twenty"), []
    write_rows(folder, *(row | (pairs | weights if row["split"] == "train" else {}) for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, *_, **__: kept.append(self))
        draw_run(folder)
    (figure,) = kept
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)  # which decides where everything stands
    # without the lines that lead from a curve to its name
    return figure, lambda texts: [Text.get_window_extent(text, renderer) for text in texts]


def test_names_of_twenty_tasks_stand_beside_the_curves_and_never_on_each_other(drawn):
    figure, boxes = drawn
    losses, _, weights, cosines, matrix, _ = figure.axes
    assert [len(axes.texts) for axes in (losses, weights, cosines)] == [20, 20, LINES]
    assert all(axes.get_legend() is None for axes in figure.axes) and len(figure.legends) == 1
    for named in (losses.texts, weights.texts, cosines.texts, matrix.get_xticklabels(), matrix.get_yticklabels()):
        for a, b in combinations(boxes(named), 2):
            assert not a.shrunk(0.9, 0.9).overlaps(b.shrunk(0.9, 0.9))
    for axes in (losses, weights, cosines):
        right = axes.get_window_extent().x1
        assert all(right < box.x0 and box.x1 <= figure.bbox.x1 for box in boxes(axes.texts))


def test_the_cosines_are_those_of_the_lowest_pairs(drawn):
    cosines = drawn[0].axes[3]
    assert f"the {LINES} lowest of 190 pairs" in cosines.get_title()
    ends = sorted(line.get_ydata()[-1] for line in cosines.lines if not line.get_label().startswith("_"))
    assert ends == pytest.approx([0.001 * (i - 95) for i in range(LINES)])


def test_labels_move_as_little_as_any_that_do_not_overlap():
    from scipy.optimize import minimize

    heights, gap = [0.1, 0.5, 0.5, 0.52, 0.9, 1.0], 0.08
    apart = [{"type": "ineq", "fun": lambda x, i=i: x[i + 1] - x[i] - gap} for i in range(5)]
    moves = minimize(lambda x: ((x - heights) ** 2).sum(), heights, bounds=[(0, 1)] * 6, constraints=apart)
    assert spread(heights, gap) == pytest.approx(moves.x, abs=1e-3) and spread([], gap) == []
    assert spread([0.2, 0.6], gap) == [0.2, 0.6]
