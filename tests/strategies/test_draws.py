"""Strategies that take several batches a step: MoDo and Auto-lambda against their formulas, and through the loop."""

import copy

import pytest
import torch
from support.composing import configuration
from support.networks import distance, gradients, make
from torch import nn
from torch.func import functional_call

from mtl.config.build import build
from mtl.engine.accumulation import accumulate
from mtl.engine.engine import Engine
from mtl.engine.look import losses_at
from mtl.engine.precision import Precision
from mtl.errors import ConfigError
from mtl.model import MultiTaskModel
from mtl.runs import checkpoint
from mtl.strategies import AutoLambda, Detached, MoDo
from mtl.tasks import Task
from mtl.weightings import Equal, Static

NAMES = ["a", "b", "c"]


def problem(batches, seed=0):
    """A model without dropout, its tasks and some batches of 5."""
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
    model = MultiTaskModel(trunk, {name: nn.Linear(6, 3) for name in NAMES}).double()
    tasks = [Task(name, nn.CrossEntropyLoss()) for name in NAMES]
    made = [(torch.randn(5, 3).double(), {n: torch.randint(3, (5,)) for n in NAMES}) for _ in range(batches)]
    return model, tasks, made


def rows_of(model, tasks, batch):
    predictions, parameters = model(batch[0]), list(model.backbone.parameters())
    return torch.stack([
        torch.cat([g.flatten() for g in torch.autograd.grad(
            task.loss(predictions[task.name], batch[1][task.name]), parameters, retain_graph=True)])
        for task in tasks if task.name in batch[1]
    ])  # fmt: skip


def trunk_gradient(model):
    return torch.cat([p.grad.flatten() for p in model.backbone.parameters()])


# --------------------------------------------------------------------------------------------------------- MoDo


def take(strategy, model, tasks, batches, lr=0.1):
    engine = Engine(model, tasks)
    model.zero_grad()
    strategy.look(engine, batches, lr)
    return strategy.run(engine, *batches[-1])


def test_modo_by_torchjd_on_three_batches_a_step():
    theirs = pytest.importorskip("torchjd.aggregation").MoDoWeighting(gamma=2.0, rho=0.1)
    strategy, one_batch = MoDo(Equal(), NAMES, gamma=2.0, rho=0.1), []
    for step in range(5):
        model, tasks, batches = problem(3, seed=step)
        first, second, third = (rows_of(model, tasks, batch) for batch in batches)
        weights = theirs(first @ second.T)
        result = take(strategy, model, tasks, batches)
        torch.testing.assert_close(trunk_gradient(model), 3 * weights @ third, rtol=1e-10, atol=1e-14)
        assert [w.item() for w in result.weights.values()] == pytest.approx((3 * weights).tolist(), rel=1e-10)
        one_batch.append(first @ first.T)
    theirs.reset()
    for gram in one_batch:
        biased = theirs(gram)
    assert (biased - weights).abs().max() > 1e-3, "negative control: one batch in the place of two"


def test_modo_leaves_no_trace_of_the_batches_that_do_not_train():
    """Heads have the gradient of their own loss in the last batch, and statistics of that batch alone."""
    model, tasks, inputs, targets = make("pooled", 3)
    other = copy.deepcopy(model)
    names = [task.name for task in tasks]
    strategy, plain = MoDo(Equal(), names), Detached(Equal())
    strategy.look(Engine(model, tasks), [(inputs + 5, targets), (inputs - 5, targets), (inputs, targets)], 0.1)
    found, _ = gradients(strategy, model, tasks, inputs, targets)
    expected, _ = gradients(plain, other, tasks, inputs, targets)
    heads = [{n: g for n, g in own.items() if n.startswith("heads")} for own in (expected, found)]
    assert distance(*heads) <= 1e-12
    for one, two in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two)


