"""Pareto manifold learning: against autograd on weights that are mixed by hand, and what a step costs."""

import copy

import pytest
import torch
from support.composing import configuration
from support.going_on import built_from
from support.networks import distance
from torch import nn
from torch.func import functional_call

from mtl.config.build import build
from mtl.engine.engine import Engine
from mtl.engine.precision import Precision
from mtl.errors import ConfigError
from mtl.members import add_members, plain_names, preference_of
from mtl.model import MultiTaskModel
from mtl.strategies import ParetoManifold
from mtl.tasks import Task
from mtl.weightings import Equal, Static

NAMES = ["a", "b", "c"]
TINY = ["~backbone", "+backbone._target_=support.networks.Tiny", "data.image_size=8", "device=cpu"]


class Counting(nn.Module):
    """Counts the passes through it."""

    def __init__(self):
        super().__init__()
        self.forwards = self.backwards = 0

    def forward(self, x):
        self.forwards += 1
        x = x.view_as(x)
        x.register_hook(self._count)
        return x

    def _count(self, gradient):
        self.backwards += 1


def plain(seed):
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), Counting(), nn.Linear(8, 6), nn.Tanh())
    return MultiTaskModel(trunk, {name: nn.Linear(6, 3) for name in NAMES}).double()


def problem():
    models = [plain(seed) for seed in range(3)]
    model = copy.deepcopy(models[0])
    add_members(model, models[1:])
    tasks = [Task(name, nn.CrossEntropyLoss()) for name in NAMES]
    return model, models, tasks, torch.randn(5, 3).double(), {name: torch.randint(3, (5,)) for name in NAMES}


def strategy(**options):
    return ParetoManifold(Equal(), NAMES, **options)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def naive(models, tasks, x, y, draws):
    """By autograd on all members at once: the mean over the draws of K times the preference's sum of losses."""
    values = [dict(own.named_parameters()) for own in models]
    total = 0
    for shares in draws.double():
        mixed = {n: sum(s * own[n] for s, own in zip(shares, values, strict=True)) for n in values[0]}
        outputs = functional_call(models[0], mixed, (x,))
        losses = [task.loss(outputs[task.name], y[task.name]) for task in tasks if task.name in y]
        weights = [s for s, task in zip(shares, tasks, strict=True) if task.name in y]
        total = total + 3 * sum(s * loss for s, loss in zip(weights, losses, strict=True)) / len(draws)
    each = [torch.autograd.grad(total, list(own.values()), retain_graph=True) for own in values]
    return [dict(zip(own, found, strict=True)) for own, found in zip(values, each, strict=True)]


def assert_by_member(model, expected, tolerance):
    names = plain_names(model)
    found = {name: [p.grad for p, own in names.items() if own == name] for name in names.values()}
    for place, own in enumerate(expected):
        assert distance(own, {name: values[place] for name, values in found.items()}) <= tolerance


@pytest.mark.parametrize("preferences", [1, 4], ids=["1", "4"])
@pytest.mark.parametrize("absent", [[], ["b"]], ids=["all", "one absent"])
def test_the_members_get_the_gradient_of_the_mixture(preferences, absent):
    model, models, tasks, x, y = problem()
    for name in absent:
        del y[name]
    draws = torch.stack([own.draw() for own in [strategy(seed=5)] for _ in range(preferences)])
    result = strategy(seed=5, preferences=preferences).step(model, tasks, x, y)
    for own in models:
        for name in absent:
            del own.heads[name]
    if absent:
        for name in absent:
            assert all(p.grad is None for p in model.heads[name].parameters())
            del model.heads[name]
    expected = naive(models, tasks, x, y, draws)
    assert_by_member(model, expected, 1e-7)  # the shares are of float32
    assert list(result.losses) == list(y) and result.weights["a"].item() == pytest.approx(3 * draws[:, 0].mean().item())
    other = naive(models, tasks, x, y, draws.flip(1))  # negative control
    assert distance(other[0], expected[0]) > 1e-2


def test_a_member_gets_its_share_of_one_gradient():
    """The closed form: of a preference l, member k has l_k times what member j has l_j times."""
    model, _, tasks, x, y = problem()
    own = strategy(seed=2)
    shares = strategy(seed=2).draw()
    own.step(model, tasks, x, y)
    members = model.backbone[0].parametrizations.weight
    for k, share in enumerate(shares):
        torch.testing.assert_close(
            getattr(members, f"original{k}").grad / share, members.original0.grad / shares[0], rtol=1e-6, atol=1e-12
        )


def test_a_measured_conflict_is_that_of_the_last_preference():
    model, models, tasks, x, y = problem()
    *_, shares = (own.draw() for own in [strategy(seed=2)] for _ in range(3))
    result = strategy(seed=2, preferences=3).step(model, tasks, x, y, measure=True, audit=True)
    with preference_of(model).held(shares):
        z = model.backbone(x).detach().requires_grad_()
        losses = [own.loss(model.heads[own.name](z), y[own.name]) for own in tasks]
        rows = [torch.autograd.grad(share * loss, z)[0].flatten() for share, loss in zip(shares, losses, strict=True)]
    expected = torch.stack(rows) @ torch.stack(rows).T  # K / W is one
    torch.testing.assert_close(result.gram, expected, rtol=1e-6, atol=0)
    assert result.audit.parameters.shape == (3, 3) and len(models) == 3


