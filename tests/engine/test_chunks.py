"""Heads on slices of the positions leave the gradients of heads on all of them; what cannot be sliced is refused."""

import warnings

import pytest
import torch
from support.networks import distance, gradients
from torch import nn

from mtl.backbones import CausalTransformer
from mtl.config.dry_run import dry_run_chunks
from mtl.errors import ConfigError
from mtl.gradients.cut import Cut
from mtl.heads import NextToken
from mtl.losses import TokenCrossEntropy
from mtl.model import MultiTaskModel
from mtl.strategies import Balanced, Detached, Naive
from mtl.tasks import Task
from mtl.weightings import UW, Equal, Log, Static
from tests.strategies.test_balanced import Fixed, Sum2, expected_gradients

WEIGHTS = (0.5, 2.0, 3.0)


def tokens(layer="mlp", share=("unembedding",)):
    """Three future tokens over seven places under one unembedding; one task's labels are all at the end."""
    names = ["next_1", "next_2", "next_3"]
    made = {name: NextToken(8, 11, layer, num_heads=2) for name in names}
    model = MultiTaskModel(CausalTransformer(11, 7, 8, 1, 2), made, share).double()
    targets = {name: torch.randint(11, (3, 7)) for name in names}
    targets["next_2"][:, :4] = -100
    targets["next_3"][0] = -100
    return model, [Task(name, TokenCrossEntropy()) for name in names], torch.randint(11, (3, 7)), targets


def maps():
    """Classes, numbers and finer classes over the rows of a map that one convolution has made."""
    model = MultiTaskModel(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        {
            "segmentation": nn.Conv2d(4, 5, 1),
            "depth": nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)),
            "finer": nn.ConvTranspose2d(4, 5, 2, stride=2),
        },
    ).double()
    tasks = [
        Task("segmentation", nn.CrossEntropyLoss(ignore_index=255)),
        Task("depth", nn.L1Loss()),
        Task("finer", nn.CrossEntropyLoss()),
    ]
    targets = {
        "segmentation": torch.randint(5, (2, 6, 5)),
        "depth": torch.randn(2, 2, 6, 5, dtype=torch.float64),
        "finer": torch.randint(5, (2, 12, 10)),
    }
    targets["segmentation"][:, 1:3] = 255
    return model, tasks, torch.randn(2, 2, 6, 5, dtype=torch.float64), targets


KINDS = {"tokens": tokens, "transformer heads": lambda: tokens("transformer"), "maps": maps}


