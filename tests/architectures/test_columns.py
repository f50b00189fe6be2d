"""Cross-stitch networks and NDDR against their equations, and the cut before the last unit."""

import pytest
import torch
from support.by_formula import STRATEGIES, TASKS, assemble, assert_exact, normalised, trained_by
from support.exactness import same
from support.networks import gradients
from torch import nn

from mtl.architectures import NDDR, CrossStitch
from mtl.backbones import Timm
from mtl.strategies import Detached
from mtl.weightings import Equal


def vectors():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())


def maps():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Tanh()))


class MapHead(nn.Linear):
    def forward(self, z):
        return super().forward(z.mean((2, 3)))


BACKBONES = {"vectors": (vectors, lambda: nn.Linear(4, 3), (5,)), "maps": (maps, lambda: MapHead(4, 3), (2, 7, 7))}
KINDS = {
    "cross-stitch": lambda backbone, tasks: CrossStitch(backbone, tasks),
    "cross-stitch, one number a pair": lambda backbone, tasks: CrossStitch(backbone, tasks, per_channel=False),
    "nddr": lambda backbone, tasks: NDDR(backbone, tasks),
}


def make(kind, on="vectors"):
    torch.manual_seed(0)
    backbone, head, shape = BACKBONES[on]
    return assemble(KINDS[kind](backbone, TASKS), head, torch.randn(6, *shape, dtype=torch.float64))


def mixed(unit, columns):
    """The unit's equation, channel by channel; channels on axis 1."""
    if hasattr(unit, "alpha"):
        channels = columns[0].shape[1]
        alpha = unit.alpha.expand(-1, channels)
        return torch.stack([sum(alpha[j, c] * x[:, c] for j, x in enumerate(columns)) for c in range(channels)], 1)
    x = torch.cat(columns, 1)
    return normalised(torch.stack([torch.einsum("c,bc...->b...", row, x) for row in unit.weight], 1), unit.norm)


def predict(model, inputs):
    """All tasks on each stage."""
    trunk = model.backbone
    x = [inputs] * len(TASKS)
    for number in range(len(trunk.units) + 1):
        outputs = [trunk.columns[task][number](own) for task, own in zip(TASKS, x, strict=True)]
        last = number == len(trunk.units)
        row = {t: model.heads[t].reader.unit for t in TASKS} if last else trunk.units[number]
        x = [mixed(row[task], outputs) for task in TASKS]
    return {task: model.heads[task].head(own) for task, own in zip(TASKS, x, strict=True)}


