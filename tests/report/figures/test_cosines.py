"""The cosine matrix over training."""

import json

import numpy as np
import pytest
from support.report_runs import accuracies, write_run

from mtl.report import figures
from mtl.report.figures.cosines import matrices_of


def write(folder, cosines):
    """A run that has logged these cosines of left and right, None where the pair was not measured."""
    run = write_run(folder, test=accuracies(0.5, 0.5), rows=0)
    rows = [{"split": "train", "step": 10 * i, "conflict/cos/left~right": v} for i, v in enumerate(cosines, 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return figures.read(folder)


def test_a_matrix_is_the_mean_of_the_steps_since_the_last_one(tmp_path):
    runs = write(tmp_path / "0", [0.1, 0.3, -0.5, -0.7, 0.0, 0.2])
    steps, matrices = matrices_of(runs.rows[0], 3)
    assert steps == [20, 40, 60]
    assert matrices[:, 0, 1] == pytest.approx([0.2, -0.6, 0.1]) and (matrices == matrices.transpose(0, 2, 1)).all()
    assert (matrices[:, [0, 1], [0, 1]] == 1).all()


def test_a_pair_that_was_not_measured_is_no_number(tmp_path):
    runs = write(tmp_path / "0", [0.1, None, 0.3])
    run = runs.rows[0].first
    run.series["train/conflict/cos/left~left"] = (np.array([20.0]), np.array([1.0]))  # another pair, at that step
    steps, matrices = matrices_of(runs.rows[0], 10)
    assert steps == [10, 20, 30]
    assert np.isnan(matrices[1, 0, 1]) and matrices[[0, 2], 0, 1] == pytest.approx([0.1, 0.3])


def test_the_slider_has_every_matrix(tmp_path):
    drawn = figures.cosines(write(tmp_path / "0", [0.1, 0.3]))
    assert [frame.name for frame in drawn.frames] == ["10", "20"] == [s.label for s in drawn.layout.sliders[0].steps]
    assert "with respect to the shared features, sample by sample" in drawn.layout.meta["caption"]
    assert not figures.cosines(write(tmp_path / "1", [])).data