def made(kind):
    torch.manual_seed(0)
    return KINDS[kind]()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_are_those_of_the_plain_sum_of_the_losses(kind, count):
    """Slices of unequal lengths, slices without a label, and (nine) more slices than there are positions."""
    setting = made(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, result = gradients(Detached(Equal(), token_chunks=count), *setting, measure=True)
    expected, plain = gradients(Naive(Equal()), *setting, measure=True)
    assert distance(expected, found) <= 1e-12
    torch.testing.assert_close(result.losses, plain.losses, rtol=1e-12, atol=0)
    torch.testing.assert_close(result.gram, plain.gram, rtol=1e-10, atol=1e-12 * plain.gram.max().item())


def test_slices_that_count_alike_whatever_their_labels_would_be_seen(monkeypatch):
    """Negative control."""
    setting = made("tokens")
    expected, _ = gradients(Naive(Equal()), *setting)
    monkeypatch.setattr(
        "mtl.engine.heads.chunk_shares",
        lambda tasks, targets, z, n: {t.name: [1e-9] + [1 / n] * (n - 1) for t in tasks},
    )
    found, _ = gradients(Detached(Equal(), token_chunks=2), *setting)
    assert distance(expected, found) > 0.01


WEIGHTINGS = {
    "static": lambda names: Static(names, {names[0]: 0.3}),
    "by the loss itself": lambda names: Log(),
    "learned": lambda names: UW(names),
    "late": lambda names: Sum2(),
}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("kind", ["tokens", "maps"])
def test_every_kind_of_weighting(kind, weighting):
    setting = made(kind)
    names = [task.name for task in setting[1]]
    whole, sliced = WEIGHTINGS[weighting](names), WEIGHTINGS[weighting](names)
    expected, plain = gradients(Detached(whole), *setting)
    found, result = gradients(Detached(sliced, token_chunks=3), *setting)
    assert distance(expected, found) <= 1e-12
    torch.testing.assert_close(result.weights, plain.weights, rtol=1e-6, atol=0)
    for p, q in zip(whole.parameters(), sliced.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("head_scale", ["unit", "weights"])
@pytest.mark.parametrize("space", ["features", "features_sum", "parameters"])
@pytest.mark.parametrize("weighting", ["static", "late"])
def test_every_space_and_head_scale_of_a_rule(space, head_scale, weighting):
    setting = made("tokens")
    names = [task.name for task in setting[1]]

    def balanced(count):
        options = {"space": space, "head_scale": head_scale, "token_chunks": count}
        return Balanced(WEIGHTINGS[weighting](names), Fixed(*WEIGHTS), names, **options)

    expected, plain = gradients(balanced(1), *setting)
    found, result = gradients(balanced(3), *setting)
    assert distance(expected, found) <= 1e-12
    torch.testing.assert_close(result.gram, plain.gram, rtol=1e-9, atol=1e-12 * plain.gram.max().item())


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("head_scale", ["unit", "weights"])
def test_a_shared_unembedding_gets_the_sum_of_its_heads_gradients(head_scale, count):
    """Against plain autograd of the weighted sum, with a rule's weights and a weighting's on top of each other."""
    model, tasks, inputs, targets = made("transformer heads")
    static = {"next_1": 0.3, "next_2": 1.0, "next_3": 1.0}
    trunk = {name: w * static[name] for name, w in zip(static, WEIGHTS, strict=True)}
    head_weights = trunk if head_scale == "weights" else static
    expected = expected_gradients(model, tasks, inputs, targets, trunk, head_weights)
    weighting = Static(list(static), {"next_1": 0.3})
    strategy = Balanced(weighting, Fixed(*WEIGHTS), list(static), head_scale=head_scale, token_chunks=count)
    found, _ = gradients(strategy, model, tasks, inputs, targets)
    assert distance(expected, found) <= 1e-12
    assert [name for name in found if "unembedding" in name] == ["heads.next_1.unembedding.weight"]


def test_the_steps_between_a_rules_steps():
    setting = made("tokens")
    found = []
    for count in (1, 3):
        strategy = Balanced(Equal(), Fixed(*WEIGHTS), [t.name for t in setting[1]], every=2, token_chunks=count)
        gradients(strategy, *setting)
        found.append(gradients(strategy, *setting)[0])
    assert distance(*found) <= 1e-12


def test_an_absent_task_and_gradients_that_are_there():
    model, tasks, inputs, targets = made("tokens")
    targets["next_1"].fill_(-100)
    strategy = Detached(Equal(), token_chunks=3)
    once, result = gradients(strategy, model, tasks, inputs, targets)
    assert list(result.losses) == ["next_2", "next_3"]
    strategy.step(model, tasks, inputs, targets)
    twice = {name: torch.zeros(1) if p.grad is None else p.grad for name, p in model.named_parameters()}
    assert distance({name: 2 * g for name, g in once.items()}, twice) <= 1e-12


def test_features_without_positions_are_named():
    for features in (torch.zeros(2, 3), [torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)]):
        with pytest.raises(ValueError, match="Only features that are one tensor"):
            next(Cut(features).chunks(2))
        with pytest.raises(ValueError, match="Only features that are one tensor"):
            _ = Cut(features).positions


@pytest.mark.parametrize(
    "strategy", [Detached, lambda w, token_chunks: Balanced(w, Fixed(1), ["a"], token_chunks=token_chunks)]
)
def test_no_slice_is_no_number_of_slices(strategy):
    with pytest.raises(ValueError, match="token_chunks=0 must be 1 or more"):
        strategy(Equal(), token_chunks=0)


def test_the_naive_strategy_names_the_others():
    with pytest.raises(ValueError, match=r"token_chunks=4: the naive strategy keeps every head's .*strategy=detached"):
        Naive(Equal(), token_chunks=4)


# ------------------------------------------------------------------------- what the build of a run refuses


class Residual(nn.Module):
    """A convolution over the rows that counts for nothing at the start."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        nn.init.zeros_(self.conv.weight), nn.init.zeros_(self.conv.bias)

    def forward(self, z):
        return z + self.conv(z)


class Positioned(nn.Module):
    """Adds something of its own to every place: a slice does not know where it is."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.zeros(6, 4))

    def forward(self, z):
        return z + self.places[: z.shape[1]]


FINE = [
    (nn.Linear(4, 5), TokenCrossEntropy(), torch.zeros(2, 6, 4), torch.randint(5, (2, 6))),
    (nn.Sequential(nn.Dropout(), nn.Linear(4, 5)), TokenCrossEntropy(), torch.ones(2, 6, 4), torch.randint(5, (2, 6))),
    (nn.Conv2d(4, 5, 1), nn.CrossEntropyLoss(), torch.randn(2, 4, 6, 3), torch.randint(5, (2, 6, 3))),
    (nn.Conv2d(4, 1, 1), nn.MSELoss(), torch.randn(2, 4, 6, 3), torch.randn(2, 1, 6, 3)),
]  # fmt: skip
NOT_BY_POSITION = [
    (Residual(), torch.randn(2, 4, 6, 3)),
    (nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)), torch.randn(2, 4, 6, 3)),
    (nn.Sequential(nn.Conv2d(4, 5, 1), nn.Upsample(scale_factor=2, mode="bilinear")), torch.randn(2, 4, 6, 3)),
    (nn.GroupNorm(1, 4), torch.randn(2, 4, 6, 3)),
    (Positioned(), torch.randn(2, 6, 4)),
    (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), torch.randn(2, 6, 4)),
]


