"""Losses are told by numbers: means over their labels pass, and others do not; against closed forms of two halves."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mtl.config.loss_means import KNOWN, NotTold, is_known_mean, is_mean
from mtl.data.labels import labels_of
from mtl.losses import (
    BalancedBCE,
    CosineNormals,
    Focal,
    InverseDepth,
    MaskedBCE,
    MaskedL1,
    MaskedL2,
    TokenCrossEntropy,
)
from mtl.tasks import Task, count_labels

pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss:UserWarning")

B, C = 8, 5
GENERATOR = torch.Generator().manual_seed(0)


def numbers(*shape):
    return torch.randn(shape, generator=GENERATOR)


def classes(*shape, missing=None):
    drawn = torch.randint(C, shape, generator=GENERATOR)
    if missing is not None:
        drawn.flatten()[:3] = missing
    return drawn


def signs(*shape):
    return torch.randint(2, shape, generator=GENERATOR) * 2 - 1


def holed(values, hole=torch.nan):
    values.flatten()[:3] = hole
    return values


class Wrapped(nn.Module):
    """A loss of more than two arguments."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, prediction, target):
        return self.function(prediction, target)


def ctc(prediction, target):
    """Of [B, T, C], as torch's, which divides each by the length of its target."""
    lengths = torch.full((len(target),), prediction.shape[1])
    return F.ctc_loss(prediction.log_softmax(-1).transpose(0, 1), target, lengths, (target > 0).sum(1))


def boxes(prediction, target):
    """Of a list with an item a sample, of any length."""
    return torch.stack([(p.sum() - y.sum()).square() for p, y in zip(prediction, target, strict=True)]).mean()