@pytest.mark.parametrize("on", BACKBONES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_are_those_of_the_equation(strategy, kind, on):
    assert_exact(strategy, make(kind, on), predict)


@pytest.mark.parametrize("on", BACKBONES)
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_the_equation(kind, on):
    model, _, inputs, _ = make(kind, on)
    by_formula = predict(model, inputs)
    for task, prediction in model(inputs).items():
        torch.testing.assert_close(prediction, by_formula[task], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_unit_is_private_and_all_train_the_columns(kind):
    for name, tasks in trained_by(make(kind)).items():
        assert tasks == (list(TASKS) if name.startswith("backbone") else [name.split(".")[1]]), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_gram_matrix_has_no_empty_pair(kind):
    example = make(kind)
    gram = gradients(Detached(Equal()), *example, measure=True)[1].gram
    assert (gram.abs() > 1e-6 * gram.diagonal().max()).all()


def test_the_gram_matrix_is_that_of_the_numbers_alpha_and_of_the_stitched_gradients():
    """G_ij = Σ_c <α_i^c, α_j^c> <δ_i^c, δ_j^c>, δ_k the gradient at what the head of task k reads."""
    model, tasks, inputs, targets = example = make("cross-stitch", "maps")
    found = gradients(Detached(Equal()), *example, measure=True)[1].gram
    features, deltas, alphas = model.backbone(inputs), [], []
    for task in tasks:
        head = model.heads[task.name]
        stitched = head.reader(features).detach().requires_grad_()
        loss = task.loss(head.head(stitched), targets[task.name])
        deltas.append(torch.autograd.grad(loss, stitched)[0].transpose(0, 1).flatten(1))  # [C, n]
        alphas.append(head.reader.unit.alpha)  # [K, C]
    expected = torch.stack([
        torch.stack([((a * b).sum(0) * (d * e).sum(1)).sum() for b, e in zip(alphas, deltas, strict=True)])
        for a, d in zip(alphas, deltas, strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("on", BACKBONES)
def test_without_stitches_they_are_networks_of_their_own(on):
    model, _, inputs, _ = make("cross-stitch", on)
    units = [u for u in model.modules() if hasattr(u, "alpha")]
    for unit in units:
        unit.alpha.data.zero_()[unit.own] = 1.0
    for task, prediction in model(inputs).items():
        x = inputs
        for stage in model.backbone.columns[task]:
            x = stage(x)
        assert torch.equal(prediction, model.heads[task].head(x))


@pytest.mark.parametrize("on", BACKBONES)
def test_equal_columns_in_equal_parts_are_hard_sharing(on):
    torch.manual_seed(0)
    backbone, _, shape = BACKBONES[on]
    made, inputs = backbone(), torch.randn(6, *shape)
    built = CrossStitch(lambda: made, TASKS, same=1 / 3, other=1 / 3)
    readers = {task: built.reader(task) for task in TASKS}
    for _ in range(2):  # the first forward pass makes alpha
        features = built.trunk(inputs)
        for reader in readers.values():
            torch.testing.assert_close(reader(features), made(inputs))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_columns_begin_as_copies_and_units_near_the_identity(kind, lazy):
    first = nn.LazyLinear(6) if lazy else nn.Linear(5, 6)
    built = KINDS[kind](lambda: nn.Sequential(first, nn.Tanh(), nn.Linear(6, 4)), TASKS)
    features = built.trunk(torch.randn(4, 5))
    states = [column.state_dict() for column in built.trunk.columns.values()]
    assert all(same(states[0], state) for state in states[1:])
    assert len({p for column in built.trunk.columns.values() for p in column.parameters()}) == 12  # no common object
    for k, task in enumerate(TASKS):
        unit = built.reader(task).unit
        unit(features["columns"])
        if kind == "nddr":
            expected = torch.cat([(0.9 if j == k else 0.1) * torch.eye(4) for j in range(3)], 1)
            assert torch.equal(unit.weight, expected)
        else:
            assert unit.alpha[k].unique().tolist() == pytest.approx([0.9])
            assert unit.alpha.sum(0).tolist() == pytest.approx([1.1] * unit.alpha.shape[1])


@pytest.mark.parametrize("kind", KINDS)
def test_columns_begin_as_copies_where_statistics_have_no_shape_yet(kind):
    layers = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.LazyBatchNorm2d(affine=False)
    built = KINDS[kind](lambda: nn.Sequential(*layers), TASKS)
    built.trunk.eval()(torch.randn(4, 1, 8, 8))
    states = [column.state_dict() for column in built.trunk.columns.values()]
    assert all(same(states[0], state) for state in states[1:]) and len(states[0]) == 12
    assert len({b.data_ptr() for column in built.trunk.columns.values() for b in column.buffers()}) == 18


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "features"),
    [
        *(("test_resnet", features) for features in ("pooled", "pyramid")),
        *(("swin_tiny_patch4_window7_224", features) for features in ("tokens", "pyramid")),
        ("test_vit2", "pooled"),
    ],
)
def test_readers_return_what_the_backbone_would(name, features, kind):
    def fresh():
        return Timm(name, features=features, image_size=64)

    built, inputs = KINDS[kind](fresh, ["a", "b"]), torch.randn(2, 3, 64, 64)
    common, plain = built.trunk(inputs), fresh()(inputs)
    for task in ("a", "b"):
        own = built.reader(task)(common)
        shapes = [[z.shape for z in found] if features == "pyramid" else found.shape for found in (own, plain)]
        assert shapes[0] == shapes[1]


def test_what_decides_the_sharing_is_named():
    model, *_ = make("cross-stitch")
    named = {n for n, _ in model.named_parameters() if n.endswith("alpha")}
    found = [p for m in model.modules() if hasattr(m, "sharing_parameters") for p in m.sharing_parameters()]
    assert len(found) == len(named) == 9
    alpha = model.heads["b"].reader.unit.alpha
    assert torch.equal(model.heads["b"].reader.logged()["alpha_last"], alpha.detach().mean(1))
    logged = model.backbone.logged()
    assert len(logged) == 2 * 3 * 3
    assert logged["alpha/c~a/2"] == model.backbone.units[1]["c"].alpha[0].mean()
    assert make("nddr")[0].backbone.logged() == {}


def test_a_backbone_without_stages_is_refused():
    for kind in KINDS.values():
        with pytest.raises(ValueError, match="the stages of Linear are not known"):
            kind(lambda: nn.Linear(3, 4), TASKS)
