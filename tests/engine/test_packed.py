"""Equal linear heads that run as one product: nothing but the time and the memory tells."""

from unittest.mock import patch

import pytest
import torch
from support.networks import distance, gradients
from torch import nn

from mtl.engine.packed import PackedHeads
from mtl.engine.precision import Precision
from mtl.losses import MaskedBCE, MaskedL1, MaskedL2
from mtl.model import MultiTaskModel
from mtl.rules import MGDA, GradDrop, PCGrad
from mtl.strategies import Balanced, Detached, Naive
from mtl.system.memory import PeakMemory
from mtl.tasks import Task
from mtl.weightings import GLS, UW, Equal, Static

COUNT, WIDTH, BATCH = 7, 24, 5
NAMES = [f"task{i}" for i in range(COUNT)]


class Looped(nn.Linear):
    """The same layer, which runs by itself."""


class Mean(nn.Module):
    """``[B, T, D]`` features of ``[B, T, 3]`` inputs."""

    def __init__(self, positions):
        super().__init__()
        self.layer, self.positions = nn.Linear(3, WIDTH), positions

    def forward(self, x):
        features = self.layer(x).tanh()
        return features if self.positions else features.mean(1)


def of_classes():
    return torch.randint(3, (BATCH,)), nn.CrossEntropyLoss(), 3


def smoothed():
    target = torch.randint(3, (BATCH,))
    target[1] = -1
    return target, nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=-1), 3


def of_numbers(loss, outputs=1, missing=False):
    target = torch.rand(BATCH, outputs, dtype=torch.float64)
    if missing:
        target[2, 0] = torch.nan
    return target, loss, outputs


KINDS = {
    "classes": of_classes,
    "smoothed classes": smoothed,
    "attribute": lambda: of_numbers(nn.BCEWithLogitsLoss()),
    "attributes": lambda: of_numbers(MaskedBCE(), 3, missing=True),
    **{type(loss).__name__: lambda loss=loss: of_numbers(loss) for loss in (nn.MSELoss(), nn.L1Loss(), nn.HuberLoss())},
    "smooth": lambda: of_numbers(nn.SmoothL1Loss(beta=0.1), 2),
    "depth": lambda: of_numbers(MaskedL1(), missing=True),
    "distance": lambda: of_numbers(MaskedL2(invalid=None), missing=True),
}


def problem(head=nn.Linear, kind="attribute", positions=False, bias=True, count=COUNT, dtype=torch.float64):
    torch.manual_seed(0)
    made = {name: KINDS[kind]() for name in NAMES[:count]}
    torch.manual_seed(0)
    model = MultiTaskModel(Mean(positions), {n: head(WIDTH, o, bias=bias) for n, (_, _, o) in made.items()}).to(dtype)
    targets = {
        name: target.to(dtype) if target.is_floating_point() else target for name, (target, _, _) in made.items()
    }
    if positions:
        targets = {name: target.unsqueeze(1).expand(-1, 4, -1).clone() for name, target in targets.items()}
    return (
        model,
        [Task(name, loss) for name, (_, loss, _) in made.items()],
        torch.randn(BATCH, 4, 3, dtype=dtype),
        targets,
    )


def both(strategy, measure=True, **options):
    """One step with heads that run as one, and one with the same heads in a loop; what ran says which."""
    results = []
    for head, expected in ((nn.Linear, 1), (Looped, 0)):
        with patch.object(PackedHeads, "backward", autospec=True, side_effect=PackedHeads.backward) as ran:
            results.append(gradients(strategy(), *problem(head, **options), measure=measure))
        assert ran.call_count == expected
    return results


def assert_same(packed, looped, tolerance=1e-12):
    (a, seen), (b, expected) = packed, looped
    assert sum(g.abs().sum() for g in b.values()) > 0
    assert distance(b, a) <= tolerance
    for name in NAMES:
        assert seen.losses[name] == pytest.approx(expected.losses[name].item(), rel=tolerance)
        assert seen.losses[name].dtype == expected.losses[name].dtype and seen.losses[name].shape == ()
        assert seen.weights[name].item() == pytest.approx(expected.weights[name].item(), rel=1e3 * tolerance)
    if expected.gram is not None:
        assert (seen.gram - expected.gram).abs().max() <= tolerance * expected.gram.abs().max()
    if expected.audit is not None:
        assert torch.allclose(seen.audit.parameters, expected.audit.parameters, rtol=1e-9)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_losses_and_gram_matrix_are_those_of_heads_in_a_loop(kind, bias):
    assert_same(*both(lambda: Detached(Equal()), kind=kind, bias=bias))


