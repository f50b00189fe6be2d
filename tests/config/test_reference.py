"""What --help and the documentation say of a key is its comment, its type and the default that a run has."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.composing import configuration

from mtl.config import CONF, reference
from mtl.config.schema import keys_that_are

KEYS = {key.name: key for key in reference.keys(CONF)}


@pytest.mark.parametrize("name", KEYS)
def test_every_key_has_a_meaning_and_the_default_of_a_run(name):
    key = KEYS[name]
    assert len(key.meaning) > 4 and "#" not in key.meaning
    value = OmegaConf.select(configuration(), name)
    if name != "name":
        said = {"null": None, "true": True, "false": False, "[]": []}.get(key.default, key.default)
        assert said == value or str(value) == said


def test_every_key_of_the_configuration_is_there():
    plain = configuration()
    for section in ("trainer", "tracker", "conflict"):
        assert {name for name in KEYS if name.startswith(f"{section}.")} == {
            f"{section}.{key}" for key in plain[section]
        }
    others = set(plain) - set(reference.groups()) - {name for name in KEYS if "." not in name}
    assert not others, "neither a group nor a key"


def test_what_a_resumed_run_may_change_is_what_resuming_compares_by():
    changeable = {name for name in keys_that_are("changeable") if name in KEYS}
    sections = tuple(f"{name}." for name in keys_that_are("changeable") if name not in KEYS)
    assert {key.name for key in KEYS.values() if key.changeable} == changeable | {
        n for n in KEYS if n.startswith(sections)
    }


def test_the_words_of_one_key():
    key = KEYS["trainer.shard"]
    assert key.type == "null, backbone, all" and key.default == "null" and key.changeable
    assert key.meaning == "the part of the model that is sharded over the processes (FSDP2); with devices above 1"
    assert KEYS["trainer.max_steps"].default == "600" and KEYS["seed"].type == "whole number"


def test_help_says_what_the_schema_says():
    text = reference.help_text(CONF)
    words = re.sub(r"\s+", " ", text)
    for key in KEYS.values():
        assert f"{key.name} ({key.type}; default {key.default})" in text
        assert key.meaning in words


def test_the_comment_that_a_file_begins_with(tmp_path):
    file = Path(tmp_path / "a.yaml")
    file.write_text(
        "# @package _global_\n# mtl-train +a=b\n# One thing\n#   as this\n# and more.\na: 1  # not this\n# nor this\n"
    )
    assert reference.meaning_of(file) == "One thing and more."
    file.write_text("a: 1\n")
    assert reference.meaning_of(file) == ""
