"""What each architecture is where its answer is known without a network."""

import copy
import math

import pytest
import torch
from support.architectures import ARCHITECTURES, TASKS, assemble, backbone, make
from torch import nn

from mtl.architectures import CGC, PLE, DSelectK, Ensemble, MMoE, OMoE
from mtl.architectures.dselect_k import Selectors, smooth_step
from mtl.architectures.experts import NOISE, mix, stack
from mtl.architectures.gate import flattened, pooled
from mtl.architectures.levels import levels_of


@pytest.mark.parametrize("kind", [Ensemble, OMoE, MMoE])
def test_one_expert_is_hard_sharing(kind):
    torch.manual_seed(0)
    model, inputs = assemble((kind, {"experts": 1})), torch.randn(4, 5)
    found = model(inputs)
    (plain,) = [m for m in model.backbone.modules() if isinstance(m, nn.Sequential)]
    for task, head in model.heads.items():
        assert torch.equal(found[task], getattr(head, "head", head)(plain(inputs)))


@pytest.mark.parametrize("architecture", [
    (Ensemble, {"experts": 3}), (OMoE, {"experts": 3}), (MMoE, {"experts": 3}), (DSelectK, {"experts": 4}),
    (CGC, {"shared": 2, "own": 2}), (PLE, {"levels": 2}), (PLE, {"levels": 3}),
])  # fmt: skip
def test_equal_experts_give_the_same_whatever_the_gates_say(architecture):
    torch.manual_seed(0)
    one = backbone().double()
    kind, arguments = architecture
    built = kind(backbone=lambda: copy.deepcopy(one), tasks=TASKS, **arguments)
    readers = {task: built.reader(task) for task in TASKS}
    for module in (built.trunk, *(reader for reader in readers.values() if reader is not None)):
        undo_noise(module.double(), one)
    inputs = torch.randn(4, 5, dtype=torch.float64)
    features = built.trunk(inputs)
    for reader in readers.values():
        found = features if reader is None else reader.double()(features)
        torch.testing.assert_close(found, one(inputs), rtol=1e-12, atol=1e-13)


def undo_noise(module, one):
    """Give the linear layers of experts the weights that they are copies of: those of the same shape, and nearest."""
    sources = [layer for layer in one if isinstance(layer, nn.Linear)]
    for layer in module.modules():
        if type(layer) is nn.Linear:
            near = [s for s in sources if s.weight.shape == layer.weight.shape]
            layer.load_state_dict(min(near, key=lambda s: (s.weight - layer.weight).norm().item()).state_dict())


@pytest.mark.parametrize(
    "architecture", [(MMoE, {"experts": 3}), (DSelectK, {"experts": 2, "gamma": 8.0}), (CGC, {}), (PLE, {})]
)
def test_copies_of_one_pretrained_backbone_part_ways(architecture, caplog):
    """Their outputs are near, and their gradients differ by more than their gates explain."""
    torch.manual_seed(0)
    one = backbone()
    kind, arguments = architecture
    caplog.set_level("INFO")
    experts = [m for m in kind(lambda: copy.deepcopy(one), TASKS, **arguments).trunk.modules() if type(m) is nn.Linear]
    firsts = [layer for layer in experts if layer.weight.shape == (6, 5)]
    copies = [layer for layer in firsts if not torch.equal(layer.weight, one[0].weight)]
    assert len(copies) == len(firsts) - 1 >= 1
    for other in copies:
        noise = (other.weight - one[0].weight).std() / one[0].weight.std()
        assert NOISE / 2 < noise < 2 * NOISE
    assert caplog.text.count("copies of one backbone") == 1
    inputs = torch.randn(4, 5)
    gradients = [torch.autograd.grad(first(inputs).square().sum(), first.weight)[0] for first in firsts[:2]]
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() > NOISE / 10
    caplog.clear()
    kind(backbone, TASKS, **arguments)  # of their own random weights: nothing is added, and nothing said
    assert not caplog.text


