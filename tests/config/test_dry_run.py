"""The dry run refuses nothing that torch takes, names what works in place, and leaves no trace."""

import copy
import re

import pytest
import torch
from support.networks import gradients, make
from torch import nn
from torch.nn.functional import relu

from mtl.config.dry_run import dry_run_backbone, dry_run_task
from mtl.config.restored import restored
from mtl.errors import ConfigError
from mtl.model import MultiTaskModel
from mtl.rules import MGDA, Sum
from mtl.strategies import Balanced, Detached, Naive
from mtl.tasks import Task
from mtl.weightings import FAMO, Equal

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


class KeepsAttention(nn.Module):
    """Keeps a tensor of the graph, for a plot."""

    def __init__(self):
        super().__init__()
        self.score, self.out, self.attention = nn.Linear(6, 6), nn.Linear(6, 3), None

    def forward(self, z):
        self.attention = self.score(z).softmax(-1)
        return self.out(self.attention * z)


class KeepsHistory(KeepsAttention):
    """Keeps a list and a dict of them from the start, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.history, self.by_size, self.calls = [], {}, 0
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, z):
        out = super().forward(z)
        self.history.append(self.attention)
        self.by_size[len(z)] = self.attention
        self.calls += 1
        self.mean = 0.9 * self.mean + z.detach().mean(0)
        return out + torch.rand(())


def hooked():
    """A hook keeps each output on the module."""
    head = nn.Linear(6, 3)
    head.register_forward_hook(lambda module, inputs, output: setattr(module, "seen", output))
    return head


KEEPING = {
    "attention": KeepsAttention,
    "history": KeepsHistory,
    "hook": hooked,
    "weight_norm": lambda: nn.utils.weight_norm(nn.Linear(6, 3)),
    "spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(6, 3)),
    "parametrised weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)),
    "parametrised spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)),
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Dropout(inplace=True)),
    "lazy": lambda: nn.LazyLinear(3),
}


def dry_run(head, target=None, loss=None, features=None):
    features = torch.randn(2, 6) if features is None else features
    target = torch.tensor([0, 1]) if target is None else target
    return dry_run_task(Task("left", loss or nn.CrossEntropyLoss()), head, features, {"left": target})


@pytest.mark.parametrize("kind", KEEPING)
def test_a_head_that_keeps_a_tensor_is_taken_and_left_as_it_was(kind):
    torch.manual_seed(0)
    head, features = KEEPING[kind](), torch.randn(2, 6)
    if kind == "lazy":
        dry_run(head, features=features)  # it is made in its first pass
    before = {name: value.clone() for name, value in head.state_dict().items()}
    attributes = [
        (m, {k: v if not isinstance(v, dict | list) else v.copy() for k, v in vars(m).items()}) for m in head.modules()
    ]
    generator = torch.get_rng_state()
    dry_run(head, features=features)
    dry_run_backbone(head, features)
    assert torch.equal(generator, torch.get_rng_state())
    assert head.training and all(p.grad is None for p in head.parameters())
    torch.testing.assert_close(head.state_dict(), before, rtol=0, atol=0)
    for module, was in attributes:
        now = vars(module)
        assert list(now) == list(was)
        assert all(now[key] is value or now[key] == value for key, value in was.items())


def test_what_is_not_restored_is_seen():
    """Negative control: without the context, a forward pass leaves all of these traces."""
    head, generator = KeepsHistory(), torch.get_rng_state()
    with restored(head):
        head(torch.randn(2, 6))
    assert (head.history, head.by_size, head.calls, head.attention) == ([], {}, 0, None) and not head.mean.any()
    assert torch.equal(generator, torch.get_rng_state())
    head(torch.randn(2, 6))
    assert head.history and head.by_size and head.calls and head.attention is not None and head.mean.any()
    assert not torch.equal(generator, torch.get_rng_state())


STRATEGIES = {
    "naive": lambda: Naive(Equal()),
    "detached": lambda: Detached(Equal()),
    "balanced": lambda: Balanced(Equal(), MGDA(), ["left", "right"]),
    "parameters": lambda: Balanced(Equal(), Sum(), ["left", "right"], space="parameters"),
    "revisited": lambda: Detached(FAMO(["left", "right"])),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", KEEPING)
def test_such_a_head_trains_under_every_strategy_and_is_copied(kind, strategy):
    """The copy, as of an average of the weights, predicts what the model does."""
    torch.manual_seed(0)
    model = MultiTaskModel(nn.Linear(4, 6), {"left": KEEPING[kind](), "right": nn.Linear(6, 3)})
    inputs, targets = torch.randn(5, 4), {name: torch.randint(3, (5,)) for name in ("left", "right")}
    tasks = [Task(name, nn.CrossEntropyLoss()) for name in targets]
    found, result = gradients(STRATEGIES[strategy](), model, tasks, inputs, targets, measure=True)
    assert list(result.losses) == ["left", "right"] and all(g.isfinite().all() for g in found.values())
    model.eval()
    copied = copy.deepcopy(model)
    torch.manual_seed(1)
    expected = model(inputs)
    torch.manual_seed(1)
    torch.testing.assert_close(copied(inputs), expected, rtol=0, atol=0)
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in model.parameters()}


def test_a_shared_layer_is_one_in_the_copy_too():
    model = MultiTaskModel(
        nn.Linear(4, 6), {"a": nn.Sequential(nn.Linear(6, 3)), "b": nn.Sequential(nn.Linear(6, 3))}, ["0"]
    )
    copied = copy.deepcopy(model)
    assert copied.heads["a"][0] is copied.heads["b"][0] is not model.heads["a"][0]


def test_a_rule_that_keeps_a_tensor_of_a_graph_is_copied_for_the_audit():
    class Learnt(Sum):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(2))

        def forward(self, gram):
            self.kept = self.logits.softmax(0)
            return self.kept.double()

    model, tasks, inputs, targets = make("tokens", 2)
    strategy = Balanced(Equal(), rule := Learnt(), [task.name for task in tasks])
    assert strategy.step(model, tasks, inputs, targets).audit is None
    audit = strategy.step(model, tasks, inputs, targets, audit=True).audit
    kept = rule.kept
    assert [weights.tolist() for weights in audit.weights] == [[0.5, 0.5], [0.5, 0.5]]
    assert rule.kept is kept and kept.grad_fn is not None


# ------------------------------------------------------------------------------------------ in place


class Changing(nn.Module):
    """A head that changes its features by ``change``."""

    def __init__(self, change):
        super().__init__()
        self.change, self.out = change, nn.Linear(6, 3)

    def forward(self, z):
        return self.out(self.change(z))


class OwnParameter(nn.Module):
    """Changes a parameter of its own in place, which torch refuses with the same words."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, z):
        self.bias += 1
        return z + self.bias


