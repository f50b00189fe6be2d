"""Fronts over preferences: which rows make one, and the hypervolume against areas that are added by hand."""

import sys

import pytest
from support.report_runs import RULE, STRATEGIES, accuracies, write_run

from mtl.report import figures
from mtl.report.figures.fronts import front_of_each, hypervolume, reference_point

LEFT, RIGHT = "left/accuracy", "right/accuracy"
POINTS = [(0.9, 0.5), (0.8, 0.8), (0.5, 0.9)]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Static weights on a front, and MGDA below it; two seeds that differ by 0.02."""
    for seed in range(2):
        for i, (left, right) in enumerate(POINTS):
            up = 0.02 * seed
            static = {"left": 0.5 + i, "right": 2.5 - i}
            write_run(tmp_path / f"s{i}{seed}", seed=seed, weights=static, test=accuracies(left + up, right + up))
            rule = {"rule": {"_target_": "mtl.rules.MGDA", "preference": static}}
            monkeypatch.setitem(STRATEGIES, "preferred", RULE | rule)
            write_run(tmp_path / f"m{i}{seed}", "preferred", seed, accuracies(left - 0.2, right - 0.1))
    return figures.read(tmp_path)


def test_the_hypervolume_is_the_area_below_the_steps():
    area = 0.9 * 0.5 + 0.8 * (0.8 - 0.5) + 0.5 * (0.9 - 0.8)
    assert hypervolume(POINTS, (0.0, 0.0), (True, True)) == pytest.approx(area)
    lower = [(1 - a, 1 - b) for a, b in POINTS]
    assert hypervolume(lower, (1.0, 1.0), (False, False)) == pytest.approx(area)
    assert hypervolume([(a, 1 - b) for a, b in POINTS], (0.0, 1.0), (True, False)) == pytest.approx(area)
    assert hypervolume([*POINTS, (0.4, 0.4)], (0.0, 0.0), (True, True)) == pytest.approx(area), "a point that is beaten"
    assert hypervolume(POINTS[:2], (0.0, 0.0), (True, True)) < area


def test_each_method_has_a_front_from_one_reference_point(runs):
    reference = reference_point(runs, LEFT, RIGHT)
    assert reference == pytest.approx((0.3, 0.4))
    found = {front.method: front for front in front_of_each(runs, LEFT, RIGHT, reference)}
    assert {*found} == {"Static", "MGDA"}
    assert sorted(found["Static"].points) == [pytest.approx((a + 0.01, b + 0.01)) for a, b in sorted(POINTS)]
    own = [(a - 0.2, b - 0.1) for a, b in POINTS]
    assert found["MGDA"].volumes == pytest.approx([hypervolume(own, reference, (True, True))] * 2)
    assert min(found["Static"].volumes) > max(found["MGDA"].volumes)


def test_the_figure_says_its_reference_point(runs):
    drawn = figures.fronts(runs)
    assert {trace.name for trace in drawn.data} == {"Static", "MGDA"}
    assert "reference point (0.3, 0.4)" in drawn.layout.meta["caption"]
    with pytest.raises(ValueError, match="x=left is no test metric"):
        figures.fronts(runs, "left", RIGHT)


def test_without_moocore_the_front_is_drawn_and_the_extra_named(runs, monkeypatch):
    monkeypatch.setattr(sys.modules["mtl.report.figures.fronts"], "find_spec", lambda name: None)
    drawn = figures.fronts(runs)
    assert drawn.data and "pip install 'mtl-torch[pareto]'" in drawn.layout.meta["caption"]


def test_two_preferences_are_no_front(tmp_path):
    for i, (left, right) in enumerate(POINTS[:2]):
        write_run(tmp_path / str(i), weights={"left": 1.0 + i}, test=accuracies(left, right))
    assert not figures.fronts(figures.read(tmp_path)).data


@pytest.mark.parametrize("other", [{"optimizer": {"lr": 0.3}}, {"strategy": "detached"}])
def test_what_differs_in_more_than_its_preference_is_another_front(tmp_path, other):
    for i, (left, right) in enumerate(POINTS):
        write_run(tmp_path / f"a{i}", weights={"left": 1.0 + i}, test=accuracies(left, right))
        write_run(tmp_path / f"b{i}", weights={"left": 1.0 + i}, test=accuracies(left - 0.1, right - 0.1), **other)
    found = front_of_each(figures.read(tmp_path), LEFT, RIGHT, (0.0, 0.0))
    assert [sorted(front.points) for front in found] == [
        [pytest.approx((a - down, b - down)) for a, b in sorted(POINTS)] for down in (0.0, 0.1)
    ]
    assert len({front.method for front in found}) == 2


def test_a_rate_that_each_preference_has_selected_and_a_monitor_that_follows_it_make_one_front(tmp_path):
    for i, (left, right) in enumerate(POINTS):
        for rate in (0.1, 0.2):
            settings = {"optimizer": {"lr": rate}, "trainer": {"monitor": f"{i}*loss/left"}}
            best = abs(rate - (0.1 if i else 0.2))
            write_run(
                tmp_path / f"{i}{rate}", weights={"left": 1.0 + i}, test=accuracies(left, right), best=best, **settings
            )
    (found,) = front_of_each(figures.read(tmp_path, tune=["optimizer.lr"]), LEFT, RIGHT, (0.0, 0.0))
    assert sorted(found.points) == [pytest.approx(point) for point in sorted(POINTS)]


def test_a_preference_without_the_metric_is_no_point_of_its_front(tmp_path):
    for i, (left, right) in enumerate([*POINTS, (0.7, None)]):
        write_run(tmp_path / str(i), weights={"left": 1.0 + i}, test=accuracies(left, right))
    (found,) = front_of_each(figures.read(tmp_path), LEFT, RIGHT, (0.0, 0.0))
    assert sorted(found.points) == [pytest.approx(point) for point in sorted(POINTS)]


def test_preferences_of_different_seeds_have_no_hypervolume_and_say_why(tmp_path):
    for i, (left, right) in enumerate(POINTS):
        write_run(tmp_path / str(i), seed=i, weights={"left": 1.0 + i}, test=accuracies(left, right))
    caption = figures.fronts(figures.read(tmp_path)).layout.meta["caption"]
    assert "Static none (no seed has trained all its preferences)" in caption and "pip" not in caption
