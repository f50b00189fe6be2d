"""FiLM against its equation, one task after the other; and features that no two tasks read."""

import logging

import pytest
import torch
from support.by_formula import STRATEGIES, TASKS, assemble, assert_exact, trained_by
from torch import nn

from mtl.architectures import CrossStitch, FiLM, Hard, MMoE
from mtl.architectures.read import Read
from mtl.config import load
from mtl.config.build import build
from mtl.config.common_features import have_nothing_in_common
from mtl.errors import ConfigError
from mtl.model import MultiTaskModel


def vectors():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())


def maps():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Tanh()))


class MapHead(nn.Linear):
    def forward(self, z):
        return super().forward(z.mean((2, 3)))


BACKBONES = {"vectors": (vectors, lambda: nn.Linear(4, 3), (5,)), "maps": (maps, lambda: MapHead(4, 3), (2, 7, 7))}


def make(on):
    torch.manual_seed(0)
    backbone, head, shape = BACKBONES[on]
    return assemble(FiLM(backbone, TASKS), head, torch.randn(6, *shape, dtype=torch.float64))


def modulated(layer, x):
    return torch.stack([layer.gamma[c] * x[:, c] + layer.beta[c] for c in range(x.shape[1])], 1)


def predict(model, inputs):
    """One task after the other."""
    found = {}
    for task, head in model.heads.items():
        x = inputs
        for number, unit in enumerate(model.backbone.units):
            row = model.backbone.modulations
            x = modulated(row[number][task] if number < len(row) else head.reader.modulation, unit(x))
        found[task] = head.head(x)
    return found


@pytest.mark.parametrize("on", BACKBONES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_are_those_of_the_equation(strategy, on):
    assert_exact(strategy, make(on), predict)


@pytest.mark.parametrize("on", BACKBONES)
def test_modulations_are_a_tasks_own_and_all_train_the_stages(on):
    for name, tasks in trained_by(make(on)).items():
        own = [task for task in TASKS if f".{task}." in name]
        assert tasks == (own or list(TASKS)), name


def test_it_begins_as_hard_sharing():
    torch.manual_seed(0)
    backbone, inputs = vectors(), torch.randn(6, 5)
    built = FiLM(lambda: backbone, TASKS)
    readers = {task: built.reader(task) for task in TASKS}
    for reader in readers.values():
        torch.testing.assert_close(reader(built.trunk(inputs)), backbone(inputs))


def model_of(kind, tasks, head=lambda: nn.Linear(4, 3)):
    built = kind(vectors, tasks)
    heads = {}
    for task in tasks:
        reader = built.reader(task)
        heads[task] = head() if reader is None else Read(reader, head())
    model = MultiTaskModel(built.trunk, heads)
    model(torch.randn(2, 5))
    return model


@pytest.mark.parametrize(
    ("kind", "tasks", "expected"),
    [
        (FiLM, TASKS, True),
        (FiLM, ("a",), False),
        (Hard, TASKS, False),
        (MMoE, TASKS, False),
        (CrossStitch, TASKS, False),
    ],
)
def test_features_that_no_two_heads_read_are_found(kind, tasks, expected):
    assert have_nothing_in_common(model_of(kind, tasks), torch.randn(2, 5)) is expected


RUN = ["architecture=film", "backbone=mlp", "data.image_size=8", "+data.pairs_per_digit=1", "device=cpu",
       "trainer.max_steps=2"]  # fmt: skip


@pytest.mark.parametrize("space", ["features", "features_sum"])
def test_a_rule_there_is_refused(space):
    with pytest.raises(ConfigError) as error:
        build(load([*RUN, "strategy=mgda", f"strategy.space={space}"]))
    assert str(error.value).startswith(f"strategy.space={space}: no two heads read a feature in common")
    build(load([*RUN, "strategy=mgda", "strategy.space=parameters"]))
    build(load([*RUN, "strategy=mgda", f"strategy.space={space}", "tasks=[left]"]))


def test_conflict_that_would_say_nothing_is_warned_of(caplog):
    for options, count in ((["conflict.every=1"], 1), (["conflict.every=null"], 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mtl.config.common_features"):
            build(load([*RUN, *options]))
        assert len([r for r in caplog.records if r.name == "mtl.config.common_features"]) == count
