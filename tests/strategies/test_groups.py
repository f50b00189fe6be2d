"""A rule for each group of the trunk's parameters: against a plain loop, TorchJD, and the whole."""

import copy

import pytest
import torch
from support.networks import TwoLayers
from torch import nn

from mtl.config.build import build
from mtl.errors import ConfigError
from mtl.model import MultiTaskModel
from mtl.rules import MGDA, PCD, GradDrop, GradVac, MoCo, UPGrad
from mtl.rules.solvers import SolverError
from mtl.strategies import Balanced
from mtl.strategies.groups import parameter_groups
from mtl.tasks import Task
from mtl.weightings import Equal

NAMES = ["a", "b", "c"]
LAYERS = [["0.weight", "0.bias"], ["2.weight", "2.bias"], ["4.weight", "4.bias"]]
MATRICES, BIASES = ([f"{layer}.{kind}" for layer in (0, 2, 4)] for kind in ("weight", "bias"))
KINDS = {"layer": LAYERS, "two": [LAYERS[0], LAYERS[1] + LAYERS[2]], "matrices": [MATRICES, BIASES]}
GROUPS = {"layer": "layer", "two": ["0", "[24]"], "matrices": ["*.weight"]}


def problem(trunk=None):
    torch.manual_seed(0)
    trunk = trunk or nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
    model = MultiTaskModel(trunk, {name: nn.Linear(6, 3) for name in NAMES}).double()
    tasks = [Task(name, nn.CrossEntropyLoss()) for name in NAMES]
    return model, tasks, torch.randn(5, 3).double(), {name: torch.randint(3, (5,)) for name in NAMES}


def balanced(rule=None, groups="layer", **options):
    options = {"scale": "tasks", "space": "parameters"} | options
    return Balanced(Equal(), rule or UPGrad(), NAMES, groups=groups, **options)


def rows_by_autograd(model, tasks, inputs, targets, names):
    """The task gradients over the named parameters, ``[K, n]``, on the uncut graph."""
    own, predictions = dict(model.backbone.named_parameters()), model(inputs)
    return torch.stack([
        torch.cat([g.flatten() for g in torch.autograd.grad(
            task.loss(predictions[task.name], targets[task.name]), [own[name] for name in names], retain_graph=True)])
        for task in tasks if task.name in targets
    ])  # fmt: skip


def flat(model, names):
    own = dict(model.backbone.named_parameters())
    return torch.cat([own[name].grad.flatten() for name in names])


@pytest.mark.parametrize("kind", KINDS)
def test_each_group_gets_what_a_loop_of_its_own_makes_of_it(kind):
    model, *batch = problem()
    result = balanced(groups=GROUPS[kind]).step(model, *batch)
    whole = 0
    for names in KINDS[kind]:
        rows = rows_by_autograd(model, *batch, names)
        whole = whole + rows @ rows.T
        torch.testing.assert_close(flat(model, names), 3 * UPGrad()(rows @ rows.T) @ rows, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(result.gram, whole, rtol=1e-10, atol=0)
    every = [name for names in KINDS[kind] for name in names]
    rows = rows_by_autograd(model, *batch, every)
    assert not torch.allclose(flat(model, every), 3 * UPGrad()(rows @ rows.T) @ rows, rtol=1e-3)  # negative control


def test_torchjds_weighting_in_its_grouping():
    theirs = pytest.importorskip("torchjd.aggregation")
    model, *batch = problem()
    balanced().step(model, *batch)
    for names in LAYERS:
        rows = rows_by_autograd(model, *batch, names)
        weights = theirs.UPGradWeighting()(rows @ rows.T)
        torch.testing.assert_close(flat(model, names), 3 * weights @ rows, rtol=1e-3, atol=1e-3)  # they add to G


def test_one_group_of_all_is_no_group():
    model, *batch = problem()
    other = copy.deepcopy(model)
    results = balanced(groups=None).step(model, *batch), balanced(groups="*").step(other, *batch)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-12, atol=1e-16)
    assert [w.item() for w in results[0].weights.values()] == pytest.approx(
        [w.item() for w in results[1].weights.values()]
    )


def test_the_weights_of_the_groups_and_their_mean():
    model, *batch = problem()
    result = balanced().step(model, *batch)
    assert list(result.group_weights) == ["0", "2", "4"]
    mean, total = torch.zeros(3).double(), torch.zeros(3).double()
    for names, by_task in zip(LAYERS, result.group_weights.values(), strict=True):
        squares = rows_by_autograd(model, *batch, names).square().sum(1)
        mean, total = mean + squares * torch.tensor(list(by_task.values()), dtype=torch.float64), total + squares
    assert [w.item() for w in result.weights.values()] == pytest.approx((mean / total).tolist())