def added(z):
    z += 1
    return z


def no_grad(z):
    with torch.no_grad():
        z.mul_(2)
    return z


IN_PLACE = {
    "module": (
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3)),
        r"^heads.left.0: ReLU\(inplace=True\) changes the backbone's features.*; use inplace=False.$",
    ),
    "module inside": (
        lambda: nn.Sequential(nn.Sequential(nn.Identity(), nn.SiLU(inplace=True)), nn.Linear(6, 3)),
        r"^heads.left.0.1: SiLU\(inplace=True\) changes",
    ),
    "module itself": (lambda: nn.Hardtanh(inplace=True), r"^heads.left: Hardtanh\(.*inplace=True\) changes"),
    "in training only": (
        lambda: nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Linear(6, 3)),
        r"^heads.left.0: Dropout\(p=0.5, inplace=True\) changes",
    ),
    "+=": (lambda: Changing(added), r"^heads.left \(Changing\) changes .* in place and .*: write x = x \+ … for x \+="),
    "mul_": (lambda: Changing(lambda z: z.mul_(2)), "x.mul_"),
    "relu": (lambda: Changing(lambda z: relu(z, inplace=True)), "in place and"),
    "of a view": (lambda: Changing(lambda z: z[:, :].relu_()), "in place and"),
    "nested": (lambda: nn.Sequential(Changing(added)), r"in place, in 0 \(Changing\), and"),
    "hidden from torch": (lambda: Changing(lambda z: z.data.mul_(2)), "changes the backbone's features, which the"),
    "without a graph": (lambda: Changing(no_grad), "which the other heads read too: write"),
}  # fmt: skip


@pytest.mark.parametrize("kind", IN_PLACE)
def test_what_works_in_place_on_the_features_is_named(kind):
    head, words = IN_PLACE[kind]
    features = torch.randn(2, 6)
    before = features.clone()
    with pytest.raises(ConfigError, match=words):
        dry_run(head := head(), features=features)
    assert torch.equal(features, before) and not any(m._forward_hooks or m._forward_pre_hooks for m in head.modules())


@pytest.mark.parametrize("change", [lambda f: f.pop(), lambda f: f.reverse(), lambda f: f.append(f[0])])
def test_a_list_of_features_that_a_head_changes_is_named(change):
    def run(features):
        last = features[-1]
        change(features)
        return last

    with pytest.raises(ConfigError, match="changes the backbone's features"):
        dry_run(Changing(run), features=[torch.randn(2, 6), torch.randn(2, 6)])


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Linear(6, 3), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Identity(), nn.Linear(6, 3), nn.Dropout(inplace=True)),
        Changing(lambda z: z.clone().mul_(2)),
    ],
)
def test_in_place_on_what_is_the_heads_own_is_fine(head):
    dry_run(head)


def test_another_mistake_with_the_same_words_keeps_torchs():
    with pytest.raises(ConfigError, match=r"heads.left \(OwnParameter\) cannot take .*: a leaf Variable"):
        dry_run(OwnParameter())


def blank(prediction, target):
    target[target == 1] = 0
    return nn.functional.cross_entropy(prediction, target)


def squashed(prediction, target):
    with torch.no_grad():
        prediction.sigmoid_()
    return nn.functional.cross_entropy(prediction, target)


@pytest.mark.parametrize("loss", [blank, squashed])
def test_a_loss_that_changes_what_the_metrics_read_is_named(loss):
    target = torch.tensor([0, 1])
    with pytest.raises(ConfigError, match=r"losses.left .* changes its prediction or its target, which the metrics"):
        dry_run(nn.Linear(6, 3), target, loss)
    assert target.tolist() == [0, 1]


def test_batch_statistics_of_the_only_validation_sample_are_no_mistake():
    """The dry run has one sample then, and training has more."""
    head = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    dry_run(head, torch.tensor([1]), features=torch.randn(1, 6))
    with pytest.raises(ValueError, match=re.escape("Expected more than 1 value")):
        head(torch.randn(1, 6))
