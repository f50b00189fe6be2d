"""The curves of rows: means over seeds, thinned; and which there are."""

import base64

import numpy as np
import pytest
from support.report_runs import accuracies, write_run

from mtl.report import figures
from mtl.report.figures.curves import curve_names
from mtl.report.figures.series import POINTS


def numbers(array):
    """The values of a typed array as a figure's JSON has it."""
    return np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"])


def test_long_curves_are_thinned_to_means_of_neighbours(tmp_path):
    write_run(tmp_path / "0", test=accuracies(0.5, 0.5), rows=1000)
    (line,) = figures.curves(figures.read(tmp_path), "train/loss/left").to_plotly_json()["data"]
    steps, values = numbers(line["x"]), numbers(line["y"])
    assert len(values) == POINTS[1] and steps[-1] == 10000
    # five neighbours each: 2 / i for i = 1 ... 5
    assert values[0] == pytest.approx(sum(2 / i for i in range(1, 6)) / 5, rel=1e-3)


def test_a_band_spans_the_lowest_and_the_highest_seed(tmp_path):
    for seed in range(3):
        write_run(tmp_path / str(seed), seed=seed, test=accuracies(0.5, 0.5))
    band, line = figures.curves(figures.read(tmp_path), "train/loss/left").to_plotly_json()["data"]
    assert numbers(line["y"]) == pytest.approx([2 / i + 0.1 for i in range(1, 5)])
    upper, lower = numbers(band["y"])[:4], numbers(band["y"])[:3:-1]
    assert upper == pytest.approx([2 / i + 0.2 for i in range(1, 5)])
    assert lower == pytest.approx([2 / i for i in range(1, 5)])


def test_every_metric_of_train_and_val_has_a_curve(tmp_path):
    run = write_run(tmp_path / "0", test=accuracies(0.5, 0.5))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "epoch": 0.5, "split": "train", "anything/new": 1.0}\n')
        file.write('{"step": 50, "epoch": 0.5, "split": "test", "loss/left": 1.0}\n')
    names = curve_names(figures.read(tmp_path))
    assert names[0] == "val/loss/total" and "train/anything/new" in names and "test/loss/left" not in names


@pytest.mark.parametrize(
    ("draw", "arguments", "message"),
    [
        (figures.curves, {"metric": "val/nothing"}, "metric=val/nothing was logged by none of these runs"),
        (figures.tradeoffs, {"x": "left/nothing"}, "x=left/nothing is no test metric of known direction"),
        (figures.cost, {"quality": "beauty"}, "quality=beauty is no measure of these runs"),
        (figures.cosines, {"row": "nobody"}, "row='nobody' is not a row of these runs"),
    ],
    ids=["curves", "tradeoffs", "cost", "cosines"],
)
def test_what_there_is_not_is_one_sentence(tmp_path, draw, arguments, message):
    write_run(tmp_path / "0", test=accuracies(0.5, 0.5))
    with pytest.raises(ValueError, match=message) as error:
        draw(figures.read(tmp_path), **arguments)
    assert "\n" not in str(error.value)


def test_runs_of_two_data_sets_are_no_figure(tmp_path):
    write_run(tmp_path / "0", test=accuracies(0.5, 0.5))
    write_run(tmp_path / "1", test=accuracies(0.5, 0.5), data={"_target_": "mtl.data.scenes.Scenes"})
    with pytest.raises(ValueError, match="The runs are of Digits and Scenes: a figure is of one data set"):
        figures.read(tmp_path)