@pytest.mark.parametrize("rule", [GradVac, PCD, MoCo], ids=["GradVac", "PCD", "MoCo"])
def test_a_stateful_rule_has_a_state_for_each_group(rule):
    """Four steps, one with an absent task, against a rule a group, which sees that group's rows alone."""
    model, tasks, inputs, targets = problem()
    strategy, alone = balanced(rule(3), scale=1), [rule(3) for _ in LAYERS]
    for step in range(4):
        present = [name for name in NAMES if (step, name) != (2, "b")]
        own = {name: targets[name] for name in present}
        model.zero_grad()
        strategy.step(model, tasks, inputs + step, own)
        for names, one in zip(LAYERS, alone, strict=True):
            rows = rows_by_autograd(model, tasks, inputs + step, own, names)
            indices = [NAMES.index(name) for name in present]
            if rule is MoCo:
                (expected,), _ = one.combine([rows], rows @ rows.T, present=indices)
            else:
                expected = one(rows @ rows.T, present=indices) @ rows
            torch.testing.assert_close(flat(model, names), expected, rtol=1e-9, atol=1e-13)


def test_the_state_goes_into_a_fresh_object():
    model, *batch = problem()
    strategy = balanced(GradVac(3), scale=1)
    strategy.step(model, *batch)
    fresh = balanced(GradVac(3), scale=1)
    fresh.load_state_dict(strategy.state_dict())
    ends = []
    for one in (strategy, fresh, balanced(GradVac(3), scale=1)):
        model.zero_grad()
        one.step(model, *batch)
        ends.append(flat(model, LAYERS[2]))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])
    with pytest.raises(ValueError, match=r"groups: 0, 2, 4 are other groups than 0, \(rest\)\."):
        bound = balanced(GradVac(3), groups="0")
        bound.groups.bind(model)
        bound.load_state_dict(strategy.state_dict())


def test_the_last_weights_of_each_group_stay_in_between():
    model, *batch = problem()
    strategy = balanced(every=2)
    first = strategy.step(model, *batch)
    tasks, inputs, targets = batch
    model.zero_grad()
    second = strategy.step(model, tasks, inputs + 1, targets)
    assert second.group_weights == first.group_weights
    rows = rows_by_autograd(model, tasks, inputs + 1, targets, LAYERS[1])
    weights = torch.tensor(list(first.group_weights["2"].values()), dtype=torch.float64)
    torch.testing.assert_close(flat(model, LAYERS[1]), weights @ rows, rtol=1e-10, atol=1e-14)


class Expert(nn.Module):
    """A layer that the task a alone reads: the others have no gradient there."""

    def __init__(self):
        super().__init__()
        self.common, self.own = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return torch.cat([self.common(x).tanh(), self.own(x).tanh()], 1)


def test_a_task_without_a_gradient_in_a_group_is_absent_from_it():
    """The shortest direction of a zero and a nonzero gradient is zero: the layer would never be trained."""
    model, tasks, inputs, targets = problem(Expert())
    for name in ("b", "c"):
        model.heads[name].weight.data[:, 3:] = 0
    result = balanced(MGDA()).step(model, tasks, inputs, targets)
    own = ["own.weight", "own.bias"]
    torch.testing.assert_close(flat(model, own), rows_by_autograd(model, tasks, inputs, targets, own)[0])
    assert result.group_weights["own"] == {"a": pytest.approx(1)} and len(result.group_weights["common"]) == 3


def test_frozen_layers_and_those_that_several_heads_hold():
    model, *batch = problem()
    model.backbone[2].requires_grad_(False)
    layer = nn.Linear(3, 3).double()
    for name in NAMES:
        model.heads[name] = nn.Sequential(model.heads[name], layer)
    result = balanced().step(model, *batch)
    assert list(result.group_weights) == ["0", "4", "(heads)"] and model.backbone[2].weight.grad is None
    expected, predictions = [], model(batch[1])
    for task in batch[0]:
        loss = task.loss(predictions[task.name], batch[2][task.name])
        expected.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, layer.parameters(), retain_graph=True)])
        )
    rows = torch.stack(expected)
    found = torch.cat([p.grad.flatten() for p in layer.parameters()])
    torch.testing.assert_close(found, 3 * UPGrad()(rows @ rows.T) @ rows, rtol=1e-10, atol=1e-14)


def test_the_trunk_skips_the_step_where_the_rule_of_a_group_fails():
    class Fails(nn.Module):
        def forward(self, gram):
            if len(gram) == 3:
                raise SolverError("no weights")
            return torch.ones(len(gram))

    model, *batch = problem()
    with pytest.raises(SolverError):
        balanced(Fails()).step(model, *batch)
    model.zero_grad()
    strategy = balanced(Fails(), on_solver_failure="skip")
    strategy.step(model, *batch)
    assert strategy.skipped == 1 and all(p.grad is None for p in model.backbone.parameters())


class Counting(nn.Module):
    """A rule that says when it ran, and fails in the runs ``fails`` of its group."""

    def __init__(self, runs, fails=()):
        super().__init__()
        self.runs, self.fails, self.own = runs, fails, 0

    def __deepcopy__(self, memo):  # the groups' copies
        return Counting(self.runs.setdefault(len(self.runs), []), self.fails if len(self.runs) == 1 else ())

    def forward(self, gram):
        self.own += 1
        self.runs.append(Counting.step)
        if self.own in self.fails:
            raise SolverError("no weights")
        return torch.ones(len(gram))


