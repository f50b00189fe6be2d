"""Gradient accumulation: exact is the large batch, micro is the mean of the batches, and says so."""

from types import SimpleNamespace

import pytest
import torch
from support.exactness import differing
from support.parity import trunk
from torch import nn

from mtl.config import load
from mtl.config.build import build
from mtl.engine.accumulation import RecomputedChunks, accumulate
from mtl.engine.engine import Engine
from mtl.engine.setup import prepare
from mtl.errors import ConfigError
from mtl.model import MultiTaskModel
from mtl.runs.files import read_metrics
from mtl.tasks import Task
from mtl.train import train
from mtl.training.schedule import Plan
from tests.engine.test_precision import NAMES, STRATEGIES


def model_and_batch(kind="pooled", size=12):
    torch.manual_seed(0)
    model = MultiTaskModel(trunk(kind), {task: nn.Linear(8, 3) for task in NAMES}).double()
    tasks = [Task(task, nn.CrossEntropyLoss()) for task in NAMES]
    inputs = torch.randn(size, 1, 8, 8, dtype=torch.float64)
    targets = {task: torch.randint(3, (size,)) for task in NAMES}
    targets["b"][: size // 2] = -100  # the labels are not spread evenly over the pieces
    return model, tasks, inputs, targets


def gradient(model, strategy):
    return torch.cat([p.grad.flatten() for p in [*model.parameters(), *strategy.parameters()] if p.grad is not None])


@pytest.mark.parametrize("pieces", [2, 4])
@pytest.mark.parametrize("name", STRATEGIES)
def test_exact_is_the_large_batch(name, pieces):
    found = []
    for count in (1, pieces):
        model, tasks, inputs, targets = model_and_batch()
        engine = Engine(model, tasks)
        if count > 1:
            engine.wrapped = RecomputedChunks(model.backbone, count)
        strategy = STRATEGIES[name]()
        for number in range(2):
            model.zero_grad()
            strategy.zero_grad()
            result = strategy.run(engine, inputs, targets, measure=True, audit=number == 1)
        found.append((gradient(model, strategy), result.gram, result.audit.parameters))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["naive", "detached", "features"])
def test_micro_is_the_mean_of_the_batches_and_not_the_large_batch(name):
    model, tasks, inputs, targets = model_and_batch()
    batches = [(inputs[i::3], {task: target[i::3] for task, target in targets.items()}) for i in range(3)]
    strategy, expected = STRATEGIES[name](), 0
    for batch in batches:
        model.zero_grad()
        strategy.step(model, tasks, *batch)
        expected = expected + gradient(model, strategy) / 3
    model.zero_grad()
    strategy = STRATEGIES[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    state = SimpleNamespace(engine=Engine(model, tasks), tasks=tasks, strategy=strategy, optimizer=optimizer)
    rest = iter(batches[1:])
    result, last = accumulate(state, batches[0], lambda: next(rest), 3, measure=True, audit=False)
    assert torch.allclose(gradient(model, strategy), expected, rtol=1e-10)
    assert last is batches[2]
    assert result.losses.keys() == set(NAMES)
    model.zero_grad()
    strategy = STRATEGIES[name]()
    inputs = torch.cat([inputs, inputs[:1]])  # one sample more weighs on the mean of the whole
    strategy.step(model, tasks, inputs, {task: torch.cat([t, t[:1]]) for task, t in targets.items()})
    assert not torch.allclose(gradient(model, strategy), expected, rtol=1e-3)


def test_running_statistics_move_once():
    settings = dict(grad_checkpointing=False, compile=False, shard=None, accumulate="exact", accumulate_grad_batches=3)
    found = []
    for exact in (False, True):
        model, tasks, inputs, targets = model_and_batch("batchnorm")
        engine = Engine(model, tasks)
        parts = SimpleNamespace(engine=engine, model=model, tasks=tasks, device=torch.device("cpu"), example=None)
        strategy = STRATEGIES["parameters"]()  # three passes backward
        if exact:
            prepare(parts, strategy, SimpleNamespace(**settings))
            strategy.run(engine, inputs, targets)
        else:
            for piece in inputs.tensor_split(3):
                model.backbone(piece)
        found.append(dict(model.named_buffers()))
    assert differing(*found) == []


class NormalisesInPlace(nn.Module):
    """A trunk that changes its inputs, to which torch has no objection."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x):
        x -= 3
        return self.linear(x).tanh()


def test_a_trunk_that_works_in_place_on_its_inputs_does_it_once():
    inputs, found = torch.randn(6, 4), []
    for pieces in (None, 3):
        torch.manual_seed(0)
        trunk = NormalisesInPlace()
        wrapped = trunk if pieces is None else RecomputedChunks(trunk, pieces)
        wrapped(inputs.clone()).square().mean().backward()
        found.append(trunk.linear.weight.grad)
    torch.testing.assert_close(*found)


RUN = [
    "~backbone", "+backbone._target_=tests.engine.test_precision.Features", "data.image_size=8", "data.batch_size=6",
    "device=cpu",
    "+data.pairs_per_digit=1", "trainer.max_steps=8", "trainer.val_every=4", "trainer.limit_val_batches=1",
    "trainer.log_every=1", "tracker=jsonl",
]  # fmt: skip


def test_a_run_that_accumulates_exactly_is_the_run_of_the_large_batch(tmp_path):
    train(load([*RUN, "data.batch_size=24"]), tmp_path / "large")
    train(load([*RUN, "trainer.accumulate_grad_batches=4", "trainer.accumulate=exact"]), tmp_path / "exact")
    train(load([*RUN, "trainer.accumulate_grad_batches=4"]), tmp_path / "micro")
    large, exact, micro = (read_metrics(tmp_path / name, "train") for name in ("large", "exact", "micro"))
    for a, b, c in zip(large, exact, micro, strict=True):
        names = [n for n in a if n not in ("split", "time/step", "time/data", "samples_per_second", "memory/peak")]
        assert {n: b[n] for n in names} == pytest.approx({n: a[n] for n in names}, rel=1e-4, abs=1e-5)
        for name in ("loss/left", "grad_norm"):  # equal weights and a label everywhere: the same training
            assert c[name] == pytest.approx(a[name], rel=1e-4)


def test_an_epoch_has_whole_steps_only_and_one_at_least():
    cfg = load([*RUN, "trainer.accumulate_grad_batches=7", "trainer.max_epochs=1", "trainer.max_steps=null"])
    parts, _ = build(cfg)
    p = Plan.from_data(parts.data, cfg.trainer, cfg.conflict)
    assert p.per_epoch == p.steps == len(parts.data.train) // 6 // 7
    with pytest.raises(ConfigError, match="accumulate_grad_batches=5000 must be at most 209, the batches of an epoch"):
        build(load([*RUN, "trainer.accumulate_grad_batches=5000"]))
