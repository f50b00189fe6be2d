"""Trade-offs: the front of static weights, intervals, and labels that do not cover each other."""

import itertools
import random

import pytest
from support.report_runs import accuracies, write_run, write_study

from mtl.report import figures
from mtl.report.figures.points import AREA, LETTER, LINE, PLACES, Point, scatter
from mtl.report.figures.tradeoffs import pareto_front


def test_the_front_is_that_of_the_definition():
    draw = random.Random(0)
    points = [(draw.randint(0, 9), draw.randint(0, 9)) for _ in range(40)]
    for x_up, y_up in itertools.product((True, False), repeat=2):
        signed = [(a if x_up else -a, b if y_up else -b) for a, b in points]
        best = {  # no other point is as good in both and better in one
            p for p, (a, b) in zip(points, signed, strict=True)
            if not any(c >= a and d >= b and (c, d) != (a, b) for c, d in signed)
        }  # fmt: skip
        assert pareto_front(points, x_up, y_up) == sorted(best)


def test_a_tradeoff_has_every_method_with_its_interval(tmp_path):
    runs = figures.read(write_study(tmp_path / "study"), tune=["optimizer.lr", "weighting.weights"])
    traces = {t.name: t for t in figures.tradeoffs(runs).data}
    assert {"Naive", "MGDA", "CAGrad", "static weights"} < set(traces)
    found = runs.rows[[row.label for row in runs.rows].index("MGDA")].metrics["left/accuracy"]
    assert traces["MGDA"].x[0] == found.mean and traces["MGDA"].error_x.array[0] == pytest.approx(found.half)
    assert len(traces["static weights"].x) == 6  # three weightings at two rates


def test_a_lucky_seed_is_no_point_of_the_front(tmp_path):
    for seed in (0, 1):
        for place, left in enumerate((0.5, 1.5)):
            own = {"seed": seed, "weights": {"left": left, "right": 2 - left}}
            write_run(tmp_path / f"{place}-{seed}", test=accuracies(left / 2, 1 - left / 2), **own)
    write_run(tmp_path / "lucky", test=accuracies(0.9, 0.9), weights={"left": 1.9, "right": 0.1})
    (dots,) = (t for t in figures.tradeoffs(figures.read(tmp_path)).data if t.mode == "markers" and t.text)
    assert sorted(dots.x) == [0.25, 0.75]


def boxes(traces, span):
    """The boxes of the labels, in pixels."""
    found = []
    for trace in traces:
        if trace["text"]:
            (low, high), (bottom, top) = span
            x, y = (trace["x"][0] - low) / (high - low) * AREA[0], (trace["y"][0] - bottom) / (top - bottom) * AREA[1]
            widths, right, up = PLACES[trace["textposition"]]
            width = LETTER * len(trace["text"][0])
            left = x + widths * width + right
            found.append((left, left + width, y + up - LINE / 2, y + up + LINE / 2))
    return found


def test_labels_stand_inside_and_never_on_each_other():
    draw, span = random.Random(1), ((0.0, 1.0), (0.0, 1.0))
    points = []
    for i in range(60):
        x, y = draw.random(), draw.random()
        points.append(Point(f"strategy {i}", i, x, y, (x, x), 0.0))
    placed = boxes(scatter(points, span), span)
    assert 10 < len(placed) < 60
    for a, b in itertools.combinations(placed, 2):
        assert a[1] < b[0] or b[1] < a[0] or a[3] < b[2] or b[3] < a[2]
    assert all(a[0] >= 0 and a[1] <= AREA[0] and a[2] >= 0 and a[3] <= AREA[1] for a in placed)
