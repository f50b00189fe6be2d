"""Predictions and targets that run together and mean something else: refused or warned of, and nothing else is."""

import pytest
import torch
from torch import nn
from torchmetrics import AUROC, MeanMetric
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy, MulticlassF1Score

from mtl import losses, metrics
from mtl.config.dry_run import dry_run_task
from mtl.errors import ConfigError
from mtl.tasks import Task


class Squared(nn.Module):
    """A loss that torch broadcasts in silence."""

    def forward(self, prediction, target):
        return (prediction - target).square().mean()


class Flattened(Squared):
    """One that takes [B, 1] and [B] for what they are."""

    def forward(self, prediction, target):
        return super().forward(prediction.flatten(), target.flatten())


class Unsupervised(nn.Module):
    """A loss that has no use for targets."""

    def forward(self, prediction, target):
        return prediction.square().mean()


class AbsoluteError(MeanMetric):
    """A metric that torch broadcasts in silence."""

    def update(self, prediction, target):
        super().update((prediction - target).abs())


def run(loss, target, width=1, head=None, **named):
    torch.manual_seed(0)
    head = head or nn.Linear(4, width)
    return dry_run_task(Task("t", loss, named), head, torch.randn(2, 4), {"t": target})


NUMBERS = torch.tensor([1.0, 3.0])


@pytest.mark.parametrize(
    "loss",
    [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss(), Squared(), nn.PoissonNLLLoss(), nn.SoftMarginLoss(),
     losses.MaskedL1(), losses.MaskedL2(), losses.InverseDepth(), losses.MaskedBCE(), losses.BalancedBCE(),
     losses.Focal(), nn.BCEWithLogitsLoss(), nn.KLDivLoss(reduction="mean")],
    ids=lambda loss: type(loss).__name__,
)  # fmt: skip
@pytest.mark.parametrize("shape", [[2], [2, 1, 1]])
def test_no_loss_compares_every_sample_with_every_other_one(loss, shape):
    target = torch.tensor([0.25, 0.75])
    with pytest.raises(ConfigError, match=r"losses.t \(\w+\)"):
        run(loss, target.reshape(shape))
    run(loss, target[:, None])  # the negative control


def test_two_samples_of_two_classes_are_no_pairs():
    run(nn.CrossEntropyLoss(), torch.tensor([0, 1]), 2, accuracy=MulticlassAccuracy(num_classes=2))
    run(nn.CrossEntropyLoss(), torch.tensor([0, 1]), 2, f1=MulticlassF1Score(num_classes=2))


def test_integer_targets_are_broadcast_as_little():
    with pytest.raises(ConfigError, match=r"for \[3, 3\], and so compares every sample with others"):
        run(Squared(), torch.tensor([0, 3]))
    run(Squared(), torch.tensor([[0], [3]]))


def test_a_loss_that_knows_its_shapes_may_have_any():
    run(Flattened(), NUMBERS)
    run(nn.CrossEntropyLoss(), torch.tensor([0, 1]), width=2)
    with pytest.raises(ConfigError, match="The metric t/error takes output"):
        run(Flattened(), NUMBERS, error=AbsoluteError())
    with pytest.raises(ConfigError, match="The metric t/abs_err does not fit"):
        run(Flattened(), NUMBERS, **metrics.regression())
    run(Unsupervised(), NUMBERS)
    run(Flattened(), NUMBERS[:, None], error=AbsoluteError(), **metrics.regression())


ONE_HOT = torch.eye(3)[:2]


@pytest.mark.parametrize(
    "metric", [MulticlassAccuracy(3), MulticlassF1Score(3), MulticlassAccuracy(3, average="micro")]
)
def test_a_metric_that_takes_probabilities_for_something_else_is_refused(metric):
    with pytest.raises(ConfigError, match=r"The metric t/m (.* )?does not"):
        run(nn.CrossEntropyLoss(), ONE_HOT, width=3, m=metric)
    run(nn.CrossEntropyLoss(), torch.tensor([0, 2]), width=3, m=metric)


def test_our_metrics_take_the_most_probable_class(caplog):
    run(nn.CrossEntropyLoss(), ONE_HOT, width=3, **metrics.classification(3))
    run(nn.CrossEntropyLoss(), 0.8 * ONE_HOT + 0.2 / 3, width=3, **metrics.classification(3))
    run(nn.CrossEntropyLoss(), torch.tensor([0, 2]), width=3, m=AUROC("multiclass", num_classes=3))
    run(nn.BCEWithLogitsLoss(), torch.ones(2, 1), m=BinaryAccuracy())
    assert not caplog.records


@pytest.mark.parametrize(
    ("loss", "head", "target", "words"),
    [
        (nn.CrossEntropyLoss(), nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), torch.tensor([0, 2]), "its softmax out"),
        (nn.BCEWithLogitsLoss(), nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), torch.ones(2, 1), "ends in a sigmoid"),
        (losses.MaskedBCE(), nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), torch.ones(2, 1), "ends in a sigmoid"),
        (nn.CrossEntropyLoss(), nn.Linear(4, 1), torch.tensor([0, 0]), "is 0 whatever is predicted"),
        (nn.CrossEntropyLoss(), nn.Linear(4, 3), torch.tensor([[1.0, 1, 0]] * 2), "sum to 2 over the classes"),
    ],
)
def test_what_is_likely_a_mistake_is_said(caplog, loss, head, target, words):
    run(loss, target, head=head)
    (record,) = caplog.records
    assert words in record.getMessage()


def test_log_probabilities_must_be_some(caplog):
    with pytest.raises(ConfigError, match="takes log-probabilities, and the head gives none"):
        run(nn.NLLLoss(), torch.tensor([0, 2]), width=3)
    run(nn.NLLLoss(), torch.tensor([0, 2]), head=nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)))
    run(nn.CrossEntropyLoss(), torch.tensor([0, 2]), head=nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)))
    assert not caplog.records


def test_nothing_is_drawn_and_no_state_is_left():
    metric = metrics.classification(3)["accuracy"]
    run(nn.CrossEntropyLoss(), ONE_HOT, width=3, accuracy=metric)
    assert metric.update_count == 0
    before = torch.random.get_rng_state()
    head = nn.Linear(4, 3)
    state = torch.random.get_rng_state()
    dry_run_task(Task("t", nn.CrossEntropyLoss(), {}), head, torch.ones(2, 4), {"t": ONE_HOT})
    assert torch.equal(torch.random.get_rng_state(), state) and not torch.equal(before, state)
