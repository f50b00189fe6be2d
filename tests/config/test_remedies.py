"""What a newcomer gets wrong about heads, losses and targets: the error says what to change."""

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from mtl.config.dry_run import describe_features, dry_run_backbone, dry_run_task
from mtl.config.remedies import unread
from mtl.errors import ConfigError
from mtl.heads import MLP
from mtl.losses import MaskedBCE, MaskedL2
from mtl.metrics import classification
from mtl.tasks import Task

CE, MSE = nn.CrossEntropyLoss, nn.MSELoss


class Gives(nn.Module):
    """A head that gives what a function makes of a linear layer's output."""

    def __init__(self, change, in_features=6, out_features=3):
        super().__init__()
        self.change, self.linear = change, nn.Linear(in_features, out_features)

    def forward(self, z):
        return self.change(self.linear(z))


class Own(nn.Module):
    """A loss of one's own that gives what a function makes of the squared error."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, prediction, target):
        return self.change((prediction - target).square().mean())


def words(head, loss, target, features=None, metrics=None, own=False, given=None):
    task = Task("a", loss, metrics or {}, own_metrics=own)
    features = torch.randn(2, 6) if features is None else features
    with pytest.raises(ConfigError) as caught:
        dry_run_task(task, head, features, {"a": target}, given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("width", [2, 5, 30])
@pytest.mark.parametrize("head", [nn.Linear, MLP])
def test_the_width_of_a_classification_follows_from_the_data_sets_classes(head, width):
    sentence = words(head(6, width), CE(), torch.tensor([0, 1]), metrics=classification(3))
    assert sentence.startswith("heads.a.out_features must be 3, the number of classes that the data set has for a")
    assert "metric a/accuracy" in sentence and f"[2, {width}]" in sentence


def test_a_head_that_predicts_at_every_position_has_the_right_width():
    for width in (3, 5):
        sentence = words(nn.Linear(6, width), CE(), torch.tensor([0, 1]), torch.randn(2, 4, 6), classification(3))
        assert "the head predicts at every position: choose one that pools them" in sentence


def test_a_metric_that_gives_a_number_a_class_is_told_how_to_give_one():
    metrics = {"acc": MulticlassAccuracy(3, average="none")}
    assert "gives [3]; use another average than none." in words(
        nn.Linear(6, 3), CE(), torch.tensor([0, 1]), metrics=metrics, own=True
    )


def test_the_width_that_is_right_passes_and_so_does_any_without_a_metric():
    for width, metrics in ((3, classification(3)), (5, {})):
        dry_run_task(Task("a", CE(), metrics), nn.Linear(6, width), torch.randn(2, 6), {"a": torch.tensor([0, 1])})


def test_of_an_own_metric_either_number_may_be_wrong():
    sentence = words(nn.Linear(6, 5), CE(), torch.tensor([0, 1]), metrics={"acc": MulticlassAccuracy(3)}, own=True)
    assert sentence.startswith("metrics.a.acc.num_classes=3 does not fit heads.a (Linear)")
    assert sentence.endswith("both must be the number of classes.")


@pytest.mark.parametrize(
    ("width", "loss", "target", "expected"),
    [
        (2, CE(), torch.tensor([0, 2]), "classes count from 0, so that heads.a.out_features must be 3 or more."),
        (3, CE(), torch.tensor([1, -1]), "a target is -1, and classes are counted from 0; a missing label is -100."),
        (3, CE(), torch.tensor([1.0, 2.0]), "a class is a whole number: give it as int or torch.long."),
        (3, CE(), torch.tensor([[1], [2]]), "give each target the shape [], not [1]."),
        (3, CE(), torch.eye(3)[:2].long(), "give the index of the class alone, or as probabilities real numbers."),
        (3, CE(), torch.tensor([[0.5], [1.5]]), "+losses.a.invalid=null and heads.a.out_features=1."),
        (3, CE(), torch.tensor([[0.0], [1.0]]), "losses.a._target_=mtl.losses.MaskedBCE and heads.a.out_features=1."),
        (1, MSE(), torch.tensor([0.1, 0.2]), "give each target the shape [1], as torch.tensor([0.5]), or let the head"),
        (3, MSE(), torch.tensor([0.1, 0.2]), "heads.a.out_features must be 1, and each target have the shape [1]"),
        (1, MSE(), torch.randn(2, 4), "heads.a.out_features=1 must be 4: so many numbers has a target."),
        (3, MSE(), torch.tensor([0, 2]), "the targets are classes: use losses.a._target_=torch.nn.CrossEntropyLoss."),
        (3, nn.BCEWithLogitsLoss(), torch.tensor([0, 2]), "use losses.a._target_=torch.nn.CrossEntropyLoss."),
        (1, MaskedL2(), torch.tensor([0.1, 0.2]), "give each target the shape [1]"),
        (3, MaskedBCE(), torch.randn(2, 4), "heads.a.out_features=3 must be 4: so many numbers has a target."),
        (1, nn.BCELoss(), torch.tensor([[1.0], [0.0]]), "use losses.a._target_=torch.nn.BCEWithLogitsLoss for logits."),
        (3, CE(), ["red", "blue"], "a target is the text 'red'; give the number of its class, counted from 0."),
        (3, MSE(), [torch.tensor([0.1, 0.2])], "the targets are a list; give each as one tensor"),
    ],
)  # fmt: skip
def test_a_target_that_the_loss_does_not_take(width, loss, target, expected):
    head = nn.Linear(6, width)
    nn.init.constant_(head.bias, 9.0)  # no probabilities
    sentence = words(head, loss, target)
    assert sentence.startswith(f"losses.a ({type(loss).__name__}) does not fit heads.a (Linear) with output of shape")
    assert expected in sentence


def test_classes_under_a_loss_of_numbers_name_the_width_that_their_metric_counts():
    sentence = words(nn.Linear(6, 1), MaskedL2(), torch.tensor([0, 2]), metrics=classification(5))
    assert sentence.endswith("use losses.a._target_=torch.nn.CrossEntropyLoss and heads.a.out_features=5.")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda y: None, "the forward of heads.a must return its prediction."),
        (lambda y: (y, y), "the head must return one tensor, or the loss be one of yours that takes a tuple."),
        (lambda y: {"y": y}, "the head must return one tensor, or the loss be one of yours that takes a dict."),
        (lambda y: y.mean(0), "the first axis of the output must be the 2 samples"),
        (lambda y: y.detach(), "heads.a (Gives) gives a prediction without a gradient: leave out detach()"),
        (lambda y: y.argmax(1), "heads.a (Gives) gives a prediction without a gradient: leave out detach()"),
    ],
)
def test_a_head_that_gives_no_prediction(change, expected):
    assert expected in words(Gives(change), CE(), torch.tensor([0, 1]))


def test_an_own_loss_takes_what_it_likes():
    loss = lambda prediction, target: prediction[0].sum() + 0 * target.sum()  # noqa: E731
    dry_run_task(Task("a", loss), Gives(lambda y: (y, y)), torch.randn(2, 6), {"a": torch.tensor([0, 1])})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: None, "losses.a must give a tensor with one number, but gives a NoneType."),
        (lambda x: x.item(), "losses.a must give a tensor with one number, but gives a float."),
        (lambda x: (x, 1), "losses.a must give a tensor with one number, but gives a tuple."),
        (lambda x: x[None], "losses.a must give a number without axes, but gives [1]; return loss.mean()."),
        (lambda x: x.long(), "losses.a must give a real number, but gives torch.int64"),
        (lambda x: x.detach(), "losses.a (Own) gives a number without a gradient: leave out detach()"),
    ],
)
def test_a_loss_that_gives_no_number_to_learn_from(change, expected):
    assert expected in words(nn.Linear(6, 1), Own(change), torch.randn(2, 1))


def test_a_loss_may_give_a_plain_zero_where_it_finds_no_label():
    loss = Own(lambda x: torch.zeros(()))
    dry_run_task(Task("a", loss), nn.Linear(6, 1), torch.randn(2, 6), {"a": torch.randn(2, 1)})


def test_a_width_that_is_given_and_wrong_can_be_left_out():
    sentence = words(nn.Linear(9, 3), CE(), torch.tensor([0, 1]), given={"in_features": 9, "out_features": 3})
    assert sentence.endswith("heads.a.in_features=9 is not their 6; leave it out, and it is filled in.")
    sentence = words(nn.Linear(9, 3), CE(), torch.tensor([0, 1]), given={"out_features": 3})
    assert "leave it out" not in sentence, "negative control: it is not given"


def test_a_head_for_other_features_is_told_from_one_that_lacks_an_argument():
    maps, pooled, both = torch.randn(2, 6, 4, 4), torch.randn(2, 6), [torch.randn(2, 6)] * 2
    for target, features, kind in ((nn.Linear, maps, "features [B, D]"), (nn.Conv2d, pooled, "maps [B, C, H, W]"),
                                   (nn.Linear, both, "features [B, D]")):  # fmt: skip
        sentence = unread("heads.a", "their.Head", target, {}, describe_features(features), "SHAPE")
        assert sentence.startswith("heads.a: their.Head needs in_")
        assert "the backbone's features SHAPE do not have: choose a head that reads those" in sentence
        assert f"or a backbone that gives {kind}" in sentence
    assert unread("heads.a", "", nn.Linear, {}, describe_features(pooled), "") is None
    assert unread("heads.a", "", nn.Linear, {"in_features": 3}, describe_features(maps), "") is None


@pytest.mark.parametrize(
    ("backbone", "inputs", "expected"),
    [
        (Gives(lambda y: None), torch.randn(2, 6), r"backbone \(Gives\) gives NoneType where features are due"),
        (nn.Linear(6, 3), torch.randn(2, 6).double(), "the inputs are torch.float64, .* return x.float\\(\\) from"),
        (nn.Linear(6, 3), torch.ones(2, 6).byte(), "the inputs are torch.uint8, .* return x.float\\(\\) / 255 from"),
    ],
)
def test_a_backbone_that_gives_no_features(backbone, inputs, expected):
    with pytest.raises(ConfigError, match=expected):
        dry_run_backbone(backbone, inputs)


def test_a_backbone_without_a_gradient_is_warned_of_unless_it_is_frozen(caplog):
    for detached, frozen, said in ((True, False, 1), (True, True, 0), (False, False, 0)):
        caplog.clear()
        features = dry_run_backbone(Gives(torch.detach if detached else nn.Identity()), torch.randn(2, 6), frozen)
        assert features.is_leaf and len(caplog.records) == said
    dry_run_backbone(Gives(torch.detach).requires_grad_(False), torch.randn(2, 6))
    assert not caplog.records