def test_modo_keeps_the_weight_of_a_task_that_a_batch_lacks():
    model, tasks, batches = problem(3)
    strategy = MoDo(Equal(), NAMES, gamma=2.0)
    del batches[1][1]["b"]
    del batches[2][1]["c"]
    result = take(strategy, model, tasks, batches)
    weights = strategy.weights
    assert weights["b"] == 1 / 3 and sum(weights.values()) == pytest.approx(1) and weights["a"] != weights["c"]
    assert {n: w.item() for n, w in result.weights.items()} == pytest.approx({n: 3 * weights[n] for n in ("a", "b")})


def test_modo_permutes_with_the_tasks():
    model, tasks, batches = problem(3)
    one, two = MoDo(Equal(), NAMES, gamma=2.0), MoDo(Equal(), NAMES[::-1], gamma=2.0)
    take(one, model, tasks, batches)
    take(two, model, tasks[::-1], batches)
    assert two.weights == pytest.approx(one.weights) and len(set(one.weights.values())) == 3


def test_gradients_that_are_not_finite_move_no_weight(caplog):
    model, tasks, batches = problem(3)
    strategy = MoDo(Equal(), NAMES)
    strategy.look(Engine(model, tasks), [(batches[0][0] * torch.nan, batches[0][1]), *batches[1:]], 0.1)
    assert set(strategy.weights.values()) == {1 / 3} and "MoDo's weights stay as they are" in caplog.text
    other = AutoLambda(Equal(), NAMES)
    other.look(Engine(model, tasks), [(batches[0][0] * torch.nan, batches[0][1]), batches[1]], 0.1)
    assert (other.weighting.lambdas == 0.1).all() and "Auto-lambda's weights stay" in caplog.text


# -------------------------------------------------------------------------------------------------- Auto-lambda


def hypergradient(model, tasks, other, training, lambdas, primary, lr):
    """The derivative of the primary losses after a step by the weights, by autograd through the step."""
    lambdas = lambdas.double().requires_grad_()
    own = dict(model.named_parameters())

    def losses(parameters, batch):
        predictions = functional_call(model, parameters, (batch[0],))
        return {task.name: task.loss(predictions[task.name], batch[1][task.name]) for task in tasks}

    weighted = sum(weight * loss for weight, loss in zip(lambdas, losses(own, training).values(), strict=True))
    steps = torch.autograd.grad(weighted, own.values(), create_graph=True)
    moved = {name: p - lr * g for (name, p), g in zip(own.items(), steps, strict=True)}
    after = losses(moved, other)
    return torch.autograd.grad(sum(after[name] for name in primary), lambdas)[0]


@pytest.mark.parametrize("primary", [["a"], ["b", "c"], None], ids=["one", "two", "all"])
def test_the_finite_difference_is_the_derivative_through_the_step(primary, monkeypatch):
    """To the finite difference's own error, which is of second order in its radius."""
    model, tasks, (other, training) = problem(2)
    strategy = AutoLambda(Equal(), NAMES, primary=primary)
    expected = hypergradient(model, tasks, other, training, strategy.weighting.lambdas, primary or NAMES, lr=0.3)
    moved = []
    monkeypatch.setattr(strategy.weighting, "move", lambda g: moved.append(torch.stack(list(g.values()))))
    strategy.look(Engine(model, tasks), [other, training], 0.3)
    torch.testing.assert_close(moved[0], expected, rtol=1e-4, atol=1e-8)
    swapped = AutoLambda(Equal(), NAMES, primary=primary)
    monkeypatch.setattr(swapped.weighting, "move", lambda g: moved.append(torch.stack(list(g.values()))))
    swapped.look(Engine(model, tasks), [training, other], 0.3)
    assert not torch.allclose(moved[1], expected, rtol=1e-2)  # negative control


