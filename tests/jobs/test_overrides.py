"""Overrides as text: their keys, those below a key, and the run's own file of them."""

import pytest

from mtl.config import load
from mtl.jobs.job import _choices
from mtl.jobs.overrides import is_within, name_tracker_run, quoted, without


@pytest.mark.parametrize(
    ("key", "expected"), [("trainer", True), ("trainer.ema", True), ("trainers.ema", False), ("ema", False)]
)
def test_a_key_is_within_a_section_by_its_whole_names(key, expected):
    assert is_within(key, ["trainer", "resume"]) is expected


def test_overrides_of_other_keys_are_left():
    given = ["strategy=mgda", "+trainer.ema=0.9", "++trainer.max_steps=3", "~backbone", "resume=auto", "seed=1"]
    assert without(given, ["trainer", "resume", "backbone"]) == ["strategy=mgda", "seed=1"]


def test_a_quoted_path_is_read_by_hydra_as_it_was(tmp_path):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    path = tmp_path / "it's, {a} = b"
    (override,) = OverridesParser.create().parse_overrides([f"resume={quoted(path)}"])
    assert override.value() == str(path)


def test_a_run_is_named_by_its_choices_the_architecture_among_them():
    cfg = load(["data=stdlib", "architecture=mmoe", "strategy=mgda", "tracker.tags=[mine]"])
    assert name_tracker_run(cfg).tracker.tags == ["mine", "stdlib", "causal_transformer", "mmoe", "mgda"]
    assert _choices() == "data=stdlib, backbone=causal_transformer, architecture=mmoe, strategy=mgda"
