"""The balanced strategy with rules whose answer is known, against autograd on the uncut graph."""

import pytest
import torch
from support.networks import distance, gradients, make
from torch import nn

from mtl.rules.solvers import SolverError
from mtl.strategies import Balanced, Detached
from mtl.weightings import Equal, Static, Weighting

KINDS = ("pooled", "tokens", "pyramid")


class Fixed(nn.Module):
    """A rule that always gives the same weights, and remembers what it was shown."""

    def __init__(self, *weights):
        super().__init__()
        self.fixed = torch.tensor(weights).double()
        self.shown = []

    def forward(self, gram):
        self.shown.append(gram)
        return self.fixed[: len(gram)]


class Inverse(nn.Module):
    """Weights that depend on the matrix: one over the norm."""

    def forward(self, gram):
        return 1 / gram.diagonal().sqrt()


class Hopeless(nn.Module):
    def forward(self, gram):
        raise SolverError("no weights")


def balanced(rule, tasks, weighting=None, **options):
    return Balanced(weighting or Equal(), rule, [t.name for t in tasks], **options)


def expected_gradients(model, tasks, inputs, targets, trunk, heads):
    """Autograd of each weighted loss on the uncut graph: ``trunk`` and ``heads`` are weights by task."""
    result = {}
    for part, weights in (("backbone", trunk), ("heads", heads)):
        model.zero_grad()
        torch.manual_seed(1)
        predictions = model(inputs)
        present = [t for t in tasks if t.name in targets]
        sum(weights[t.name] * t.loss(predictions[t.name], targets[t.name]) for t in present).backward()
        result |= {
            n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for n, p in model.named_parameters()
            if n.startswith(part)
        }
    return result


WEIGHTS = (0.5, -2.0, 3.0)