def test_the_gradients_are_those_of_plain_training():
    model, tasks, inputs, targets = problem()
    naive, _ = gradients(Naive(Equal()), model, tasks, inputs, targets)
    packed, _ = gradients(Detached(Equal()), model, tasks, inputs, targets)
    assert distance(naive, packed) <= 1e-12
    off, _ = gradients(Detached(Static(NAMES, {"task3": 0.999})), model, tasks, inputs, targets)
    assert distance(naive, off) > 1e-6


STRATEGIES = {
    "static": lambda: Detached(Static(NAMES, {"task1": 0.3, "task4": 0.0})),
    "learned": lambda: Detached(UW(NAMES)),
    "late": lambda: Detached(GLS()),
    "summed": lambda: Detached(Equal(), space="features_sum"),
    "MGDA": lambda: Balanced(Equal(), MGDA(), NAMES),
    "scaled heads": lambda: Balanced(UW(NAMES), PCGrad(), NAMES, scale=0.5, head_scale="weights"),
    "late MGDA": lambda: Balanced(GLS(), MGDA(), NAMES),
    "MGDA, summed": lambda: Balanced(Equal(), MGDA(), NAMES, space="features_sum"),
    "MGDA, parameters": lambda: Balanced(Equal(), MGDA(), NAMES, space="parameters"),
    "rows": lambda: Balanced(Equal(), GradDrop(), NAMES),
}


