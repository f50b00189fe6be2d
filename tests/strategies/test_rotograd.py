"""RotoGrad's rotations: against autograd on the uncut graph, what they are for, and what they leave alone."""

import pytest
import torch
from support.composing import configuration
from support.networks import distance
from torch import nn

from mtl.architectures import RotoGrad as Architecture
from mtl.architectures.read import Read
from mtl.architectures.rotograd import Rotation
from mtl.config.build import build
from mtl.engine.engine import Engine
from mtl.engine.precision import Precision
from mtl.errors import ConfigError
from mtl.model import MultiTaskModel
from mtl.rules import RotoGradScale
from mtl.strategies import Detached, RotoGrad
from mtl.tasks import Task
from mtl.weightings import Equal

NAMES = ["a", "b", "c"]
TRUNKS = {
    "vector": lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh()),
    "tokens": lambda: nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Linear(1, 6), nn.Tanh()),
    "maps": lambda: nn.Sequential(nn.Unflatten(1, (1, 3, 1)), nn.Conv2d(1, 6, 1), nn.Tanh()),
}
HEADS = {
    "vector": lambda: nn.Linear(6, 3),
    "tokens": lambda: nn.Sequential(nn.Flatten(), nn.Linear(18, 3)),
    "maps": lambda: nn.Sequential(nn.Flatten(), nn.Linear(18, 3)),
}


def problem(kind="vector", size=None):
    torch.manual_seed(0)
    trunk = TRUNKS[kind]()
    architecture = Architecture(lambda: trunk, NAMES, size)
    model = MultiTaskModel(architecture.trunk, {n: Read(architecture.reader(n), HEADS[kind]()) for n in NAMES})
    x, y = torch.randn(5, 3).double(), {name: torch.randint(3, (5,)) for name in NAMES}
    model.double()(x)
    for head in model.heads.values():
        nn.init.normal_(head.reader.skew, std=0.3)
    return model, [Task(name, nn.CrossEntropyLoss()) for name in NAMES], x, y


def strategy(**options):
    return RotoGrad(Equal(), RotoGradScale(3), NAMES, **options)


def features_of(model, x):
    return model.backbone(x).detach().requires_grad_()


def rows_of(model, tasks, x, y):
    z = features_of(model, x)
    return [torch.autograd.grad(t.loss(model.heads[t.name](z), y[t.name]), z)[0] for t in tasks if t.name in y]


@pytest.mark.parametrize("kind", TRUNKS)
@pytest.mark.parametrize("size", [None, 4], ids=["all", "part"])
@pytest.mark.parametrize("options", [{}, {"scale": 7.0}], ids=["scale 1", "scale 7"])
def test_a_rotation_gets_the_gradient_of_the_papers_objective(kind, size, options):
    """The inner product of the turned target with the gradient that its head has left at the rotated features."""
    model, tasks, x, y = problem(kind, size)
    rows = rows_of(model, tasks, x, y)
    norms = torch.stack([row.norm() for row in rows])
    target = sum(norms.mean() * row / norm for row, norm in zip(rows, norms, strict=True)) / 3  # the first step's C
    strategy(**options).step(model, tasks, x, y)
    for task in tasks:
        rotation, head = model.heads[task.name].reader, model.heads[task.name].head
        r = rotation(features_of(model, x)).detach().requires_grad_()
        (at_rotated,) = torch.autograd.grad(task.loss(head(r), y[task.name]), r)
        axis = 2 if kind == "tokens" else 1
        upper = rotation.skew.detach().requires_grad_()
        matrix = torch.eye(6).double()
        turn = torch.linalg.matrix_exp(torch.triu(upper, 1) - torch.triu(upper, 1).T)
        matrix = torch.block_diag(turn, matrix[: 6 - len(turn), : 6 - len(turn)])
        turned = torch.tensordot(target, matrix, ([axis], [1])).movedim(-1, axis)
        (expected,) = torch.autograd.grad(-2 * (turned * at_rotated).sum() / 5, upper)
        torch.testing.assert_close(rotation.skew.grad, expected, rtol=1e-9, atol=1e-14)
        assert expected.abs().max() > 1e-6


