"""Losses against loops over single labels, and their masks of labels."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from mtl.losses import (
    BalancedBCE,
    CosineNormals,
    Focal,
    InverseDepth,
    MaskedBCE,
    MaskedHuber,
    MaskedL1,
    MaskedL2,
    MaskedPoisson,
    MaskedQuantile,
    TokenCrossEntropy,
)
from mtl.tasks import Task, count_labels, present_tasks

NAN = math.nan


def pairs(prediction, target):
    return list(zip(prediction.double().flatten().tolist(), target.double().flatten().tolist(), strict=True))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def nats(logit, y):
    p = 1 / (1 + math.exp(-logit))
    return -(y * math.log(p) + (1 - y) * math.log(1 - p))


def close(loss, expected):
    return loss.item() == pytest.approx(expected, rel=1e-5)


def depths():
    torch.manual_seed(0)
    prediction, target = 5 * torch.rand(2, 1, 3, 4), 1 + 5 * torch.rand(2, 1, 3, 4)
    target[0, 0, 0, :2], target[1, 0, 2, 1] = 0.0, NAN
    return prediction.requires_grad_(), target


def binary():
    torch.manual_seed(1)
    logits, target = 2 * torch.randn(3, 1, 4, 4), (torch.rand(3, 1, 4, 4) < 0.3).float()
    target[0, 0, 1, :3] = NAN
    return logits.requires_grad_(), target


def test_the_token_loss_is_torchs_with_the_classes_moved():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    targets[0, 1] = 2
    for options in ({}, {"ignore_index": 2}, {"label_smoothing": 0.1}, {"reduction": "sum"}):
        expected = nn.CrossEntropyLoss(**options)(logits.transpose(1, 2), targets)
        torch.testing.assert_close(TokenCrossEntropy(**options)(logits, targets), expected)
    assert TokenCrossEntropy().ignore_index == -100


def test_regressions_are_means_over_the_valid_pixels():
    prediction, target = depths()
    valid = [(p, t) for p, t in pairs(prediction, target) if not math.isnan(t) and t != 0]
    assert len(valid) == 21
    assert close(MaskedL1()(prediction, target), mean(abs(p - t) for p, t in valid))
    assert close(MaskedL2()(prediction, target), mean((p - t) ** 2 for p, t in valid))
    with_zeros = [(p, t) for p, t in pairs(prediction, target) if not math.isnan(t)]
    assert close(MaskedL1(invalid=None)(prediction, target), mean(abs(p - t) for p, t in with_zeros))
    assert not close(MaskedL1(invalid=None)(prediction, target), mean(abs(p - t) for p, t in valid))


def test_inverse_depth_is_that_of_one_over_x_and_its_tangent_below_the_nearest():
    prediction, target = depths()

    def inverse(x):
        return 1 / x if x >= 0.5 else 2 - 4 * (x - 0.5)

    valid = [(p, t) for p, t in pairs(prediction, target) if not math.isnan(t) and t != 0]
    assert any(p < 0.5 for p, _ in valid)
    assert close(InverseDepth()(prediction, target), mean(abs(inverse(p) - inverse(t)) for p, t in valid))
    zero = torch.zeros(1, 1, requires_grad=True)
    InverseDepth()(zero, torch.ones(1, 1)).backward()
    assert zero.grad.item() == pytest.approx(-4)  # away from zero, at a finite rate


def test_normals_are_compared_by_their_cosine():
    torch.manual_seed(2)
    prediction, target = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4)
    target[0, :, 1, 1] = 0.0
    target[1, 2, 3, 3] = NAN
    target[1, :, 0, 0] = torch.tensor([1.0, -1.0, 0.0])  # its sum is 0, but it is a normal
    cosines = []
    for b, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(4)).tolist():
        p, t = prediction[b, :, y, x].tolist(), target[b, :, y, x].tolist()
        if any(t) and not any(map(math.isnan, t)):
            cosines.append(sum(a * c for a, c in zip(p, t, strict=True)) / math.hypot(*p) / math.hypot(*t))
    assert len(cosines) == 30
    assert close(CosineNormals()(prediction, target), 1 - mean(cosines))
    assert CosineNormals().labelled(target).sum() == 30


def test_binary_losses_leave_missing_labels_out():
    logits, target = binary()
    valid = [(z, y) for z, y in pairs(logits, target) if not math.isnan(y)]
    positive = mean(1 - y for _, y in valid)
    assert 0.5 < positive < 1
    assert close(MaskedBCE()(logits, target), mean(nats(z, y) for z, y in valid))
    for given, weight in ((None, positive), (0.9, 0.9)):
        expected = mean((weight if y else 1 - weight) * nats(z, y) for z, y in valid)
        assert close(BalancedBCE(given)(logits, target), expected)
    assert not close(BalancedBCE(0.6)(logits, target), expected)
    assert BalancedBCE()(torch.randn(4), torch.zeros(4)).item() == 0


def test_focal_weighs_by_what_is_missing_to_certainty():
    logits, target = binary()
    valid = [(z, y) for z, y in pairs(logits, target) if not math.isnan(y)]
    for gamma, alpha in ((2.0, None), (0.5, 0.25), (0.0, None)):
        expected = mean(
            (1 if alpha is None else alpha if y else 1 - alpha)
            * (1 - math.exp(-nats(z, y))) ** gamma
            * nats(z, y)
            for z, y in valid
        )  # fmt: skip
        assert close(Focal(gamma, alpha)(logits, target), expected)
    torch.manual_seed(3)
    scores, classes = torch.randn(2, 5, 3, 3), torch.randint(5, (2, 3, 3))
    classes[0, 0] = -1
    expected = []
    for b, y, x in (classes >= 0).nonzero().tolist():
        p = scores[b, :, y, x].double().softmax(0)[classes[b, y, x]].item()
        expected.append(-((1 - p) ** 1.5) * math.log(p))
    assert close(Focal(1.5, ignore_index=-1)(scores, classes), mean(expected))
    torch.testing.assert_close(
        Focal(0.0, ignore_index=-1)(scores, classes), nn.CrossEntropyLoss(ignore_index=-1)(scores, classes)
    )
    certain = torch.tensor([[50.0, 0.0]], requires_grad=True)
    Focal(0.5)(certain, torch.tensor([0])).backward()
    assert certain.grad.isfinite().all()


def cases():
    depth, binaries = depths(), binary()
    normal = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4)
    normal[1][0, 0, 0, 0] = NAN
    normal[1][1, :, 2, 2] = 0.0
    return [
        (MaskedL1(), *depth), (MaskedHuber(), *depth), (MaskedQuantile(0.9), *depth), (MaskedPoisson(), *depth),
        (MaskedL2(), *depth), (InverseDepth(), *depth), (CosineNormals(), *normal),
        (MaskedBCE(), *binaries), (BalancedBCE(), *binaries), (BalancedBCE(0.9), *binaries), (Focal(), *binaries),
    ]  # fmt: skip


def test_what_is_no_label_gets_no_gradient_and_spoils_none():
    for loss, prediction, target in cases():
        prediction.grad = None
        loss(prediction, target).backward()
        mask = loss.labelled(target)
        if mask.dim() < prediction.dim():
            mask = mask.unsqueeze(1).expand_as(prediction)
        name = type(loss).__name__
        assert prediction.grad.isfinite().all(), name
        assert not prediction.grad[~mask].any(), name
        assert prediction.grad[mask].abs().sum() > 0 and not mask.all(), name


def test_the_mean_over_batches_by_their_labels_is_the_whole_mean():
    """count_labels is what a loss averages over; BalancedBCE of the batch depends on the batch by itself."""
    for loss, prediction, target in cases():
        if isinstance(loss, BalancedBCE) and loss.positive is None:
            continue
        task = Task("t", loss)
        counts = [count_labels(task, part) for part in target.split(1)]
        parts = [loss(p, t).item() for p, t in zip(prediction.split(1), target.split(1), strict=True)]
        whole = sum(c * p for c, p in zip(counts, parts, strict=True)) / sum(counts)
        assert close(loss(prediction, target), whole), type(loss).__name__


def test_a_batch_without_any_label_of_a_task_has_it_absent():
    nothing = {
        "depth": (MaskedL1(), torch.zeros(2, 1, 4, 4)),
        "normals": (CosineNormals(), torch.zeros(2, 3, 4, 4)),
        "edges": (BalancedBCE(), torch.full((2, 1, 4, 4), NAN)),
        "classes": (Focal(ignore_index=-1), torch.full((2, 4, 4), -1)),
        "strength": (MaskedL1(invalid=None), torch.full((2, 1, 4, 4), NAN)),
    }
    tasks = [Task(name, loss) for name, (loss, _) in nothing.items()]
    targets = {name: target for name, (_, target) in nothing.items()}
    assert present_tasks(tasks, targets) == []
    one = {name: target.clone() for name, target in targets.items()}
    for target in one.values():
        target[1, ..., 2, 2] = 1
    assert [task.name for task in present_tasks(tasks, one)] == list(nothing)
    assert [task.name for task in present_tasks(tasks, targets | {"depth": one["depth"]})] == ["depth"]


def test_shapes_that_would_be_broadcast_are_named():
    for loss in (MaskedL1(), MaskedPoisson(), InverseDepth(), MaskedBCE(), BalancedBCE(), Focal(), CosineNormals()):
        with pytest.raises(ValueError, match=r"prediction \[2, 3, 4, 4\] and the target \[2, 4, 4\] differ"):
            loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: InverseDepth(nearest=0.0), "nearest=0.0 must be above 0"),
        (lambda: MaskedHuber(0.0), "delta=0.0 must be above 0"),
        (lambda: MaskedQuantile(1.0), "quantile=1.0 must be between 0 and 1"),
        (lambda: BalancedBCE(1.5), "positive=1.5 must be from 0 to 1, or null"),
        (lambda: Focal(gamma=-1.0), "gamma=-1.0 must be 0 or more"),
        (lambda: Focal(alpha=2.0), "alpha=2.0 must be from 0 to 1, or null"),
        (lambda: Focal(alpha=0.2)(torch.zeros(1, 2), torch.tensor([0])), "alpha=0.2 weighs positives"),
    ],
)
def test_settings_outside_their_range_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_low_precision_predictions_are_summed_in_float32():
    big = interpolate(torch.full((1, 1, 2, 2), 8.0), size=(256, 512)).half()
    for loss, expected in ((MaskedL1(), 7.0), (MaskedL2(), 49.0)):
        assert loss(big, torch.ones(big.shape)).item() == pytest.approx(expected)  # in float16 the sum is infinite
    assert big.sum().isinf()


@pytest.mark.parametrize(
    ("loss", "torchs"),
    [(MaskedHuber(0.5), nn.HuberLoss(delta=0.5)), (MaskedPoisson(), nn.PoissonNLLLoss())],
    ids=["Huber", "Poisson"],
)
def test_losses_of_numbers_are_torchs_over_the_labels(loss, torchs):
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(8, 2, generator=generator), torch.randint(9, (8, 2), generator=generator).float()
    known = torch.rand(8, 2, generator=generator) < 0.7
    expected = torchs(prediction[known], target[known]).item()
    assert loss(prediction, target.where(known, NAN)).item() == pytest.approx(expected, rel=1e-6)
    assert loss(prediction, target).item() != pytest.approx(expected, rel=1e-6), "the negative control"


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_the_least_pinball_loss_is_at_the_quantile(quantile):
    target = torch.arange(101.0)[:, None]
    loss = MaskedQuantile(quantile)
    values = [loss(torch.full_like(target, float(guess)), target).item() for guess in range(101)]
    assert values.index(min(values)) == round(100 * quantile)