@pytest.mark.parametrize("kind", ["attribute", "classes"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_kind_of_strategy(name, kind):
    assert_same(*both(STRATEGIES[name], kind=kind), tolerance=1e-9)


@pytest.mark.parametrize("name", ["static", "MGDA", "rows"])
def test_features_with_positions(name):
    assert_same(*both(STRATEGIES[name], positions=True), tolerance=1e-9)


def test_steps_between_two_of_a_rule_use_its_last_weights():
    def between():
        strategy = Balanced(Equal(), MGDA(), NAMES, every=2)
        weights = {name: 0.1 * i for i, name in enumerate(NAMES)}
        strategy.set_extra_state({"steps": 1, "skipped": 0, "solved": NAMES, "last_weights": weights})
        return strategy

    packed, looped = both(between, measure=False)
    assert_same(packed, looped)
    assert packed[1].gram is None and packed[1].weights["task3"].item() == pytest.approx(0.3)


def test_the_audit():
    results = []
    for head in (nn.Linear, Looped):
        model, tasks, inputs, targets = problem(head)
        results.append(Detached(Equal()).step(model, tasks, inputs, targets, audit=True).audit)
    assert results[0].tasks == results[1].tasks
    assert torch.allclose(results[0].parameters, results[1].parameters, rtol=1e-9)
    assert torch.allclose(results[0].features, results[1].features, rtol=1e-9)


@pytest.mark.parametrize("name", ["static", "MGDA", "rows"])
@pytest.mark.parametrize("kind", ["attribute", "classes"])
def test_mixed_precision_and_a_loss_scale(name, kind):
    results = []
    for head in (nn.Linear, Looped):
        model, *batch = problem(head, kind, dtype=torch.float32)
        results.append(
            gradients(STRATEGIES[name](), model, *batch, measure=True, precision=scaled(torch.bfloat16, 64.0))
        )
    (packed, seen), (looped, expected) = results
    if name != "rows":  # GradDrop's signs may change with the last digit
        assert distance(looped, packed) <= 0.02
    assert (seen.gram - expected.gram).abs().max() <= 0.02 * expected.gram.max()
    assert all(g.dtype == torch.float32 for g in packed.values())


def scaled(dtype, scale=1.0):
    precision = Precision(dtype)
    precision.scale = scale
    return precision


def as_one_and_in_a_loop(strategy, change, precision=None, **options):
    results = []
    for head in (nn.Linear, Looped):
        parts = problem(head, **options)
        change(*parts)
        results.append(gradients(strategy(), *parts, measure=True, precision=precision))
    return results


def confident(model, tasks, inputs, targets):
    for name in NAMES:
        targets[name].fill_(1.0)
        nn.init.constant_(model.heads[name].bias, 12.0)


def test_rows_of_float16_have_the_loss_scale_divided_out_where_they_are_held():
    """Derivatives of 1e-6, which float16 holds with the scale and not without it."""
    (_, seen), (_, expected) = as_one_and_in_a_loop(
        STRATEGIES["MGDA"], confident, scaled(torch.float16, 2.0**16), dtype=torch.float32
    )
    assert 0 < expected.gram.max() < 1e-10
    assert (seen.gram - expected.gram).abs().max() <= 0.01 * expected.gram.max()


@pytest.mark.parametrize("kind", ["classes", "smoothed classes", "attributes"])
def test_losses_are_in_float32_under_autocast(kind):
    (_, seen), (_, expected) = as_one_and_in_a_loop(
        STRATEGIES["static"], lambda *_: None, scaled(torch.bfloat16), kind=kind, dtype=torch.float32
    )
    assert any(loss != loss.bfloat16() for loss in seen.losses.values())
    for name in NAMES:
        assert seen.losses[name] == pytest.approx(expected.losses[name].item(), rel=1e-3)


@pytest.mark.parametrize("name", ["static", "late", "scaled heads", "late MGDA"])
def test_heads_that_share_parameters(name):
    def tie(model, *_):
        model.heads["task1"] = model.heads["task0"]
        model.heads["task3"].weight = model.heads["task2"].weight

    (packed, _), (looped, _) = as_one_and_in_a_loop(STRATEGIES[name], tie)
    assert distance(looped, packed) <= 1e-9


def test_gradients_are_added_to_what_was_there():
    model, tasks, inputs, targets = problem()
    strategy = Detached(Equal())
    once, _ = gradients(strategy, model, tasks, inputs, targets)
    strategy.step(model, tasks, inputs, targets)
    assert distance({n: 2 * g for n, g in once.items()}, {n: p.grad for n, p in model.named_parameters()}) <= 1e-12


def test_an_absent_task_is_left_out():
    model, tasks, inputs, targets = problem(kind="attributes")
    targets["task2"].fill_(torch.nan)
    naive, _ = gradients(Naive(Equal()), model, tasks, inputs, targets)
    packed, result = gradients(Detached(Equal()), model, tasks, inputs, targets)
    assert "task2" not in result.losses and model.heads["task2"].weight.grad is None
    assert distance(naive, packed) <= 1e-12


def unlike(change):
    """Heads or losses that are not all the same, or are watched: each runs by itself, and counts its calls."""
    model, tasks, inputs, targets = problem(kind="classes")
    change(model, tasks, targets)
    calls = []
    model.heads["task0"].register_forward_hook(lambda *_: calls.append(0)) if change is watch else None
    with patch.object(PackedHeads, "backward", autospec=True, side_effect=PackedHeads.backward) as ran:
        packed, _ = gradients(Detached(Equal()), model, tasks, inputs, targets)
    assert ran.call_count == 0
    naive, _ = gradients(Naive(Equal()), model, tasks, inputs, targets)
    assert distance(naive, packed) <= 1e-12
    return calls


def watch(model, tasks, targets):
    """Heads as they are, one of them with a hook."""


def test_a_hook_on_a_head_is_called():
    assert unlike(watch)


def other_head(model, tasks, targets):
    model.heads["task0"] = nn.Sequential(nn.Linear(WIDTH, 3)).double()


def other_width(model, tasks, targets):
    model.heads["task0"] = nn.Linear(WIDTH, 4).double()


def without_bias(model, tasks, targets):
    model.heads["task0"] = nn.Linear(WIDTH, 3, bias=False).double()


def frozen(model, tasks, targets):
    model.heads["task0"].bias.requires_grad_(False)


def class_weights(model, tasks, targets):
    for task in tasks:
        task.loss = nn.CrossEntropyLoss(weight=torch.rand(3).double())


def other_loss(model, tasks, targets):
    tasks[0].loss = nn.CrossEntropyLoss(label_smoothing=0.1)


def loss_from_outside(model, tasks, targets):
    class Own(nn.CrossEntropyLoss):
        def forward(self, prediction, target):
            assert prediction.isfinite().all()  # asks for a value, which torch.vmap cannot follow
            return super().forward(prediction, target)

    for task in tasks:
        task.loss = Own()


def other_target(model, tasks, targets):
    targets["task0"] = nn.functional.one_hot(targets["task0"], 3).double()


def normalised(model, tasks, targets):
    for head in model.heads.values():
        nn.utils.weight_norm(head)


def another_parameter(model, tasks, targets):
    for head in model.heads.values():
        head.temperature = nn.Parameter(torch.ones(()).double())


def gradient_hook(model, tasks, targets):
    for head in model.heads.values():
        head.weight.register_hook(lambda gradient: gradient / 2)


def other_forward(model, tasks, targets):
    for head in model.heads.values():
        head.forward = lambda features, head=head: nn.functional.linear(features, 2 * head.weight, head.bias)


def hook_on_a_loss(model, tasks, targets):
    for task in tasks:
        task.loss.register_forward_hook(lambda loss, inputs, output: output * 2)


def column_major(model, tasks, targets):
    """A fused optimizer wants the gradient in the same order."""
    for head in model.heads.values():
        head.weight = nn.Parameter(head.weight.detach().T.contiguous().T)


def compiled(model, tasks, targets):
    model.heads["task0"].compile(backend="eager")


@pytest.mark.parametrize(
    "change",
    [
        other_head,
        other_width,
        without_bias,
        frozen,
        class_weights,
        other_loss,
        loss_from_outside,
        other_target,
        normalised,
        another_parameter,
        gradient_hook,
        other_forward,
        hook_on_a_loss,
        column_major,
        compiled,
    ],
)
def test_what_is_not_equal_runs_in_a_loop(change):
    unlike(change)


def test_heads_that_were_weight_normed_have_their_parameters_in_another_order():
    def undo(model, *_):
        for head in model.heads.values():
            nn.utils.remove_weight_norm(nn.utils.weight_norm(head))
        assert list(dict(model.heads["task0"].named_parameters())) == ["bias", "weight"]

    (packed, _), (looped, _) = as_one_and_in_a_loop(STRATEGIES["static"], undo)
    assert distance(looped, packed) <= 1e-12


def test_a_hook_on_all_modules_sees_every_head():
    seen = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        model, *batch = problem()
        gradients(Detached(Equal()), model, *batch)
    finally:
        hook.remove()
    assert all(any(head is module for module in seen) for head in model.heads.values())


@pytest.mark.parametrize("count, kind, packs", [(6, "attribute", True), (5, "attribute", False), (7, "classes", True)])
def test_few_heads_run_in_a_loop(count, kind, packs):
    with patch.object(PackedHeads, "backward", autospec=True, side_effect=PackedHeads.backward) as ran:
        gradients(Detached(Equal()), *problem(kind=kind, count=count))
    assert ran.call_count == packs


def test_outputs_that_are_wider_together_than_the_features_run_in_a_loop():
    """Or the memory would grow with the number of heads."""
    model, tasks, inputs, targets = problem(kind="classes")
    for name in NAMES:
        model.heads[name] = nn.Linear(WIDTH, 4).double()  # 7 x 4 > 24
    with patch.object(PackedHeads, "backward", autospec=True, side_effect=PackedHeads.backward) as ran:
        gradients(Detached(Equal()), model, tasks, inputs, targets)
    assert ran.call_count == 0


def test_no_rows_are_kept_for_heads_of_one_output():
    """Forty rows of the features' size would be 40 x 128 x 512 x 4 bytes."""
    peaks = {}
    for head in (nn.Linear, Looped):
        names = [f"task{i}" for i in range(40)]
        model = MultiTaskModel(nn.Linear(3, 512), {name: head(512, 1) for name in names})
        targets = {name: torch.rand(128, 1) for name in names}
        tasks = [Task(name, nn.BCEWithLogitsLoss()) for name in names]
        strategy = Balanced(Equal(), MGDA(), names)
        with PeakMemory() as memory:
            strategy.step(model, tasks, torch.randn(128, 3), targets)
        peaks[head] = memory.peak
    rows = 40 * 128 * 512 * 4
    assert peaks[nn.Linear] < 0.2 * rows and peaks[Looped] > rows