@pytest.mark.parametrize("fails", [(), (1,), (2,)], ids=["never", "at once", "later"])
def test_the_rules_of_all_groups_run_in_the_same_steps_also_after_one_has_failed(fails):
    model, *batch = problem()
    runs = {}
    strategy = balanced(Counting(runs, fails), on_solver_failure="skip", every=3)
    for Counting.step in range(8):
        strategy.step(model, *batch)
    groups = [steps for name, steps in runs.items()]
    assert len(groups) == len(LAYERS) and all(own == groups[0] for own in groups)
    # A rule that has found no weights yet is asked again in the next step; one that has some waits for its turn.
    assert groups[0] == ([0, 1, 3, 6] if fails == (1,) else [0, 3, 6]) and strategy.skipped == len(fails)


def test_a_group_that_no_task_reads_for_a_while_asks_no_rule_to_run():
    """Where it has missed a run meanwhile, all rules run when a task reads it again."""
    model, *batch = problem(Expert())
    runs = {}
    strategy = balanced(Counting(runs), every=4)
    for Counting.step in range(6):
        for name in NAMES:
            model.heads[name].weight.data[:, 3:] = Counting.step in (0, 1, 5)
        strategy.step(model, *batch)
    assert list(runs.values()) == [[0, 4, 5], [0, 5]]


class Stages(nn.Module):
    """What a wrapper of a model with a stem, and stages of blocks, looks like."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.token = nn.Parameter(torch.zeros(1))
        self.model.stem = nn.Linear(2, 2)
        block = lambda: nn.TransformerEncoderLayer(2, 1, 2)  # noqa: E731
        self.model.stages = nn.Sequential(nn.Sequential(block(), block()), nn.Sequential(block()))


def test_what_layers_and_blocks_are():
    assert list(parameter_groups(Stages(), "block")) == [
        "model", "model.stem", "model.stages.0.0", "model.stages.0.1", "model.stages.1.0",
    ]  # fmt: skip
    layers = parameter_groups(Stages(), "layer")
    assert list(layers)[:4] == [
        "model", "model.stem", "model.stages.0.0.self_attn", "model.stages.0.0.self_attn.out_proj",
    ]  # fmt: skip
    for groups in ("block", "layer"):
        found = [p for parameters in parameter_groups(Stages(), groups).values() for p in parameters]
        assert len(found) == len(list(Stages().parameters()))
    assert list(parameter_groups(TwoLayers(8), "block")) == ["1", "4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "features"}, r"^groups=layer needs space=parameters, not space=features, which has no parameters"),
        ({"part": "0"}, r"^groups=layer cannot go with part=0: leave one out\.$"),
        ({"head_scale": "weights"}, r"^groups=layer needs head_scale=unit, not head_scale=weights: a head is in no"),
        ({"rule": GradDrop(), "every": 2}, r"^GradDrop works on the rows themselves"),
    ],
    ids=["space", "part", "head_scale", "every"],
)
def test_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        balanced(**options)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("layers", r"^strategy\.groups: layers matches no parameter of the backbone; did you mean layer\.$"),
        ("[1,9]", r"^strategy\.groups: 9 matches no parameter of the backbone; accepted: layer, block, 1, 4\.$"),
        ("[1,*.bias]", r"^strategy\.groups: 1 and \*\.bias both match the parameter 1\.bias, which belongs in one"),
    ],
    ids=["unknown", "number", "overlap"],
)
def test_a_mistake_in_the_groups_is_named(groups, message):
    from support.composing import configuration

    options = ["~backbone", "+backbone._target_=support.networks.TwoLayers", "data.image_size=8", "device=cpu"]
    cfg = configuration(*options, "strategy=mgda", "strategy.space=parameters", f"strategy.groups={groups}")
    with pytest.raises(ConfigError, match=message):
        build(cfg)


def test_a_resumed_run_goes_on_with_the_state_of_each_group(train_tiny):
    options = ("strategy=gradvac", "strategy.space=parameters", "strategy.groups=layer", "conflict.every=1",
               "~backbone", "+backbone._target_=support.networks.TwoLayers", "data.image_size=8")  # fmt: skip
    whole = train_tiny(*options, folder="whole")
    stopped = train_tiny(*options, folder="stopped", stop_after=2)
    resumed = train_tiny(*options, f"resume={stopped}", folder="stopped")
    states = [torch.load(f / "checkpoints" / "last.pt", weights_only=True) for f in (whole, resumed)]
    for part in ("model", "strategy"):
        for name, one in states[0][part].items():
            assert torch.equal(one, states[1][part][name]) if isinstance(one, torch.Tensor) else True
    targets = [states[0]["strategy"][f"groups.rules.{group}.targets"] for group in (0, 1)]
    assert not torch.equal(*targets)
    row = (whole / "metrics.jsonl").read_text().splitlines()[0]
    assert '"rule_weight/1/left": ' in row and '"rule_weight/4/right": ' in row
