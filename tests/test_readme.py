"""What the README says is there, is there, and its commands compose."""

import re
import shlex
from pathlib import Path

import pytest

from mtl.config import CONF, check, load

README = (Path(__file__).parents[1] / "README.md").read_text()
CONTRIBUTING = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
COMMANDS = re.findall(r"^ {4,}(mtl-train .*?)(?:  #.*)?$", README + CONTRIBUTING, re.MULTILINE)


@pytest.mark.parametrize(
    "group", sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
)
def test_every_option_of_every_group_is_in_the_map(group):
    (row,) = re.findall(rf"^\| `{group}` \|.*$", README, re.MULTILINE)
    if "one for each `data`" in row:
        row += str(re.findall(r"^\| `data` \|.*$", README, re.MULTILINE))
    for option in (CONF / group).glob("[!_]*.yaml"):
        assert f"`{option.stem}`" in row, option


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command, tmp_path, monkeypatch):
    words = [word for word in shlex.split(command)[1:] if word not in ("-m", "--help")]
    words = [word for word in words if "<date>" not in word]  # a folder that is the reader's
    if "-cd" in words or any("joblib" in word for word in words):
        words = [word for word in words if "=" in word and "mine" not in word and not word.startswith("hydra")]
    # of a sweep, its first job
    check(load([word.split(",")[0] for word in words]))


def test_there_are_commands_and_every_link_leads_somewhere():
    assert len(COMMANDS) > 8
    for text in (README, CONTRIBUTING):
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (Path(__file__).parents[1] / target).exists(), target


def test_the_notebook_example_runs():
    (code,) = re.findall(r"```python\n(import torch.*?)```", README, re.DOTALL)
    exec(code, {})
