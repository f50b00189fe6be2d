"""The affinities that a run logs: of every strategy, under every kind of weighting, and of a resumed run."""

import json
from types import SimpleNamespace

import pytest
import torch
from support.networks import make

from mtl.config import load
from mtl.config.build import build
from mtl.engine.accumulation import accumulate
from mtl.engine.engine import Engine
from mtl.engine.look import rate_of_shared
from mtl.engine.lookahead import look_ahead
from mtl.errors import ConfigError
from mtl.rules import MGDA, PCGrad
from mtl.runs.files import read_metrics
from mtl.strategies import Balanced, Detached, Naive
from mtl.training.step_metrics import Outcome, StepValues, affinity_metrics
from mtl.weightings import UW, Equal, Log, Static

NAMES = ["task0", "task1", "task2"]
RATES = {"backbone": 0.2, "heads": 0.5}
STRATEGIES = {
    "naive": lambda: Naive(Static(NAMES, {"task1": 4.0})),
    "detached": lambda: Detached(Static(NAMES, {"task1": 4.0})),
    "late": lambda: Detached(Log()),
    "learned": lambda: Detached(UW(NAMES)),
    "rule": lambda: Balanced(Static(NAMES, {"task1": 4.0}), MGDA(), NAMES, head_scale="weights"),
    "between": lambda: Balanced(Equal(), PCGrad(), NAMES, every=3),
    "parameters": lambda: Balanced(Static(NAMES, {"task1": 4.0}), MGDA(), NAMES, space="parameters"),
}


def logged(strategy, model, tasks, inputs, targets):
    result = strategy.run(Engine(model, tasks), inputs, targets, measure=True)
    outcome = Outcome(result, True, StepValues({}, {}, 0.0), RATES)
    return affinity_metrics(outcome), result


def estimate(model, tasks, inputs, targets, at_features):
    """lr <g_i, g_j> / L_j of the unweighted losses, from autograd."""
    z = model.backbone(inputs)
    losses = [task.loss(model.heads[task.name](z), targets[task.name]) for task in tasks]
    at = [z] if at_features else [*model.backbone.parameters()]
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, at, retain_graph=True)]) for loss in losses]
    return {
        f"affinity/{a.name}→{b.name}": (RATES["backbone"] * g @ h / loss).item()
        for a, g in zip(tasks, rows, strict=True)
        for b, h, loss in zip(tasks, rows, losses, strict=True)
    }


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_estimate_is_that_of_the_unweighted_losses_in_the_strategys_space(name):
    model, tasks, inputs, targets = make("pooled", 3)
    model.eval()  # the same numbers in every pass, in any order
    strategy = STRATEGIES[name]()
    for _ in range(2):  # the second step of "between" is one without its rule
        found, _ = logged(strategy, model, tasks, inputs, targets)
        assert found == pytest.approx(estimate(model, tasks, inputs, targets, name != "parameters"), rel=1e-6)
    other = estimate(model, tasks, inputs, targets, name == "parameters")
    assert found != pytest.approx(other, rel=0.1)  # negative control: the spaces differ


def test_in_parameter_space_it_is_that_of_the_lookahead():
    model, tasks, inputs, targets = make("pooled", 3)
    model.eval()
    found, _ = logged(STRATEGIES["parameters"](), model, tasks, inputs, targets)
    ahead = look_ahead(Engine(model, tasks), inputs, targets, RATES["backbone"])
    assert list(found.values()) == pytest.approx(ahead.first_order.flatten().tolist(), rel=1e-6)


def test_absent_tasks_and_those_of_weight_0_are_left_out():
    model, tasks, inputs, targets = make("pooled", 3)
    del targets["task0"]
    found, _ = logged(Detached(Equal()), model, tasks, inputs, targets)
    assert {name.count("task0") for name in found} == {0} and len(found) == 4
    found, result = logged(Detached(Static(NAMES, {"task1": 0.0})), *make("pooled", 3))
    assert result.gram is not None and {name.count("task1") for name in found} == {0} and len(found) == 4