WEIGHT = torch.tensor([0.1, 1.0, 2.0, 3.0, 4.0])
MEANS = {
    "CrossEntropy": (nn.CrossEntropyLoss(), numbers(2, C), classes(B)),
    "CrossEntropy, one class": (nn.CrossEntropyLoss(), numbers(2, C), torch.zeros(B, dtype=torch.long)),
    "CrossEntropy, weights": (nn.CrossEntropyLoss(weight=WEIGHT), numbers(2, C), classes(B)),
    "CrossEntropy, smoothing": (nn.CrossEntropyLoss(label_smoothing=0.2), numbers(2, C), classes(B, missing=-100)),
    "CrossEntropy, weights, smoothing": (
        nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2, ignore_index=255),
        numbers(2, C), classes(B, missing=255),
    ),
    "CrossEntropy, weights of 0": (
        nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1, 1, 1, 0])), numbers(2, C), classes(B)
    ),
    "CrossEntropy, maps": (
        nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=255), numbers(2, C, 4, 3), classes(B, 4, 3, missing=255)
    ),
    "CrossEntropy, probabilities": (nn.CrossEntropyLoss(), numbers(2, C), numbers(B, C).softmax(1)),
    "CrossEntropy, probabilities, weights": (nn.CrossEntropyLoss(WEIGHT), numbers(2, C), numbers(B, C).softmax(1)),
    "NLL": (nn.NLLLoss(weight=WEIGHT), numbers(2, C).log_softmax(1), classes(B, missing=-100)),
    "NLL, maps": (nn.NLLLoss(ignore_index=0), numbers(2, C, 4, 3), classes(B, 4, 3)),
    "MSE": (nn.MSELoss(), numbers(2, 3), numbers(B, 3)),
    "L1": (nn.L1Loss(), numbers(2, 1, 4, 3), numbers(B, 1, 4, 3)),
    "SmoothL1": (nn.SmoothL1Loss(beta=0.3), numbers(2, 3), numbers(B, 3)),
    "Huber": (nn.HuberLoss(), numbers(2, 3), numbers(B, 3)),
    "BCE": (nn.BCELoss(), numbers(2, 3).sigmoid(), numbers(B, 3).sigmoid()),
    "BCEWithLogits": (
        nn.BCEWithLogitsLoss(weight=WEIGHT[:3], pos_weight=WEIGHT[2:]), numbers(2, 3), numbers(B, 3).sigmoid()
    ),
    "KLDiv": (nn.KLDivLoss(), numbers(2, C).log_softmax(1), numbers(B, C).softmax(1)),
    "KLDiv, batchmean": (nn.KLDivLoss(reduction="batchmean"), numbers(2, C), numbers(B, C).softmax(1)),
    "KLDiv, log": (nn.KLDivLoss(log_target=True), numbers(2, C), numbers(B, C).log_softmax(1)),
    "PoissonNLL": (nn.PoissonNLLLoss(), numbers(2, 3), numbers(B, 3).abs()),
    "PoissonNLL, full": (nn.PoissonNLLLoss(log_input=False, full=True), numbers(2, 3).exp(), 5 * numbers(B, 3).abs()),
    "GaussianNLL": (
        Wrapped(lambda p, y: F.gaussian_nll_loss(p[0], y, p[1].exp())), (numbers(2, 3), numbers(2, 3)), numbers(B, 3)
    ),
    "GaussianNLL, dict": (
        Wrapped(lambda p, y: F.gaussian_nll_loss(p["mean"], y, p["var"])),
        {"mean": numbers(2, 3), "var": numbers(2, 3)}, numbers(B, 3),
    ),
    "HingeEmbedding": (nn.HingeEmbeddingLoss(), numbers(2, 3), signs(B, 3)),
    "SoftMargin": (nn.SoftMarginLoss(), numbers(2, 3), signs(B, 3)),
    "MultiMargin": (nn.MultiMarginLoss(weight=WEIGHT), numbers(2, C), classes(B)),
    "MultiLabelMargin": (nn.MultiLabelMarginLoss(), numbers(2, C), classes(B, C, missing=-1)),
    "MultiLabelSoftMargin": (nn.MultiLabelSoftMarginLoss(weight=WEIGHT), numbers(2, C), (numbers(B, C) > 0).float()),
    "CosineEmbedding": (
        Wrapped(lambda p, y: F.cosine_embedding_loss(p, y[0], y[1])), numbers(2, C), [numbers(B, C), signs(B)]
    ),
    "MarginRanking": (Wrapped(lambda p, y: F.margin_ranking_loss(p[:, 0], p[:, 1], y)), numbers(2, 2), signs(B)),
    "TripletMargin": (
        Wrapped(lambda p, y: F.triplet_margin_loss(p, y["positive"], y["negative"])),
        numbers(2, C), {"positive": numbers(B, C), "negative": numbers(B, C)},
    ),
    "CTC": (Wrapped(ctc), numbers(2, 9, C), torch.tensor([[1, 2, 3], [2, 1, 0], [3, 0, 0], [4, 2, 0]] * 2)),
    "a list of boxes": (boxes, numbers(2, 3), [numbers(i + 1) for i in range(B)]),
    "TokenCrossEntropy": (TokenCrossEntropy(), numbers(2, 4, C), classes(B, 4, missing=-100)),
    "MaskedL1": (MaskedL1(), numbers(2, 1, 3, 4), holed(numbers(B, 1, 3, 4).abs(), 0.0)),
    "MaskedL2": (MaskedL2(None), numbers(2, 1, 3, 4), holed(numbers(B, 1, 3, 4))),
    "InverseDepth": (InverseDepth(), numbers(2, 1, 3, 4).exp(), holed(numbers(B, 1, 3, 4).exp())),
    "CosineNormals": (CosineNormals(), numbers(2, 3, 4, 4), holed(numbers(B, 3, 4, 4))),
    "MaskedBCE": (MaskedBCE(), numbers(2, 3), holed(numbers(B, 3).sigmoid())),
    "Focal": (Focal(), numbers(2, C), classes(B, missing=-100)),
    "Focal, binary": (Focal(alpha=0.25), numbers(2, 3), holed((numbers(B, 3) > 0).float())),
    "BalancedBCE, fixed": (BalancedBCE(0.9), numbers(2, 3), holed((numbers(B, 3) > 0).float())),
    "a function": (lambda p, y: (p - y).pow(4).mean(), numbers(2, 3), numbers(B, 3)),
    "negative": (lambda p, y: -(p * y).mean(), numbers(2, 3), numbers(B, 3)),
}  # fmt: skip