@pytest.mark.parametrize("space", ["features", "features_sum", "parameters"])
@pytest.mark.parametrize("head_scale", ["unit", "weights"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_trunk_gets_the_weighted_rows_and_the_heads_what_was_asked(kind, head_scale, space):
    model, tasks, inputs, targets = make(kind, 3)
    strategy = balanced(Fixed(*WEIGHTS), tasks, space=space, head_scale=head_scale, scale="tasks")
    trunk = {t.name: 3 * w for t, w in zip(tasks, WEIGHTS, strict=True)}
    heads = trunk if head_scale == "weights" else dict.fromkeys(trunk, 1.0)
    expected = expected_gradients(model, tasks, inputs, targets, trunk, heads)
    found, result = gradients(strategy, model, tasks, inputs, targets)
    assert distance(expected, found) <= 1e-12
    assert {n: w.item() for n, w in result.weights.items()} == pytest.approx(trunk)
    plain, _ = gradients(Detached(Equal()), model, tasks, inputs, targets)
    assert distance(expected, plain) > 0.1  # negative control


@pytest.mark.parametrize("space", ["features", "parameters"])
def test_weights_of_one_are_the_detached_strategy(space):
    for kind in KINDS:
        model, tasks, inputs, targets = make(kind, 4)
        plain, _ = gradients(Detached(Equal()), model, tasks, inputs, targets)
        found, _ = gradients(balanced(Fixed(1, 1, 1, 1), tasks, space=space), model, tasks, inputs, targets)
        assert distance(plain, found) <= 1e-12


@pytest.mark.parametrize("space", ["features", "features_sum", "parameters"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_matrix_that_the_rule_sees(kind, space):
    model, tasks, inputs, targets = make(kind, 3)
    weighting = Static([t.name for t in tasks], {"task1": 5.0})
    rule = Fixed(1, 1, 1)
    _, result = gradients(balanced(rule, tasks, weighting, space=space), model, tasks, inputs, targets)
    rows = []
    for task in tasks:
        torch.manual_seed(1)
        z = model.backbone(inputs)
        if isinstance(z, torch.Tensor):
            alias = leaves = [z.view_as(z)]
            seen = alias[0]
        else:
            leaves = [level.view_as(level) for level in z["levels"]]
            seen = {"levels": leaves}
        losses = {t.name: t.loss(model.heads[t.name](seen), targets[t.name]) for t in tasks}
        loss = losses[task.name] * (5.0 if task.name == "task1" else 1.0)
        if space == "parameters":
            grads = torch.autograd.grad(loss, list(model.backbone.parameters()), allow_unused=True)
            rows.append(torch.cat([g.flatten() for g in grads if g is not None]))
        else:
            grads = torch.autograd.grad(loss, leaves)
            rows.append(torch.cat([(g.sum(0) if space == "features_sum" else g).flatten() for g in grads]))
    expected = torch.stack(rows) @ torch.stack(rows).T
    torch.testing.assert_close(rule.shown[0], expected, rtol=1e-9, atol=1e-12 * expected.max().item())
    assert result.space == space and torch.equal(result.gram, rule.shown[0])


@pytest.mark.parametrize("space", ["features", "parameters"])
def test_frozen_trunk_parameters_absent_tasks_and_gradients_that_are_there(space):
    model, tasks, inputs, targets = make("pyramid", 3)
    for parameter in list(model.backbone.parameters())[::2]:
        parameter.requires_grad_(False)
    del targets["task1"]
    strategy = balanced(Fixed(2.0, 3.0), tasks, space=space, head_scale="weights")
    weights = {"task0": 2.0, "task1": 0.0, "task2": 3.0}
    expected = expected_gradients(model, tasks, inputs, targets, weights, weights)
    once, _ = gradients(strategy, model, tasks, inputs, targets)
    assert distance(expected, once) <= 1e-12
    torch.manual_seed(1)
    strategy.step(model, tasks, inputs, targets)
    twice = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    assert distance({n: 2 * g for n, g in expected.items()}, twice) <= 1e-12


def test_the_batch_without_any_label_is_no_step():
    model, tasks, inputs, _ = make("pooled", 2)
    strategy = balanced(Fixed(1, 1), tasks)
    _, result = gradients(strategy, model, tasks, inputs, {}, measure=True)
    assert result.losses == {} and strategy.steps == 0


@pytest.mark.parametrize("head_scale", ["unit", "weights"])
def test_between_the_rules_steps_the_last_weights_are_used_and_no_rows_are_kept(head_scale):
    model, tasks, inputs, targets = make("tokens", 3)
    strategy = balanced(Inverse(), tasks, every=3, head_scale=head_scale)
    first, result = gradients(strategy, model, tasks, inputs, targets)
    between, again = gradients(strategy, model, tasks, inputs, targets)
    assert distance(first, between) <= 1e-12
    assert again.gram is None and result.gram is not None
    measured, third = gradients(strategy, model, tasks, inputs, targets, measure=True)
    assert distance(first, measured) <= 1e-12 and third.gram is not None
    with torch.no_grad():
        inputs *= 3
    _, fourth = gradients(strategy, model, tasks, inputs, targets)
    expected = 1 / fourth.gram.diagonal().sqrt()
    assert [w.item() for w in fourth.weights.values()] == pytest.approx(expected.tolist())


class Sum2(Weighting):
    """A late weighting: every weight is the sum of the other tasks' losses."""

    needs_all_losses = True

    def weights(self, losses):
        total = torch.stack(list(losses.values())).sum()
        return {name: total - loss for name, loss in losses.items()}


@pytest.mark.parametrize("shared", [False, True], ids=["own heads", "shared layer"])
@pytest.mark.parametrize("strategy", ["detached", "naive", "unit", "weights"])
def test_a_late_weighting_reaches_trunk_and_heads(strategy, shared):
    from mtl.strategies import Naive

    model, tasks, inputs, targets = make("pooled", 3)
    if shared:
        layer = nn.Linear(7, 3).double()
        for head in model.heads.values():
            head[-1] = layer
    _, plain = gradients(Detached(Equal()), model, tasks, inputs, targets)
    weights = {name: w.item() for name, w in Sum2().weights(plain.losses).items()}
    rule = Fixed(*WEIGHTS)
    made = {
        "detached": Detached(Sum2()),
        "naive": Naive(Sum2()),
        "unit": balanced(rule, tasks, Sum2()),
        "weights": balanced(rule, tasks, Sum2(), head_scale="weights"),
    }[strategy]
    both = {name: w * r for (name, w), r in zip(weights.items(), WEIGHTS, strict=True)}
    trunk = weights if strategy in ("detached", "naive") else both
    heads = both if strategy == "weights" else weights
    expected = expected_gradients(model, tasks, inputs, targets, trunk, heads)
    found, result = gradients(made, model, tasks, inputs, targets, measure=True)
    assert distance(expected, found) <= 1e-12
    assert {n: w.item() for n, w in result.weights.items()} == pytest.approx(trunk)
    scaled, unscaled = result.gram, plain_gram(model, tasks, inputs, targets)
    factors = torch.tensor(list(weights.values()), dtype=torch.float64)
    torch.testing.assert_close(scaled, unscaled * factors.outer(factors), rtol=1e-9, atol=0)


def plain_gram(model, tasks, inputs, targets):
    return gradients(Detached(Equal()), model, tasks, inputs, targets, measure=True)[1].gram


def test_a_rule_that_fails_raises_or_skips_the_trunk_and_is_counted():
    model, tasks, inputs, targets = make("pooled", 2)
    with pytest.raises(SolverError, match="no weights"):
        gradients(balanced(Hopeless(), tasks), model, tasks, inputs, targets)
    strategy = balanced(Hopeless(), tasks, on_solver_failure="skip")
    found, _ = gradients(strategy, model, tasks, inputs, targets)
    assert all((g == 0).all() for n, g in found.items() if n.startswith("backbone"))
    assert any((g != 0).any() for n, g in found.items() if n.startswith("heads"))
    assert strategy.state_dict()["_extra_state"]["skipped"] == 1
    with pytest.raises(SolverError, match="Fixed gave weights that are not finite"):
        gradients(balanced(Fixed(1.0, float("nan")), tasks), model, tasks, inputs, targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "weights"}, "space=weights must be one of features, features_sum, parameters"),
        ({"head_scale": "one"}, "head_scale=one must be one of unit, weights"),
        ({"every": 0}, "every=0 must be 1 or more"),
        ({"scale": "K"}, "scale=K must be a number, or the word"),
        ({"on_solver_failure": "equal"}, "on_solver_failure=equal must be one of raise, skip"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Balanced(Equal(), Fixed(1.0), ["a"], **options)


def test_a_rule_on_rows_must_have_them():
    class OnRows(nn.Module):
        needs_rows = True

    for options in ({"space": "features_sum"}, {"every": 2}):
        with pytest.raises(ValueError, match="OnRows works on the rows themselves: it needs space=features or param"):
            Balanced(Equal(), OnRows(), ["a"], **options)


def test_one_trunk_backward_in_feature_space_and_one_a_task_in_parameter_space():
    model, tasks, inputs, targets = make("pooled", 5)
    calls = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            calls.append(1)
            return gradient

    class Counting(nn.Module):
        def forward(self, x):
            return Counted.apply(x)

    model.backbone.insert(4, Counting())
    for space, expected in (("features", 1), ("features_sum", 1), ("parameters", 5)):
        calls.clear()
        gradients(balanced(Fixed(*range(5)), tasks, space=space), model, tasks, inputs, targets, measure=True)
        assert len(calls) == expected


def test_the_state_of_other_tasks_is_refused():
    saved = Balanced(Equal(), Fixed(1.0), ["a", "b"]).state_dict()
    with pytest.raises(ValueError, match="saved with the tasks a, b; it has a, c"):
        Balanced(Equal(), Fixed(1.0), ["a", "c"]).load_state_dict(saved)


@pytest.mark.parametrize("space", ["features", "parameters"])
def test_a_rule_on_rows_gives_the_direction_itself(space):
    class Signs(nn.Module):
        """The sign of the sum, element by element: no weighted sum of the rows."""

        needs_rows = True

        def combine(self, rows, gram):
            return [block.sum(0).sign() for block in rows], torch.ones(len(gram))

    model, tasks, inputs, targets = make("tokens", 3)
    plain, _ = gradients(Detached(Equal()), model, tasks, inputs, targets)
    found, _ = gradients(balanced(Signs(), tasks, space=space, scale=2.0), model, tasks, inputs, targets)
    if space == "parameters":
        for name, gradient in plain.items():
            expected = 2 * gradient.sign() if name.startswith("backbone") else gradient
            clear = gradient.abs() > 1e-12  # the sign of rounding is nobody's
            assert torch.equal(found[name][clear], expected[clear])
        return
    torch.manual_seed(1)
    z = model.backbone(inputs)
    d = z.detach().requires_grad_()
    sum(t.loss(model.heads[t.name](d), targets[t.name]) for t in tasks).backward()
    expected = torch.autograd.grad(z, list(model.backbone.parameters()), 2 * d.grad.sign())
    for (name, _), gradient in zip(model.backbone.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[f"backbone.{name}"], gradient, rtol=1e-10, atol=1e-12)


def test_a_head_that_is_tied_to_the_trunk_keeps_both_gradients():
    model, tasks, inputs, targets = make("pooled", 2)
    for head in model.heads.values():
        head[0] = Tied(model.backbone[6].weight)
    for strategy in (Detached(Sum2()), balanced(Fixed(1.0, 1.0), tasks, Sum2())):
        _, plain = gradients(Detached(Equal()), model, tasks, inputs, targets)
        weights = {name: w.item() for name, w in Sum2().weights(plain.losses).items()}
        model.zero_grad()
        torch.manual_seed(1)
        predictions = model(inputs)
        sum(weights[t.name] * t.loss(predictions[t.name], targets[t.name]) for t in tasks).backward()
        expected = model.backbone[6].weight.grad.clone()
        found, _ = gradients(strategy, model, tasks, inputs, targets)
        torch.testing.assert_close(found["backbone.6.weight"], expected, rtol=1e-10, atol=1e-12)


class Tied(nn.Module):
    """Uses the trunk's last weight once more."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, z):
        return (z @ self.weight)[:, :7]


class Tempered(nn.Module):
    """A loss that learns."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, prediction, target):
        return (prediction / self.temperature).square().mean() + self.temperature


@pytest.mark.parametrize("strategy", ["detached", "balanced", "head_scale"])
def test_what_a_loss_learns_is_weighted_too(strategy):
    from mtl.strategies import Naive

    model, tasks, inputs, targets = make("pooled", 3)
    for task in tasks:
        task.loss = Tempered()

    def learned(made):
        for task in tasks:
            task.loss.temperature.grad = None
        gradients(made, model, tasks, inputs, targets)
        return torch.stack([task.loss.temperature.grad for task in tasks])

    made, reference = {
        "detached": (Detached(Sum2()), Naive(Sum2())),
        "balanced": (balanced(Fixed(*WEIGHTS), tasks, Sum2()), Naive(Sum2())),
        "head_scale": (
            balanced(Fixed(*WEIGHTS), tasks, head_scale="weights"),
            Naive(Static([t.name for t in tasks], {"task0": 0.5, "task1": 2.0, "task2": 3.0})),
        ),
    }[strategy]
    expected = learned(reference)
    if strategy == "head_scale":
        expected[1] = -expected[1]  # a static weight cannot be negative
    torch.testing.assert_close(learned(made), expected, rtol=1e-10, atol=0)


def test_a_task_that_comes_or_goes_makes_the_rule_run_anew():
    model, tasks, inputs, targets = make("tokens", 3)
    strategy = balanced(Inverse(), tasks, every=100)
    gradients(strategy, model, tasks, inputs, {n: t for n, t in targets.items() if n != "task1"})
    _, between = gradients(strategy, model, tasks, inputs, {n: t for n, t in targets.items() if n != "task1"})
    assert between.gram is None
    _, back = gradients(strategy, model, tasks, inputs, targets)
    expected = 1 / back.gram.diagonal().sqrt()
    assert [w.item() for w in back.weights.values()] == pytest.approx(expected.tolist())