def test_mixed_precision_does_not_round_the_difference_away(monkeypatch):
    """The two sides differ by 0.01 in all parameters together, of which bfloat16 sees next to nothing."""
    from mtl.strategies import auto_lambda

    model, tasks, batches = problem(2)
    lambdas = torch.full((3,), 0.1)
    expected = hypergradient(model, tasks, *batches, lambdas, NAMES, lr=0.3)
    model.float()
    batches = [(inputs.float(), targets) for inputs, targets in batches]
    engine, moved = Engine(model, tasks, Precision(torch.bfloat16)), []
    for rounds in (False, True):
        if rounds:  # negative control: both sides in bfloat16 as well
            monkeypatch.setattr(auto_lambda, "losses_at", lambda *given, precise=False: losses_at(*given))
        strategy = AutoLambda(Equal(), NAMES)
        monkeypatch.setattr(strategy.weighting, "move", lambda g: moved.append(torch.stack(list(g.values()))))
        strategy.look(engine, batches, 0.3)
    errors = [((own.double() - expected).norm() / expected.norm()).item() for own in moved]
    assert errors[0] < 0.1 and errors[1] > 3 * errors[0], errors


@pytest.mark.parametrize("options", [[], ["optimizer.layer_decay=0.5"]], ids=["plain", "layers"])
def test_the_rate_is_the_backbones_highest(options, monkeypatch):
    cfg = configuration("device=cpu", "strategy=auto_lambda", "data.batch_size=8", "optimizer=adamw",
                        "optimizer.lr=0.25", "scheduler=constant", *options)  # fmt: skip
    _, state = build(cfg)
    rates = [group["lr"] for group in state.optimizer.param_groups if group["name"].startswith("backbone")]
    assert (min(rates) < max(rates)) == bool(options)
    seen = []
    monkeypatch.setattr(state.strategy, "look", lambda engine, batches, lr: seen.append(lr))
    monkeypatch.setattr(state.strategy, "run", lambda *batch, **asked: None)
    accumulate(state, (None, {}), lambda: (None, {}), 2)
    assert seen == [max(rates)]


def test_the_step_is_that_of_torchs_adam_and_then_of_the_weighted_losses():
    model, tasks, (other, training) = problem(2)
    strategy, values = AutoLambda(Equal(), NAMES, primary=["a"], lr=0.01), torch.full((3,), 0.1, requires_grad=True)
    adam = torch.optim.Adam([values], lr=0.01)
    for _ in range(3):
        values.grad = hypergradient(model, tasks, other, training, values.detach().clone(), ["a"], lr=0.3).float()
        adam.step()
        result = take(strategy, model, tasks, [other, training], lr=0.3)
    torch.testing.assert_close(strategy.weighting.lambdas, values.detach(), rtol=1e-3, atol=0)
    found = {n: p.grad.clone() for n, p in model.named_parameters()}
    weights = {name: w.item() for name, w in result.weights.items()}
    assert list(weights.values()) == pytest.approx(strategy.weighting.lambdas.tolist())
    model.zero_grad()
    predictions = model(training[0])
    sum(weights[t.name] * t.loss(predictions[t.name], training[1][t.name]) for t in tasks).backward()
    assert distance({n: p.grad for n, p in model.named_parameters()}, found) <= 1e-12


def test_a_task_that_helps_gains_and_one_that_hurts_loses():
    """The labels of b are those of a, and those of c are the opposite; one linear head for all."""
    torch.manual_seed(0)
    head = nn.Linear(4, 2)
    model = MultiTaskModel(nn.Linear(4, 4), dict.fromkeys(NAMES, head))
    tasks = [Task(name, nn.CrossEntropyLoss()) for name in NAMES]
    strategy, optimizer = AutoLambda(Equal(), NAMES, primary="a", lr=0.01), torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(30):
        batches = []
        for _ in range(2):
            x = torch.randn(32, 4)
            y = (x[:, 0] > 0).long()
            batches.append((x, {"a": y, "b": y, "c": 1 - y}))
        take(strategy, model, tasks, batches, lr=0.5)
        optimizer.step()
    helps, hurts = strategy.weighting.lambdas[1:].tolist()
    assert helps > 0.15 and hurts < 0.05