def supervised_contrastive(e, y):
    e, eye = F.normalize(e, dim=1), torch.eye(len(e), dtype=torch.bool)
    log_p = (e @ e.T / 0.1).masked_fill(eye, -1e9).log_softmax(1)
    same = (y[:, None] == y[None]) & ~eye
    return -(log_p * same).sum(1).div(same.sum(1).clamp_min(1)).mean()


def batch_hard(e, y):
    apart, same = torch.cdist(e, e), y[:, None] == y[None]
    return (0.2 + apart.masked_fill(~same, 0).amax(1) - apart.masked_fill(same, 1e9).amin(1)).clamp_min(0).mean()


def clip(e, y):
    logits = F.normalize(e, dim=1) @ F.normalize(y, dim=1).T
    return F.cross_entropy(logits / 0.1, torch.arange(len(e)))


def dice(p, y):
    p, t = p.softmax(1), F.one_hot(y, C).movedim(-1, 1).to(p)
    return 1 - (2 * (p * t).sum() + 1) / ((p + t).sum() + 1)


def unlabelled_mask(p, y):
    known = y > 0
    return (p - y)[known].abs().mean()


def scale_invariant(p, y):
    d = p - y
    return d.square().mean() - 0.5 * d.mean().square()


class IgnoresAndDividesByAll(nn.Module):
    ignore_index = -100

    def forward(self, p, y):
        return F.cross_entropy(p, y, reduction="sum") / y.numel()


class Decorrelated(nn.Module):
    """Zero and flat where two predictions are alike: the gradient tells."""

    def forward(self, p, y):
        return (p - p.mean(0)).square().mean()


def focal_by_positives(p, y):
    loss = F.binary_cross_entropy_with_logits(p, y, reduction="none")
    return loss.sum() / y.sum().clamp_min(1)


def pearson(p, y):
    p, y = p - p.mean(), y - y.mean()
    return 1 - (p * y).sum() / (p.norm() * y.norm())


OTHERS = {
    "sum": (nn.MSELoss(reduction="sum"), numbers(2, 3), numbers(B, 3)),
    "sum of classes": (nn.CrossEntropyLoss(reduction="sum"), numbers(2, C), classes(B)),
    "supervised contrastive": (supervised_contrastive, numbers(2, 6), classes(B)),
    "supervised contrastive, all alike": (supervised_contrastive, numbers(2, 6), torch.zeros(B, dtype=torch.long)),
    "supervised contrastive, all apart": (supervised_contrastive, numbers(2, 6), torch.arange(B)),
    "batch hard triplets": (batch_hard, numbers(2, 6), classes(B)),
    "batch hard triplets, all apart": (batch_hard, numbers(2, 6), torch.arange(B)),
    "InfoNCE": (clip, numbers(2, 6), numbers(B, 6)),
    "Dice": (dice, numbers(2, C, 4, 4), classes(B, 4, 4)),
    "Dice of equal maps": (dice, numbers(2, C, 4, 4), torch.ones(B, 4, 4, dtype=torch.long)),
    "root of the mean": (lambda p, y: (p - y).square().mean().sqrt(), numbers(2, 3), numbers(B, 3)),
    "scale invariant": (scale_invariant, numbers(2, 1, 4, 4), numbers(B, 1, 4, 4)),
    "correlation": (pearson, numbers(2, 1), numbers(B, 1)),
    "a mask that nobody tells": (unlabelled_mask, numbers(2, 3), holed(numbers(B, 3).abs(), 0.0)),
    "divided by all": (IgnoresAndDividesByAll(), numbers(2, C), classes(B)),
    "divided by the positives": (focal_by_positives, numbers(2, 3), (numbers(B, 3) > 0).float()),
    "share of negatives": (BalancedBCE(), numbers(2, 3), (numbers(B, 3) > 0).float()),
    "decorrelation": (Decorrelated(), numbers(2, 3), numbers(B, 3)),
    "largest": (lambda p, y: (p - y).abs().max(), numbers(2, 3), numbers(B, 3)),
    "weights by the batch": (
        lambda p, y: F.cross_entropy(p, y, weight=1 / torch.bincount(y, minlength=C).clamp_min(1)),
        numbers(2, C), classes(B),
    ),
}  # fmt: skip


