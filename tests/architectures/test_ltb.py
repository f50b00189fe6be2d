"""LTB: its draws and their gradient against their definitions, what a step depends on, and the tree of evaluation."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from support.by_formula import STRATEGIES, TASKS, assemble, assert_exact, trained_by
from support.networks import gradients
from torch import nn

from mtl.architectures import LTB
from mtl.architectures.ltb import Choice, Schedule
from mtl.backbones import Timm
from mtl.strategies import Detached
from mtl.weightings import Equal

SCHEDULE = Schedule(10.0, 0.5, 0.25)


def vectors():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())


def choices(model):
    return [module for module in model.modules() if isinstance(module, Choice)]


def make(step=5, seed=3):
    """In step ``step`` of 10."""
    torch.manual_seed(0)
    architecture = LTB(vectors, TASKS, warm_up=0.2, seed=seed)
    example = assemble(architecture, lambda: nn.Linear(4, 3), torch.randn(6, 5, dtype=torch.float64))
    for choice in choices(example[0]):
        choice.at(step, 10)
    return example


def chosen(choice, columns):
    """The sum of the columns by the definition: a one at the largest score, with the gradient of the softmax."""
    scores = [(choice.logits[j] + choice.noise[j]) / choice.temperature for j in range(len(columns))]
    powers = [score.exp() for score in scores]
    soft = [power / sum(powers) for power in powers]
    best = max(range(len(columns)), key=lambda j: scores[j].item())
    factors = [float(j == best) + (p - p.detach()) for j, p in enumerate(soft)]
    return sum(factor * x for factor, x in zip(factors, columns, strict=True))


def predict(model, inputs):
    trunk = model.backbone
    x = dict.fromkeys(TASKS, inputs)
    for number in range(len(trunk.units) + 1):
        outputs = [trunk.columns[task][number](x[task]) for task in TASKS]
        last = number == len(trunk.units)
        x = {t: chosen(model.heads[t].reader.unit if last else trunk.units[number][t], outputs) for t in TASKS}
    return {task: model.heads[task].head(own) for task, own in x.items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_are_those_of_the_definition(strategy):
    example = make()
    found, _ = assert_exact(strategy, example, predict)
    assert any(found[name].abs().max() > 1e-6 for name in found if name.endswith("logits"))


def test_the_last_choice_is_private_and_all_train_the_columns():
    trained = trained_by(make(step=1))  # the warm-up reads all columns
    for name, tasks in trained.items():
        if name.endswith("logits"):
            assert tasks == [], name
        else:
            assert tasks == (list(TASKS) if name.startswith("backbone") else [name.split(".")[1]]), name
    for name, tasks in trained_by(make()).items():
        assert name.startswith("backbone") or tasks == [name.split(".")[1]], name


def test_rows_meet_at_the_column_that_both_tasks_have_drawn():
    for step in range(3, 11):
        model, *_ = example = make(step)
        gram = gradients(Detached(Equal()), *example, measure=True)[1].gram
        drawn = [model.heads[task].reader.unit.logged()["selected"].argmax().item() for task in TASKS]
        for a, b in product(range(3), range(3)):
            assert (gram[a, b] != 0) == (drawn[a] == drawn[b])


def test_draws_are_as_likely_as_the_softmax_says():
    choice = Choice(3, SCHEDULE, (0, 0))
    choice.logits.data = torch.tensor([0.5, -1.0, 1.0])
    counts, columns = torch.zeros(3), list(torch.eye(3))
    with torch.no_grad():
        for step in range(1, 4001):
            choice.at(step + 4000, 8000)
            counts += choice(columns)
    right = choice.logits.detach().softmax(0)
    assert ((counts / 4000 - right).abs() < 4 * (right * (1 - right) / 4000).sqrt()).all()
    assert (counts / 4000 - 1 / 3).abs().max() > 0.1  # negative control


def test_a_draw_is_a_function_of_seed_unit_and_step():
    def noise(seed, step, before=()):
        units = choices(make(step, seed)[0])
        for unit in units:
            for other in before:
                unit.at(other, 10)
            unit.at(step, 10)
        return torch.stack([unit.noise for unit in units])

    torch.manual_seed(1)
    state = torch.get_rng_state()
    units = choices(make(5)[0])
    torch.set_rng_state(state)
    for unit in units:
        unit.at(7, 10)
    assert torch.equal(torch.get_rng_state(), state)
    first = noise(3, 5)
    assert torch.equal(first, noise(3, 5, before=(9, 1)))
    for other in (noise(4, 5), noise(3, 6)):
        assert (first != other).all()
    assert len(first.unique()) == first.numel() == 3 * 3 * 3  # every unit has numbers of its own


def test_the_warm_up_is_the_mean_and_leaves_the_logits():
    model, _, inputs, _ = make(step=1)
    columns = [torch.randn(2, 4, dtype=torch.float64) for _ in TASKS]
    choice = choices(model)[0]
    torch.testing.assert_close(choice(columns), torch.stack(columns).mean(0))
    model(inputs)["a"].sum().backward()
    assert all(not c.logits.grad.any() for c in choices(model) if c.logits.grad is not None)
    assert any(c.logits.grad is not None for c in choices(model))  # no rank waits for it
    choice.at(3, 10)
    assert any(torch.equal(choice(columns), column) for column in columns)


def test_the_temperature_falls_as_one_over_a_root():
    taus = [SCHEDULE(step, 10_000) for step in range(1, 10_001)]
    assert np.isinf(taus[:2500]).all() and np.isfinite(taus[2500:]).all()
    whole = Schedule(10.0, 10 / 200**0.5, 0.0)
    assert whole(1, 10_000) == 10.0
    assert whole(10_000, 10_000) == pytest.approx(10 / 200**0.5, rel=1e-4)
    for epoch in range(200):  # LibMTL's, of 200 epochs
        assert whole(1 + 50 * epoch, 10_000) == pytest.approx(200 / 20 / np.sqrt(epoch + 1), rel=5e-3)


def test_evaluation_reads_the_most_likely_parents():
    model, _, inputs, _ = make()
    model.eval()
    parents = {}
    for number, row in enumerate([*model.backbone.units, {t: model.heads[t].reader.unit for t in TASKS}]):
        for task in TASKS:
            parents[number, task] = TASKS[int(row[task].logits.argmax())]
    for task in TASKS:
        path = [parents[2, task]]
        for number in (1, 0):
            path.insert(0, parents[number, path[0]])
        x = inputs
        for number, column in enumerate(path):
            x = model.backbone.columns[column][number](x)
        assert torch.equal(model(inputs)[task], model.heads[task].head(x))


@pytest.mark.parametrize("training", [True, False])
def test_levels_of_a_pyramid_are_those_of_the_chosen_columns(training):
    torch.manual_seed(0)
    built = LTB(lambda: Timm("test_resnet", features="pyramid"), ["a", "b"], seed=1)
    reader, images = built.reader("a"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for choice in [*choices(built.trunk), *choices(reader)]:
            choice.logits.copy_(torch.randn(2))
            choice.at(9, 10)
            choice.train(training)
        seen = {}
        for number in range(len(built.trunk.units) + 1):
            for task in ("a", "b"):
                module = built.trunk.columns[task][number]
                module.register_forward_hook(lambda m, _, out, at=(number, task): seen.update({at: out}))
        levels = reader(built.trunk(images))

        def parent(choice):
            return "ab"[int(choice.logged()["selected"].argmax())]

        column = parent(reader.unit)
        for number in range(len(levels) - 1, -1, -1):
            assert torch.equal(levels[number], seen[number, column])
            if number:
                column = parent(built.trunk.units[number - 1][column])


def test_columns_differ_from_the_beginning():
    made = vectors()
    built = LTB(lambda: copy.deepcopy(made), TASKS)  # as pretrained weights are
    first, *others = [list(column.parameters()) for column in built.trunk.columns.values()]
    for other in others:
        assert all(not torch.equal(p, q) for p, q in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"last_temperature": 0}, "last_temperature=0 must be above 0 and at most first_temperature=10.0."),
        ({"last_temperature": 11}, "last_temperature=11 must be above 0 and at most first_temperature=10.0."),
        ({"warm_up": 1}, "warm_up=1 must be from 0 to below 1: a share of the steps."),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message):
    with pytest.raises(ValueError) as error:
        LTB(vectors, TASKS, **arguments)
    assert str(error.value) == message
