"""Tensors that the trunk passes on and does not make are in no row; against autograd of the losses, one by one."""

import pytest
import torch
from support.networks import gradients
from torch import nn
from torch.utils import _pytree as pytree

from mtl.config.dry_run import dry_run_backbone
from mtl.engine.accumulation import RecomputedChunks
from mtl.gradients.cut import Cut, Tap
from mtl.gradients.rows import Rows
from mtl.model import MultiTaskModel
from mtl.strategies import Detached, Naive
from mtl.tasks import Task
from mtl.weightings import Equal
from tests.strategies.test_balanced import Fixed, balanced

NAMES = ("a", "b", "c")


class Experts(nn.Module):
    """Three experts, and what the gates read beside them; ``place`` says in which nesting."""

    def __init__(self, place):
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(5, 4), nn.Tanh()) for _ in range(3))
        self.place = place
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        z = torch.stack([expert(x) for expert in self.experts], 1)
        return {
            "beside": lambda: (z, x),
            "within": lambda: (z, {"inputs": [x, torch.arange(len(x))], "note": "text"}),
            "first": lambda: [x, z],
            "changed": lambda: (z, x * self.scale),  # made of the input and a buffer alone
        }[self.place]()


class GatedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.tower = nn.Linear(5, 3), nn.Linear(4, 2)

    def forward(self, features):
        tensors = [f for f in pytree.tree_leaves(features) if isinstance(f, torch.Tensor) and f.is_floating_point()]
        (z,) = (f for f in tensors if f.dim() == 3)
        (x,) = (f for f in tensors if f.dim() == 2)
        return self.tower((self.gate(x).softmax(1).unsqueeze(2) * z).sum(1))


def mixture(place, freeze=False):
    torch.manual_seed(0)
    model = MultiTaskModel(Experts(place), {name: GatedHead() for name in NAMES}).double()
    model.backbone.requires_grad_(not freeze)
    tasks = [Task(name, nn.MSELoss()) for name in NAMES]
    return model, tasks, torch.randn(6, 5).double(), {name: torch.randn(6, 2).double() for name in NAMES}


def gram_by_autograd(model, tasks, inputs, targets, also_passed_on=False):
    """From each loss by itself, at the experts' output and, as the negative control, at what is passed on too."""
    rows = []
    for task in tasks:
        leaves = []

        def cut(f, leaves=leaves):
            if not f.is_floating_point() or (f.dim() == 2 and not also_passed_on):
                return f
            leaves.append(f.detach().requires_grad_())
            return leaves[-1]

        z = pytree.tree_map_only(torch.Tensor, cut, model.backbone(inputs))
        loss = task.loss(model.heads[task.name](z), targets[task.name])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)]))
    return torch.stack(rows) @ torch.stack(rows).T


STRATEGIES = {
    "naive": lambda tasks: Naive(Equal()),
    "detached": lambda tasks: Detached(Equal()),
    "balanced": lambda tasks: balanced(Fixed(0.2, -1.0, 5.0), tasks),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("place", ["beside", "within", "first", "changed"])
def test_rows_are_over_what_the_trunk_makes(place, strategy):
    example = mixture(place)
    expected = gram_by_autograd(*example)
    _, result = gradients(STRATEGIES[strategy](example[1]), *example, measure=True)
    torch.testing.assert_close(result.gram, expected, rtol=1e-12, atol=0)
    with_inputs = gram_by_autograd(*example, also_passed_on=True)
    assert (with_inputs - expected).diagonal().min() > 1e-3 * expected.trace()  # the control


@pytest.mark.parametrize("strategy", ["naive", "detached"])
def test_a_frozen_trunk_is_measured_at_all_that_it_returns(strategy):
    example = mixture("beside", freeze=True)
    _, result = gradients(STRATEGIES[strategy](example[1]), *example, measure=True)
    torch.testing.assert_close(result.gram, gram_by_autograd(*example, also_passed_on=True), rtol=1e-12, atol=0)


@pytest.mark.parametrize("place", ["beside", "within", "first", "changed"])
def test_the_cut_the_tap_and_the_dry_run_agree_on_what_is_passed_on(place):
    model, _, inputs, _ = mixture(place)
    for trunk in (model.backbone, RecomputedChunks(model.backbone, 2), lambda x: dry_run_backbone(model.backbone, x)):
        z = trunk(inputs)
        for made in (Cut(z), Tap(z, Rows()), Tap(z)):
            assert [leaf.dim() for leaf in made.leaves] == [3]
            floating = [f for f in pytree.tree_leaves(made.features) if isinstance(f, torch.Tensor) and f.dim() == 2]
            assert len(floating) == 1 and not floating[0].requires_grad


def test_a_level_of_a_pyramid_below_which_all_is_frozen_is_passed_on():
    below, above = nn.Linear(5, 4).requires_grad_(False), nn.Linear(4, 3)
    level = below(torch.randn(6, 5))
    cut = Cut((level, above(level)))
    assert [leaf.shape[1] for leaf in cut.leaves] == [3] and cut.features[0] is level


def test_features_beside_an_input_have_no_positions():
    """A head on a chunk would miss the input."""
    z = torch.randn(2, 8, 3, requires_grad=True)
    with pytest.raises(ValueError, match="Only features that are one tensor"):
        _ = Cut((z, torch.randn(2, 5))).positions