def told(loss, prediction, target):
    return is_mean(Task("a", loss, labels=labels_of(loss, prediction, target)), prediction, target)


@pytest.mark.parametrize("name", MEANS)
def test_means_over_labels_pass(name):
    loss, prediction, target = MEANS[name]
    state = torch.get_rng_state()
    assert told(loss, prediction, target)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", OTHERS)
def test_other_losses_are_told(name):
    assert not told(*OTHERS[name])


@pytest.mark.parametrize("name", MEANS)
def test_the_mean_is_that_of_two_halves_by_hand(name):
    """The closed form: two unequal parts of one batch, by the framework's own counts of labels."""
    loss, prediction, target = MEANS[name]
    generator, task = torch.Generator().manual_seed(1), Task("a", loss)
    leaves = prediction if isinstance(prediction, tuple | list) else [prediction]
    leaves = list(prediction.values()) if isinstance(prediction, dict) else leaves
    drawn = [torch.randn(B, *leaf.shape[1:], generator=generator).sigmoid() for leaf in leaves]

    def part(rows):
        own = [leaf[rows] for leaf in drawn]
        if isinstance(prediction, dict):
            own = dict(zip(prediction, own, strict=True))
        elif not isinstance(prediction, tuple):
            own = own[0]
        if isinstance(target, dict):
            return own, {key: value[rows] for key, value in target.items()}
        if isinstance(target, list):
            return own, target[rows] if len(target) == B else [value[rows] for value in target]
        return own, target[rows]

    whole, pieces = part(slice(None)), [part(slice(3)), part(slice(3, None))]
    shares = [count_labels(task, y) / count_labels(task, whole[1]) for _, y in pieces]
    total = sum(share * loss(*piece) for share, piece in zip(shares, pieces, strict=True) if share)
    torch.testing.assert_close(total, loss(*whole), rtol=1e-4, atol=1e-5)


def test_what_is_known_without_trying_has_been_tried_here():
    tried = {type(loss) for loss, *_ in MEANS.values() if isinstance(loss, nn.Module)}
    assert tried >= set(KNOWN)
    assert is_known_mean(nn.MSELoss()) and not is_known_mean(nn.MSELoss(reduction="sum"))
    assert not is_known_mean(type("Own", (nn.MSELoss,), {})())


class Drops(nn.Module):
    """Dropout in the loss."""

    def forward(self, p, y):
        return F.dropout((p - y).square(), 0.5).mean()


class Running(nn.Module):
    """Divides by a running mean of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("size", torch.ones(()))

    def forward(self, p, y):
        self.size.mul_(0.9).add_(0.1 * (p - y).square().mean().detach())
        return (p - y).square().mean() / self.size


class Counting(nn.Module):
    """Anneals with each call: the same state gives the same value."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, p, y):
        self.calls += 1
        return (p - y).square().mean() / self.calls


@pytest.mark.parametrize(
    ("loss", "target", "reason"),
    [
        (Drops(), numbers(B, 3), "it draws random numbers"),
        (Running(), numbers(B, 3), "it changes its own buffers"),
        (lambda p, y: (p - y).mean() / 0, numbers(B, 3), "it gives no number"),
        (nn.MSELoss(), torch.full((B, 3), torch.nan), "it gives no number"),
    ],
)
def test_what_numbers_do_not_tell_is_said(loss, target, reason):
    with pytest.raises(NotTold, match=reason):
        told(loss, numbers(2, 3), target)


def test_trying_leaves_no_trace():
    loss = Counting()
    assert told(loss, numbers(2, 3), numbers(B, 3)) and loss.calls == 0
    running = Running()
    with pytest.raises(NotTold):
        told(running, numbers(2, 3), numbers(B, 3))
    assert running.size == 1


def test_large_predictions_are_tried_on_few_samples():
    seen = []
    loss = lambda p, y: seen.append(len(p)) or F.cross_entropy(p, y)  # noqa: E731
    assert told(loss, torch.zeros(2, C, 200, 200), classes(B, 200, 200))
    assert max(seen) == 4
