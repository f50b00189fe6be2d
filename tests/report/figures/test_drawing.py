"""Colours that are seen on both surfaces of the page, and text that stays text."""

import re
from pathlib import Path

import pytest
from support.report_runs import accuracies, write_run

from mtl.report import figures
from mtl.report.figures.drawing import COLOURS

STYLE = (Path(figures.__file__).parents[1] / "page.css").read_text()


def luminance(colour):
    """That of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#ffffff") == pytest.approx(
        4.48, abs=0.01
    )


@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_is_seen_on_the_light_and_on_the_dark_surface(colour):
    surfaces = re.findall(r"--raised: (#\w{6})", STYLE)
    assert len(surfaces) == 2 and all(contrast(colour, surface) >= 3 for surface in surfaces)


def test_tags_in_a_label_are_shown_and_not_read(tmp_path):
    write_run(tmp_path / "0", test=accuracies(0.5, 0.5))
    write_run(tmp_path / "1", test=accuracies(0.5, 0.5), backbone={"name": "<b>x</b>"})
    drawn = figures.curves(figures.read(tmp_path))
    names = [trace.name for trace in drawn.data]
    assert any("&lt;b&gt;x&lt;/b&gt;" in name for name in names) and not any("<b>" in name for name in names)
    assert any("<b>x</b>" in trace.legendgroup for trace in drawn.data)
