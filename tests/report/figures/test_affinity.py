"""The matrix of affinities."""

import numpy as np
import pytest
from support.affinities import write_affinities

from mtl.report import figures
from mtl.report.page import contents

PAIRS = {("left", "left"): 0.1, ("left", "right"): 0.02, ("right", "left"): -0.01}


def test_a_cell_is_the_mean_in_percent_of_a_step_on_its_line(tmp_path):
    write_affinities(tmp_path / "a", PAIRS, dict.fromkeys(PAIRS, 1.0))
    drawn = figures.affinity(figures.read(tmp_path / "a"))
    (heat,) = drawn.data
    assert list(heat.y) == list(heat.x) == ["left", "right"] and "lookahead" in drawn.layout.title.text
    assert np.array(heat.z) == pytest.approx(np.array([[10.0, 2.0], [-1.0, np.nan]]), nan_ok=True)
    assert (heat.zmin, heat.zmax) == pytest.approx((-2, 2))  # of the pairs of two tasks
    assert heat.text[0][1].startswith("+2.0") and " ± " in heat.text[0][1] and heat.text[1][1] == "–"


def test_the_page_has_it_where_it_was_measured(tmp_path):
    write_affinities(tmp_path / "a", None, PAIRS)
    write_affinities(tmp_path / "b", None, None)
    shown, without = ([figures.read(tmp_path / name)] for name in "ab")
    assert "affinity" in {section["id"] for section in contents(shown, "")[0]["comparisons"][0]["sections"]}
    assert "affinity" not in {section["id"] for section in contents(without, "")[0]["comparisons"][0]["sections"]}
    assert not figures.affinity(without[0]).data
