import pytest
import torch
from support.networks import gradients
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from mtl.engine.engine import Engine
from mtl.model import MultiTaskModel
from mtl.rules import MGDA
from mtl.strategies import Balanced, Detached, Naive
from mtl.tasks import Task
from mtl.training.evaluation import evaluate
from mtl.weightings import Equal, Log


def test_an_evaluation_weighs_batches_by_their_size_and_leaves_absent_tasks_out():
    model = MultiTaskModel(nn.Identity(), {"a": nn.Identity(), "b": nn.Identity(), "never": nn.Identity()})
    tasks = [Task(name, nn.MSELoss()) for name in model.heads]
    batches = [
        (torch.zeros(3), {"a": torch.ones(3), "b": torch.ones(3) * 2}),
        (torch.zeros(1), {"a": torch.ones(1) * 3, "never": torch.full((1,), float("nan"))}),
    ]
    model.train()
    results = evaluate(Engine(model, tasks), batches, torch.device("cpu"))
    assert results == {"loss/a": (3 * 1 + 9) / 4, "loss/b": 4.0, "loss/total": 7.0}
    assert model.training


def test_the_loss_of_an_evaluation_is_that_of_the_whole_split_whatever_the_batches():
    """With class weights, missing labels, and batches without a weight or a label; the metrics count them all."""
    torch.manual_seed(0)
    model = MultiTaskModel(nn.Identity(), {"a": nn.Linear(4, 3)})
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1.0, 5.0]))
    inputs = torch.randn(12, 4)
    labels = torch.tensor([0, 0, -100, -100, 1, 2, 1, 1, 0, 2, -100, 2])
    with torch.no_grad():
        expected = loss(model(inputs)["a"], labels).item()
    found = []
    for size in (1, 2, 5, 12):
        task = Task("a", loss, {"accuracy": MulticlassAccuracy(3, average="micro", ignore_index=-100)})
        batches = [(x, {"a": y}) for x, y in zip(inputs.split(size), labels.split(size), strict=True)]
        found.append(evaluate(Engine(model, [task]), batches, torch.device("cpu")))
    assert [result["loss/a"] for result in found] == pytest.approx([expected] * 4, rel=1e-5)
    assert len({round(result["a/accuracy"], 5) for result in found}) == 1
    assert loss(model(inputs[:2])["a"], labels[:2]).isnan()  # the mean of the batches would be no number


class Remembering(nn.Module):
    """A loss with a running mean in training, and dropout."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, prediction, target):
        if self.training:
            self.mean.add_(1)
        return nn.functional.mse_loss(nn.functional.dropout(prediction, 0.5, self.training), target)


class Drawing(nn.Module):
    """A head that draws in evaluation too."""

    def forward(self, z):
        return z + torch.rand_like(z)


def test_an_evaluation_leaves_the_losses_and_the_random_numbers_of_the_training_alone():
    model, loss = MultiTaskModel(nn.Identity(), {"a": Drawing()}), Remembering()
    state = torch.get_rng_state()
    evaluate(Engine(model, [Task("a", loss)]), [(torch.zeros(3), {"a": torch.ones(3)})], torch.device("cpu"))
    assert torch.equal(state, torch.get_rng_state()) and loss.mean == 0 and loss.training


STRATEGIES = {
    "naive": lambda weighting: Naive(weighting),
    "detached": lambda weighting: Detached(weighting),
    "chunks": lambda weighting: Detached(weighting, token_chunks=2),
    "balanced": lambda weighting: Balanced(weighting, MGDA(), list("abcdefg")),
}


@pytest.mark.parametrize("weighting", [Equal, Log])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_batch_whose_labels_count_nothing_leaves_no_nan(strategy, weighting):
    """Seven heads, which would be packed; one has the class of weight 0 alone."""
    torch.manual_seed(0)
    model = MultiTaskModel(nn.Linear(4, 40), {name: nn.Linear(40, 2) for name in "abcdefg"})
    tasks = [Task(name, nn.CrossEntropyLoss()) for name in "abcdef"]
    shape = (5, 4) if strategy == "chunks" else (5,)
    if strategy == "chunks":
        from mtl.losses import TokenCrossEntropy

        tasks = [Task(name, TokenCrossEntropy()) for name in "abcdef"]
    tasks.append(Task("g", type(tasks[0].loss)(weight=torch.tensor([0.0, 1.0]))))
    targets = {name: torch.randint(2, shape) for name in "abcdef"} | {"g": torch.zeros(shape, dtype=torch.long)}
    targets["b"] = torch.full(shape, -100)
    found, result = gradients(STRATEGIES[strategy](weighting()), model, tasks, torch.randn(*shape, 4), targets, True)
    assert list(result.losses) == list("acdef") == list(result.weights)
    assert all(gradient.isfinite().all() for gradient in found.values())