@pytest.mark.parametrize(("head", "loss", "features", "target"), FINE)
def test_a_head_and_a_loss_by_position_pass(head, loss, features, target):
    before = torch.get_rng_state(), [p.clone() for p in head.parameters()]
    dry_run_chunks(Task("a", loss), head, features, target, 4)
    assert torch.equal(before[0], torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(before[1], head.parameters(), strict=True))


@pytest.mark.parametrize("target", [None, torch.full((2, 6), -100)])
def test_samples_without_a_label_show_what_the_head_does_and_no_more(target):
    loss = TokenCrossEntropy(reduction="sum")
    dry_run_chunks(Task("a", loss), nn.Linear(4, 5), torch.randn(2, 6, 4), target, 4)
    with pytest.raises(ConfigError, match="predicts something else"):
        dry_run_chunks(Task("a", loss), Positioned(), torch.randn(2, 6, 4), target, 4)


@pytest.mark.parametrize(("head", "features"), NOT_BY_POSITION)
def test_a_head_that_mixes_positions_is_found_by_its_numbers(head, features):
    target = torch.randint(4, (2, 6, 3) if features.dim() == 4 else (2, 6))
    with pytest.raises(ConfigError, match=r"strategy.token_chunks=4: heads.a .* predicts something else from slices"):
        dry_run_chunks(Task("a", nn.CrossEntropyLoss()), head, features, target, 4)


def mean_over_everything(prediction, target):
    return nn.functional.cross_entropy(prediction.flatten(0, -2), target.flatten(), reduction="sum") / target.numel()


mean_over_everything.ignore_index = -100


@pytest.mark.parametrize(
    "loss", [TokenCrossEntropy(reduction="sum"), TokenCrossEntropy(weight=torch.rand(5)), mean_over_everything]
)
def test_a_loss_that_is_not_the_mean_over_the_labels_is_found(loss):
    target = torch.randint(5, (2, 6))
    with pytest.raises(ConfigError, match=r"losses.a .* is not the mean over the labels"):
        dry_run_chunks(Task("a", loss), nn.Linear(4, 5), torch.randn(2, 6, 4), target, 4)


@pytest.mark.parametrize(
    ("head", "features", "target", "message"),
    [
        (nn.Linear(4, 5), torch.zeros(2, 4), torch.zeros(2), "needs features that are one tensor"),
        (nn.Linear(4, 5), [torch.zeros(2, 4, 4, 4)], torch.zeros(2), "needs features that are one tensor"),
        (nn.Linear(4, 5), torch.zeros(2, 3, 4), torch.zeros(2, 3), "must be at most 3, the positions"),
        (nn.Linear(4, 5), torch.zeros(2, 6, 4), torch.zeros(2), "the targets of a, .2., do not have one or more"),
        (nn.Linear(4, 5), torch.zeros(2, 6, 4), torch.zeros(2, 7), "the targets of a, .2, 7., do not have one or more"),
        (nn.Unflatten(1, (2, 3)), torch.zeros(2, 6, 4), torch.zeros(2, 6), "cannot take a slice of the positions"),
    ],
)
def test_what_has_no_slices_is_named(head, features, target, message):
    with pytest.raises(ConfigError, match=rf"strategy.token_chunks=4.*{message}"):
        dry_run_chunks(Task("a", nn.MSELoss()), head, features, target, 4)