def test_smooth_step_is_continuous_with_its_derivative():
    for gamma in (0.3, 1.0, 7.0):
        t = torch.linspace(-gamma, gamma, 4001, dtype=torch.float64, requires_grad=True)
        s = smooth_step(t, gamma)
        (slope,) = torch.autograd.grad(s.sum(), t)
        assert s[t <= -gamma / 2].abs().max() == 0 and (s[t >= gamma / 2] - 1).abs().max() == 0
        assert smooth_step(torch.zeros(1), gamma) == 0.5
        step = 2 * gamma / 4000
        assert s.diff().abs().max() <= 1.51 / gamma * step and s.diff().min() >= 0
        assert slope.diff().abs().max() <= 7 / gamma**2 * step


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("experts", "k"), [(2, 1), (4, 2), (8, 3)])
def test_dselect_k_selects(experts, k, static):
    torch.manual_seed(0)
    selectors = Selectors(experts, k, gamma=1.0, entropy=0.0, static=static).double()
    features = {
        "gate": torch.randn(50, 3, dtype=torch.float64),
        "experts": torch.eye(experts).double().expand(50, -1, -1),
    }
    weights = selectors(features)  # of unit vectors: the mixture is the weights
    torch.testing.assert_close(weights.sum(-1), torch.ones(50).double(), rtol=1e-14, atol=0)
    assert (weights > 0).all()  # at the start nothing is decided
    with torch.no_grad():
        for parameter in selectors.z.parameters():
            parameter.copy_(100 * torch.randn_like(parameter))
    decided = selectors(features)
    torch.testing.assert_close(decided.sum(-1), torch.ones(50).double(), rtol=1e-14, atol=0)
    counts = (decided > 0).sum(-1).double()
    assert (counts <= k).double().mean() > 0.85  # the others have a number within ±1/2
    assert selectors.logged()["selected"].item() == pytest.approx(counts.mean().item())
    with torch.no_grad():
        for parameter in selectors.z.parameters():
            parameter.zero_()
    torch.testing.assert_close(selectors(features), torch.full((50, experts), 1 / experts).double())
    assert selectors.logged()["gate_entropy"].item() == pytest.approx(math.log(experts))


def test_the_penalty_is_the_entropy_of_the_selectors():
    selectors = Selectors(4, 2, gamma=1.0, entropy=0.3, static=True)
    with torch.no_grad():
        selectors.z.value.zero_()
    features = {"gate": torch.ones(5, 1), "experts": torch.ones(5, 4, 1)}
    selectors(features)
    assert selectors.penalty().item() == pytest.approx(0.3 * 2 * math.log(4), rel=1e-4)
    assert selectors.penalty() is None  # it is given out once
    with torch.no_grad():
        selectors.z.value.fill_(9.0)  # decided: the penalty and its gradient are finite
    selectors(features)
    penalty = selectors.penalty()
    penalty.backward()
    assert abs(penalty.item()) < 1e-5 and selectors.z.value.grad.isfinite().all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_sample_alone_gives_what_it_gives_in_a_batch(name):
    model, _, inputs, _ = make(name)
    whole = model(inputs)
    for task, prediction in model(inputs[2:3]).items():
        torch.testing.assert_close(prediction, whole[task][2:3], rtol=1e-12, atol=1e-13)


def test_nested_features_are_mixed_leaf_by_leaf():
    experts = [{"levels": [torch.rand(2, 3, 4, 4), torch.rand(2, 5)], "sizes": torch.arange(3)} for _ in range(3)]
    weights = torch.rand(2, 3)
    mixed = mix(weights, stack(experts))
    for i in range(2):
        expected = sum(
            weights[:, e].view(2, *[1] * (mixed["levels"][i].dim() - 1)) * own["levels"][i]
            for e, own in enumerate(experts)
        )
        torch.testing.assert_close(mixed["levels"][i], expected)
    assert torch.equal(mixed["sizes"], torch.arange(3))


