"""The study experiments/dense_memory counts what a real step allocates, and says what follows."""

import importlib.util
from pathlib import Path

import pytest
import torch

from mtl.system.memory import PeakMemory

STUDY = Path(__file__).parents[2] / "experiments" / "dense_memory"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("dense_memory", STUDY / "memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("DeepLab", "MTAN and FPN")]


@pytest.mark.parametrize("kind", ["FPN", *SLOW])
@pytest.mark.parametrize("strategy", ["naive", "detached", "balanced"])
def test_what_is_counted_is_what_a_real_step_takes(study, strategy, kind):
    size = dict(backbone="test_resnet", side=32, batch=2)
    torch.manual_seed(0)
    model, tasks, inputs, targets = study.dense_tasks(kind, 3, **size)
    with PeakMemory() as memory:
        study.STRATEGIES[strategy]([task.name for task in tasks]).step(model, tasks, inputs, targets)
    assert study.peak(strategy, kind, 3, **size) == memory.peak / study.MIB


@pytest.mark.slow
def test_a_further_detached_head_costs_its_own_gradients(study):
    def slope(strategy):
        few, many = (study.peak(strategy, "FPN", n, "resnet18") for n in (3, 6))
        return (many - few) / 3, many

    (naive, naive_peak), (detached, detached_peak) = slope("naive"), slope("detached")
    own = study.parts("FPN", "resnet18")["head"]
    assert detached == pytest.approx(own, rel=0.05) and naive > 30 * own
    assert detached_peak < 0.45 * naive_peak


@pytest.mark.slow
def test_the_table_of_the_study_is_what_it_prints(study):
    """One line of it, measured anew."""
    row = [study.peak("detached", "DeepLab", n, "resnet18") for n in study.HEADS]
    assert f"| detached | {row[0]:,.0f} (" in (STUDY / "README.md").read_text()
    assert f"{row[2]:,.0f} (0.40)" in (STUDY / "README.md").read_text()