def test_the_rate_is_the_backbones():
    assert rate_of_shared(RATES) == 0.2
    assert rate_of_shared({"heads": 1.0, "backbone.layer_0": 0.1, "backbone.layer_1": 0.3}) == 0.3
    assert rate_of_shared({"heads": 0.5}) == 0.5  # a frozen backbone under an unembedding that heads share


# ------------------------------------------------------------------------------------------------------------- runs

ASKED = ["conflict.every=null", "conflict.affinity_every=2", "conflict.audit_every=3", "trainer.log_every=100"]


def affinities(folder):
    rows = read_metrics(folder, "train")
    found = {row["step"]: {name: z for name, z in row.items() if name.startswith("affinity/")} for row in rows}
    return {step: own for step, own in found.items() if own}


@pytest.mark.parametrize("choice", ["strategy=naive", "strategy=mgda"])
def test_a_run_logs_what_is_due_and_a_resumed_run_the_same(train_tiny, choice):
    first = train_tiny(choice, *ASKED, folder="whole")
    whole = affinities(first)
    assert list(whole) == [1, 2, 3, 4]
    pairs = {f"{a}→{b}" for a in ("left", "right") for b in ("left", "right")}
    plain, audited = ({f"{prefix}{pair}" for prefix in prefixes for pair in pairs} for prefixes in (
        ["affinity/"], ["affinity/", "affinity/parameters/", "affinity/lookahead/"],
    ))  # fmt: skip
    assert {step: set(own) for step, own in whole.items()} == {1: plain, 2: plain, 3: audited, 4: plain}
    assert "conflict/" not in json.dumps(read_metrics(first, "train")), "conflict.every=null"
    folder = train_tiny(choice, *ASKED, folder="parts", stop_after=2)
    train_tiny(choice, *ASKED, f"resume={folder}", folder="parts")
    assert affinities(folder) == whole
    assert affinities(train_tiny(choice, *ASKED, "seed=1", folder="other")) != whole  # negative control


def test_a_run_that_is_not_asked_logs_none(train_tiny):
    folder = train_tiny("conflict.audit_every=2")
    assert affinities(folder) == {} and "affinity" not in json.dumps(read_metrics(folder, "train"))


def test_while_nothing_that_is_shared_is_trained_a_step_does_nothing_to_the_others(train_tiny):
    """The features of a frozen trunk are measured all the same, and their products are no affinity."""
    found = affinities(train_tiny(*ASKED, "freeze=[backbone]", "trainer.unfreeze_at=2"))
    assert {step: len(own) for step, own in found.items()} == {3: 12, 4: 4}


def test_of_several_batches_the_estimate_is_the_last_ones():
    """Its Gram matrix is: with the mean loss of all of them, and the mean weight, it would be of no batch."""
    model, tasks, inputs, targets = make("pooled", 3)
    model.eval()
    other = {name: target.flip(0) for name, target in targets.items()}
    state = SimpleNamespace(
        strategy=Detached(Log()), engine=Engine(model, tasks), tasks=tasks,
        optimizer=SimpleNamespace(param_groups=[{"params": list(model.parameters())}]),
    )  # fmt: skip
    result, _ = accumulate(state, (inputs, other), lambda: (inputs, targets), 2, measure=True, audit=False)
    found = affinity_metrics(Outcome(result, True, StepValues({}, {}, 0.0), RATES))
    assert found == pytest.approx(estimate(model, tasks, inputs, targets, True), rel=1e-6)
    assert found != pytest.approx(estimate(model, tasks, inputs, other, True), rel=0.1)


def test_nothing_shared_that_is_trained_is_a_mistake():
    frozen = ["conflict.affinity_every=2", "freeze=[backbone]", "device=cpu"]
    with pytest.raises(ConfigError, match=r"conflict.affinity_every=2: the tasks share no parameter that is trained"):
        build(load(frozen))
    build(load([*frozen, "trainer.unfreeze_at=2"]))