def test_what_a_gate_reads():
    maps, tokens = torch.rand(2, 3, 4, 5), torch.rand(2, 7, 3)
    torch.testing.assert_close(pooled(maps), maps.flatten(2).mean(-1))
    torch.testing.assert_close(pooled(maps, last_axis_is_channels=True), maps.flatten(1, 2).mean(1))
    torch.testing.assert_close(pooled(tokens), tokens.mean(1))
    assert flattened(maps).shape == (2, 60) and torch.equal(pooled(tokens[:, 0]), tokens[:, 0])
    for wrong in (torch.zeros(2, 3, dtype=torch.long), {"x": maps}, torch.rand(2)):
        for read in (flattened, pooled):
            with pytest.raises(ValueError, match="a gate reads one tensor"):
                read(wrong)


def sequential():
    first, second = (nn.Flatten(), nn.Linear(4, 6), nn.ReLU()), (nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.0))
    return nn.Sequential(*first, *second, nn.Linear(6, 3))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_levels_are_the_backbone_in_parts(count):
    whole = sequential()
    levels, x = levels_of(whole, count).modules, torch.rand(2, 2, 2)
    y = x
    for level in levels:
        y = level(y)
        assert any(True for _ in level.parameters())
    assert len(levels) == count and torch.equal(y, whole(x))


@pytest.mark.parametrize("from_stage", [0, 1, 2])
@pytest.mark.parametrize("kind", [Ensemble, OMoE, MMoE, DSelectK, CGC])
def test_a_stem_is_shared_and_experts_are_above(kind, from_stage):
    """With the weights of one backbone everywhere, the architecture is that backbone."""
    torch.manual_seed(0)
    one, inputs = sequential(), torch.rand(4, 2, 2)
    built = kind(backbone=lambda: copy.deepcopy(one), tasks=TASKS, from_stage=from_stage)
    reader = built.reader("a")
    layers = [m for m in built.trunk.modules() if type(m) is nn.Linear]
    widths = [(layer.in_features, layer.out_features) for layer in layers]
    experts = len(widths) - from_stage
    assert widths[:from_stage] == [(4, 6), (6, 6)][:from_stage] and experts % (3 - from_stage) == 0
    for module in (built.trunk, reader):
        if module is not None:
            undo_noise(module, one)
    features = built.trunk(inputs)
    torch.testing.assert_close(features if reader is None else reader(features), one(inputs))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: levels_of(sequential(), 4), "levels=4 must be at most 3, the stages of the backbone"),
        (lambda: levels_of(nn.Linear(2, 2), 2), "the stages of Linear are not known"),
        (
            lambda: MMoE(sequential, TASKS, from_stage=3),
            "from_stage=3 must be from 0 to 2: the backbone has 3 stages, and the experts need at least the last.",
        ),
        (lambda: CGC(sequential, TASKS, from_stage=-1), "from_stage=-1 must be from 0 to 2"),
        (lambda: Ensemble(lambda: nn.Linear(2, 2), TASKS, from_stage=1), "the stages of Linear are not known"),
        (lambda: CGC(sequential, TASKS, shared=0), "shared=0 must be 1 or more"),
        (lambda: CGC(sequential, TASKS, own=0), "own=0 must be 1 or more"),
        (lambda: PLE(sequential, TASKS, own=0), "own=0 must be 1 or more"),
        (lambda: PLE(sequential, TASKS, levels=0), "levels=0 must be 1 or more"),
        (lambda: DSelectK(sequential, TASKS, experts=5), "experts=5 must be a power of two"),
        (lambda: DSelectK(sequential, TASKS, experts=1), "experts=1 must be a power of two"),
        (lambda: DSelectK(sequential, TASKS, k=5), "k=5 must be from 1 to experts=4"),
        (lambda: DSelectK(sequential, TASKS, gamma=0.0), "gamma=0.0 must be above 0"),
        (lambda: DSelectK(sequential, TASKS, entropy=-1.0), "entropy=-1.0 must be 0 or more"),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)