def test_absent_tasks_keep_their_weights_and_dropout_its_masks(monkeypatch):
    model, tasks, inputs, targets = make("pooled", 3)
    names = [task.name for task in tasks]
    strategy = AutoLambda(Equal(), names, primary=names[:1])
    fewer = {name: target for name, target in targets.items() if name != names[1]}
    strategy.look(Engine(model, tasks), [(inputs, targets), (inputs, fewer)], 0.1)
    assert [value != 0.1 for value in strategy.weighting.lambdas.double().round(decimals=7).tolist()] == [1, 0, 1]
    strategy = AutoLambda(Equal(), names, primary=names[:1])
    strategy.look(Engine(model, tasks), [(inputs, {names[1]: targets[names[1]]}), (inputs, targets)], 0.1)
    assert (strategy.weighting.lambdas == 0.1).all(), "the other batch has no primary task"
    state, losses = torch.get_rng_state(), []
    for _ in range(2):
        torch.set_rng_state(state)
        losses.append(strategy._losses(Engine(model, tasks), (inputs, targets), dict(model.named_parameters())))
    again = strategy._losses(Engine(model, tasks), (inputs, targets), dict(model.named_parameters()))
    assert losses[0] == losses[1] == again


# -------------------------------------------------------------------------------------------- through the loop


@pytest.mark.parametrize(("strategy", "draws"), [("modo", 3), ("auto_lambda", 2)])
def test_each_batch_comes_from_the_loader_and_is_shown_once(train_tiny, monkeypatch, strategy, draws, caplog):
    from mtl.data.loader import Batches

    seen, iterate = [], Batches.__iter__

    def recorded(self):
        for batch in iterate(self):
            if self._split == "train":
                seen.append(tuple(self.indices))
            yield batch

    monkeypatch.setattr(Batches, "__iter__", recorded)
    caplog.set_level("INFO", "mtl")
    train_tiny(f"strategy={strategy}", "conflict.every=2", "scheduler=constant")
    seen = seen[1:]  # the first one is read to see whether it can be
    assert len(seen) == 4 * draws and len({index for batch in seen for index in batch}) == 4 * draws * 8
    assert f"batches of 8 × {draws} draws, of which one trains, = {8 * draws}" in caplog.text


def test_a_step_that_is_skipped_moves_no_weight(train_tiny, caplog):
    folder = train_tiny(
        "strategy=modo", "strategy.gamma=100.0", "trainer.on_nan=skip",
        "losses.left._target_=support.restless.BreakingLoss",
        "+losses.left.kind='nan'", "+losses.left.first=3", "+losses.left.last=99",  # from the batch that trains
    )  # fmt: skip
    state = checkpoint.load(folder)
    assert caplog.text.count("MoDo's weights stay as they are") == 3, "all steps but the first, which had moved them"
    assert state["skips"]["total"] == 4 and set(state["strategy"]["_extra_state"]["weights"].values()) == {0.5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["strategy=modo", "weighting=uw"], r"^strategy: MoDo finds the tasks' weights itself: .*, not UW\.$"),
        (["strategy=modo", "trainer.accumulate_grad_batches=2"], r"^trainer\.accumulate_grad_batches=2 must be 1"),
        (["strategy=modo", "trainer.limit_train_batches=2"], r"^The strategy's 3 a step must be at most 2, the batch"),
        (["strategy=modo", "strategy.gamma=0"], r"^strategy: gamma=0 must be above 0\.$"),
        (["strategy=modo", "trainer.grad_checkpointing=true"], r"^trainer\.grad_checkpointing=true: MoDo looks at"),
        (["strategy=auto_lambda", "strategy.primary=[lft]"], r"^strategy: primary=lft names no task; did you mean lef"),
        (["strategy=auto_lambda", "strategy.primary=[]"], r"^strategy: primary=\[\] must name at least one task"),
    ],
    ids=["weighting", "accumulate", "limit", "gamma", "checkpointing", "primary", "no primary"],
)
def test_what_does_not_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        build(configuration("device=cpu", *options))


def test_a_step_without_a_look_is_refused():
    model, tasks, (batch,) = problem(1)
    with pytest.raises(ValueError, match=r"^MoDo takes 3 batches a step: call look\(engine, batches, lr\) before\.$"):
        MoDo(Equal(), NAMES).step(model, tasks, *batch)
    with pytest.raises(ValueError, match=r"needs? weighting=equal, not Static"):
        AutoLambda(Static(NAMES, {}), NAMES)