def test_each_preference_costs_one_pass_of_the_trunk():
    model, _, tasks, x, y = problem()
    strategy(preferences=3).step(model, tasks, x, y)
    assert model.backbone[2].forwards == model.backbone[2].backwards == 3


def test_gradients_add_to_what_was_there_and_a_loss_scale_stays_in_them():
    model, _, tasks, x, y = problem()
    strategy(seed=1, preferences=2).step(model, tasks, x, y)
    once = gradients(model)
    strategy(seed=1, preferences=2).step(model, tasks, x, y)
    twice = gradients(model)
    assert distance({n: 2 * g for n, g in once.items()}, twice) <= 1e-12
    model.zero_grad()
    scaled = Precision()
    scaled.scale = 64.0
    strategy(seed=1, preferences=2).run(Engine(model, tasks, scaled), x, y)
    assert distance({n: 64 * g for n, g in once.items()}, gradients(model)) <= 1e-12


def test_after_a_step_the_shares_are_equal():
    model, _, tasks, x, y = problem()
    strategy(preferences=2).step(model, tasks, x, y)
    assert preference_of(model).shares.tolist() == pytest.approx([1 / 3] * 3)


def test_the_draws_are_of_the_seed_and_of_their_distribution():
    many = torch.stack([own.draw() for own in [strategy(seed=3, concentration=0.5)] for _ in range(4000)])
    variance = (1 / 3) * (2 / 3) / (3 * 0.5 + 1)  # of a Dirichlet distribution
    torch.testing.assert_close(many.sum(1), torch.ones(4000))
    torch.testing.assert_close(many.mean(0), torch.full((3,), 1 / 3), rtol=0, atol=0.02)
    torch.testing.assert_close(many.var(0), torch.full((3,), variance), rtol=0.1, atol=0)
    assert torch.equal(strategy(seed=3, concentration=0.5).draw(), many[0])
    assert not torch.equal(strategy(seed=4, concentration=0.5).draw(), many[0])


def test_the_state_goes_on_with_the_draws():
    own, other = strategy(seed=1), strategy(seed=2)
    own.draw()
    other.load_state_dict(own.state_dict())
    assert torch.equal(own.draw(), other.draw())


def test_members_of_random_weights_are_drawn_by_themselves():
    _, state = built_from(configuration(*TINY, "strategy=pareto_manifold"))
    for weight in (state.model.backbone[1].parametrizations.weight, state.model.heads["left"].parametrizations.weight):
        assert (
            torch.nn.functional.cosine_similarity(weight.original0.flatten(), weight.original1.flatten(), dim=0) < 0.3
        )


@pytest.mark.parametrize("architecture", ["mmoe", "lora", "cross_stitch"])
def test_other_architectures_have_members_but_for_what_decides_the_sharing(architecture):
    small = ["architecture.shared_rank=2", "architecture.task_rank=0"] if architecture == "lora" else []
    options = [*TINY, "strategy=pareto_manifold", f"architecture={architecture}", *small]
    _, state = build(configuration(*options, "optimizer.sharing.lr=1e-4"))
    sharing = [p for m in state.model.modules() if hasattr(m, "sharing_parameters") for p in m.sharing_parameters()]
    assert all(isinstance(p, nn.Parameter) for p in sharing) and preference_of(state.model) is not None
    groups = {group["name"]: len(group["params"]) for group in state.optimizer.param_groups}
    assert groups.get("sharing", 0) == len(sharing)


def test_what_does_not_fit():
    model, _, tasks, x, y = problem()
    with pytest.raises(ValueError, match=r"^strategy=pareto_manifold finds no members in the model"):
        strategy().step(plain(0), tasks, x, y)
    with pytest.raises(ValueError, match="ParetoManifold finds the tasks' weights itself: it needs weighting=equal"):
        ParetoManifold(Static(NAMES, {"a": 1}), NAMES)
    for options, words in (({"preferences": 0}, "preferences=0"), ({"concentration": 0.0}, "concentration=0.0")):
        with pytest.raises(ValueError, match=words):
            strategy(**options)
    with pytest.raises(
        ConfigError, match=r"^strategy=pareto_manifold: part=blocks matches no parameter of the backbone"
    ):
        build(configuration(*TINY, "strategy=pareto_manifold", "strategy.part=blocks"))
    model.heads["a"].penalty = lambda: None
    strategy().bind(model)
    with pytest.raises(
        ValueError, match=r"^strategy\.preferences=2 must be 1: every preference would add a head's pen"
    ):
        strategy(preferences=2).bind(model)
    with pytest.raises(ConfigError, match=r"^trainer\.unfreeze_at=3 must be null with strategy=pareto_manifold"):
        build(configuration(*TINY, "strategy=pareto_manifold", "freeze=[backbone]", "trainer.unfreeze_at=3"))
    with pytest.raises(
        ConfigError, match=r"^strategy=pareto_manifold: backbone\..* \(BatchNorm.*\) would have one mean"
    ):
        build(configuration("strategy=pareto_manifold", "data.image_size=8", "device=cpu"))
