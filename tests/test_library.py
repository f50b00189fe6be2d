"""``import mtl``: what it gives, what it costs, and what it does not bring along."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mtl

LIGHT = ("Balance", "backward", "weights_of", "Cut", "Rows", "rules", "conflict_metrics")  # for anybody's training loop
STAGES = f"""
import sys
loaded = lambda: print(*[m for m in ("torch", "timm", "torchmetrics", "mtl.engine", "hydra", "omegaconf", "wandb")
                         if m in sys.modules], sep=",")
import mtl
dir(mtl)
loaded()
[getattr(mtl, name) for name in {LIGHT}]
loaded()
[getattr(mtl, name) for name in mtl.__all__]
loaded()
import mtl.train
loaded()
"""


def test_a_name_loads_what_it_needs_and_never_hydra_or_wandb():
    """In a fresh interpreter; the last stage is the control."""
    answer = subprocess.run(
        [sys.executable, "-c", STAGES],
        cwd=Path(mtl.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    alone, light, everything, command = answer.stdout.splitlines()
    assert alone == ""
    assert light == "torch"
    assert everything == "torch,torchmetrics,mtl.engine"
    assert command.endswith("hydra,omegaconf")


@pytest.mark.parametrize("name", mtl.__all__)
def test_each_name_is_what_it_says(name):
    value = getattr(mtl, name)
    assert value.__name__ in (name, f"mtl.{name}")
    assert name in dir(mtl)


def test_another_name_is_refused_as_any_module_does():
    with pytest.raises(AttributeError, match="module 'mtl' has no attribute 'Balanse'"):
        mtl.Balanse  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Balanse' from 'mtl'"):
        from mtl import Balanse  # noqa: F401


def test_a_type_checker_sees_the_same_names():
    file = Path(mtl.__file__)
    (block,) = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.If)]
    seen = {alias.name: statement.module for statement in block.body for alias in statement.names}
    assert sorted(seen) == mtl.__all__ == sorted(mtl.__all__)
    assert {name: home for name, home in seen.items() if home != "mtl"} == mtl._HOMES
    assert file.with_name("py.typed").exists()