def test_the_trunk_gets_gradients_of_one_norm_and_a_head_its_own():
    model, tasks, x, y = problem()
    rows = rows_of(model, tasks, x, y)
    norms = torch.stack([row.norm() for row in rows])
    strategy().step(model, tasks, x, y)
    direction = sum(norms.mean() * row / norm for row, norm in zip(rows, norms, strict=True))
    expected = torch.autograd.grad(model.backbone(x), list(model.backbone.parameters()), direction)
    for p, gradient in zip(model.backbone.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-10, atol=1e-14)
    heads = {n: p.grad.clone() for n, p in model.heads.named_parameters() if "skew" not in n}
    model.zero_grad()
    Detached(Equal()).step(model, tasks, x, y)
    own = {n: p.grad for n, p in model.heads.named_parameters() if "skew" not in n}
    assert distance(own, heads) <= 1e-12 and model.heads["a"].reader.skew.grad is None


def test_rotations_align_the_gradients():
    """Two heads pull the features in opposite directions; trunk and heads are held, and the rotations learn."""
    model, tasks, x, y = problem()
    with torch.no_grad():
        for name, sign in (("a", 1), ("b", -1), ("c", 1)):
            model.heads[name].reader.skew.mul_(0.1)
            model.heads[name].head.weight.copy_(sign * model.heads["a"].head.weight)
            y[name] = y["a"]

    def cosines():
        rows = torch.stack([row.flatten() for row in rows_of(model, tasks, x, y)])
        return torch.corrcoef(rows - rows.mean(1, keepdim=True) * 0)[0, 1].item()

    before, learned = cosines(), [head.reader.skew for head in model.heads.values()]
    optimizer = torch.optim.Adam(learned, lr=0.02)
    for _ in range(150):
        model.zero_grad()
        strategy().step(model, tasks, x, y)
        optimizer.step()
    assert before < -0.5 and cosines() > 0.5
    for head in model.heads.values():
        matrix = head.reader.matrix()
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(6).double(), rtol=0, atol=1e-12)


def test_absent_tasks_keep_their_rotation_and_a_loss_scale_is_divided_out():
    model, tasks, x, y = problem()
    del y["b"]
    strategy().step(model, tasks, x, y)
    once = {n: head.reader.skew.grad for n, head in model.heads.items()}
    assert once["b"] is None and once["a"] is not None
    model.zero_grad()
    scaled = Precision()
    scaled.scale = 64.0
    strategy().run(Engine(model, tasks, scaled), x, y)
    torch.testing.assert_close(model.heads["a"].reader.skew.grad / 64, once["a"], rtol=1e-9, atol=1e-14)


def test_what_does_not_fit(caplog):
    options = ["~backbone", "+backbone._target_=support.networks.Tiny", "data.image_size=8", "device=cpu"]
    with pytest.raises(
        ConfigError, match=r"^strategy=rotograd finds no rotation in the head of left: use architecture="
    ):
        build(configuration(*options, "strategy=rotograd"))
    with pytest.raises(ConfigError, match=r"architecture\.size=9 must be at most 8, the features' size"):
        build(configuration(*options, "strategy=rotograd", "architecture=rotograd", "architecture.size=9"))
    with pytest.raises(ConfigError, match=r"size=1 must be 2 or more"):
        build(configuration(*options, "strategy=rotograd", "architecture=rotograd", "architecture.size=1"))
    build(configuration(*options, "strategy=mgda", "architecture=rotograd"))
    assert "only strategy=rotograd learns the rotations; here they stay the identity" in caplog.text
    with pytest.raises(ValueError, match="features that are one tensor"):
        Rotation()({"levels": torch.zeros(1, 2)})


def test_the_rotations_have_a_learning_rate_of_their_own():
    options = ["~backbone", "+backbone._target_=support.networks.Tiny", "data.image_size=8", "device=cpu"]
    _, state = build(configuration(*options, "strategy=rotograd", "architecture=rotograd", "optimizer.sharing.lr=1e-4"))
    rates = {g["name"]: (g["initial_lr"], len(g["params"])) for g in state.optimizer.param_groups}
    assert rates["sharing"] == (1e-4, 2) and rates["heads"][0] == 2e-3
