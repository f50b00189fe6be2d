"""The other libraries' steps in the study experiments/cost compute what their row says."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchjd import aggregation

from mtl.engine.engine import Engine
from mtl.model import MultiTaskModel
from mtl.rules import MGDA, CAGrad, NashMTL, PCGrad, Sum, UPGrad
from mtl.strategies import Balanced
from mtl.tasks import Task
from mtl.weightings import Equal

STUDY = Path(__file__).parents[2] / "experiments" / "cost"
EXACT = dict(rtol=0, atol=1e-12)
CHUNKS = ("chunk=None", "chunk=1", "chunk=4")


@pytest.fixture
def peers(monkeypatch):
    """The study's module; in float64, which LibMTL makes its own tensors in as well."""
    monkeypatch.syspath_prepend(str(STUDY))
    monkeypatch.delitem(sys.modules, "peers", raising=False)
    torch.set_default_dtype(torch.float64)
    yield __import__("peers")
    torch.set_default_dtype(torch.float32)
    sys.modules.pop("peers", None)


@pytest.fixture
def libmtl(peers):
    if importlib.util.find_spec("LibMTL") is None:
        pytest.skip("LibMTL is not installed: pip install -e '.[bench]'")
    return peers._import_libmtl()


class Levels(nn.Sequential):
    """A small pyramid: what each part gives, the later from the earlier."""

    def forward(self, x):
        found = []
        for part in self:
            x = part(x)
            found.append(x)
        return found


class ReadsAll(nn.Linear):
    def forward(self, levels):
        return super().forward(torch.cat(levels, 1))


def problem(count, levels=False, seed=0, size=1.0):
    """Tasks that disagree about common outputs, with losses of about one size."""
    torch.manual_seed(seed)
    names = [f"task{i}" for i in range(count)]
    parts = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Sequential(nn.Linear(8, 5), nn.Tanh())
    backbone = Levels(*parts) if levels else nn.Sequential(*parts)
    model = MultiTaskModel(backbone, {name: ReadsAll(13, 3) if levels else nn.Linear(5, 3) for name in names})
    targets = {name: torch.randint(3, (16,)) for name in names}
    tasks = [Task(name, lambda *pair: size * cross_entropy(*pair)) for name in names]
    inputs = torch.randn(16, 6)
    return SimpleNamespace(model=model, tasks=tasks, inputs=inputs, targets=targets, engine=Engine(model, tasks))


def gradients(problem, step):
    """What the step leaves: the trunk's, in one vector, and the heads'."""
    problem.model.zero_grad()
    step()
    trunk, heads = (
        torch.cat([p.grad.flatten() for p in part.parameters()])
        for part in (problem.model.backbone, problem.model.heads)
    )
    return trunk, heads


def plain(problem):
    """The gradients of the sum of the losses."""

    def step():
        z = problem.engine.features(problem.inputs)
        sum(problem.engine.loss(task, z, problem.targets[task.name]) for task in problem.tasks).backward()

    return gradients(problem, step)


def ours(problem, rule, **options):
    strategy = Balanced(Equal(), rule, [task.name for task in problem.tasks], **options)
    return gradients(problem, lambda: strategy.step(problem.model, problem.tasks, problem.inputs, problem.targets))


def differ(found, expected):
    """Relative to the expected one's length."""
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("levels", [False, True])
def test_torchjd_with_the_sum_is_plain_training(peers, levels):
    given = problem(5, levels)
    expected = plain(given)
    steps = [peers._torchjd_at_features(given, aggregation.Sum())]
    if not levels:
        steps += [peers._torchjd_at_parameters(given, aggregation.Sum(), chunk, False) for chunk in (None, 1, 4)]
    for step in steps:
        for found, wanted in zip(gradients(given, step), expected, strict=True):
            torch.testing.assert_close(found, wanted, **EXACT)
    mean = gradients(given, peers._torchjd_at_features(given, aggregation.Mean()))
    assert differ(mean[0], expected[0]) > 0.5


# TorchJD adds 1e-4 to UPGrad's Gram matrix, and ends MGDA's Frank-Wolfe iterations at a step of 1e-3.
@pytest.mark.parametrize(("rule", "tolerance"), [(UPGrad, 1e-3), (MGDA, 3e-2)])
def test_torchjd_agrees_with_our_rule_in_the_same_space(peers, rule, tolerance):
    given, name = problem(5), rule.__name__
    steps = peers.torchjd_steps(given)
    own_heads = plain(given)[1]
    in_space = {space: ours(given, rule(), space=space)[0] for space in ("parameters", "features")}
    rows = {f"TorchJD mtl_backward {name}, {chunk}": "parameters" for chunk in CHUNKS}
    rows |= {f"TorchJD mtl_backward {name}, {chunk}, optimize_gramian": "parameters" for chunk in CHUNKS[:2]}
    rows |= {f"TorchJD {name}, features": "features"}
    assert set(rows) == {row for row in steps if name in row}
    for row, space in rows.items():
        trunk, heads = gradients(given, steps[row])
        assert differ(trunk, in_space[space]) < tolerance, row
        torch.testing.assert_close(heads, own_heads, **EXACT)
    assert differ(in_space["features"], in_space["parameters"]) > 2 * tolerance
    assert differ(plain(given)[0], in_space["parameters"]) > 2 * tolerance


def test_libmtl_with_equal_weights_is_plain_training(peers, libmtl):
    for given in (problem(4), problem(4, levels=True)):
        expected = plain(given)
        steps = peers.libmtl_steps(given)
        for found, wanted in zip(gradients(given, steps["LibMTL EW"]), expected, strict=True):
            torch.testing.assert_close(found, wanted, **EXACT)
        assert differ(gradients(given, steps["LibMTL CAGrad"])[0], expected[0]) > 0.1


def test_libmtl_mgda_agrees_with_ours(peers, libmtl):
    given = problem(4)
    steps, own_heads = peers.libmtl_steps(given), plain(given)[1]
    in_space = {space: ours(given, MGDA(), space=space)[0] for space in ("parameters", "features", "features_sum")}
    for lists in ("", ", lists"):
        for row, space in (("LibMTL MGDA", "parameters"), ("LibMTL MGDA, rep_grad", "features_sum")):
            trunk, heads = gradients(given, steps[row + lists])
            assert differ(trunk, in_space[space]) < 1e-3, row
            torch.testing.assert_close(heads, own_heads, **EXACT)
    assert differ(in_space["parameters"], in_space["features_sum"]) > 1e-2
    assert differ(in_space["features"], in_space["features_sum"]) > 1e-2


def test_libmtl_pcgrad_agrees_with_ours_where_the_order_does_not_matter(peers, libmtl):
    given = problem(2, seed=11)  # they conflict
    trunk, heads = gradients(given, peers.libmtl_steps(given)["LibMTL PCGrad"])
    expected = ours(given, PCGrad(), space="parameters")[0]
    torch.testing.assert_close(trunk, expected, **EXACT)
    torch.testing.assert_close(heads, plain(given)[1], **EXACT)
    assert differ(plain(given)[0], expected) > 0.05


def test_cagrad_is_libmtls_own_at_three_tasks_and_the_papers_at_any(peers, libmtl):
    given = problem(3)
    theirs = peers._libmtl_step(given, libmtl.weighting.CAGrad, calpha=0.5, rescale=1)
    expected = gradients(given, theirs)
    for found, wanted in zip(gradients(given, peers.libmtl_steps(given)["LibMTL CAGrad"]), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    for count in (2, 5):
        given = problem(count, size=100.0)  # SLSQP ends at changes of 1e-6
        trunk = gradients(given, peers.libmtl_steps(given)["LibMTL CAGrad"])[0]
        paper = ours(given, CAGrad(c=0.5), space="parameters")[0] / 1.25
        assert differ(trunk, paper) < 1e-3
        assert differ(ours(given, CAGrad(c=0.0), space="parameters")[0], paper) > 1e-2


def test_nash_mtl_weighs_the_heads_too_and_clips_the_trunk(peers, libmtl):
    given = problem(3)
    trunk, heads = gradients(given, peers.libmtl_steps(given)["LibMTL Nash_MTL"])
    expected = ours(given, NashMTL(), space="parameters", head_scale="weights")
    torch.testing.assert_close(trunk.norm(), torch.tensor(1.0), rtol=1e-5, atol=0)
    assert differ(trunk, expected[0] / expected[0].norm()) < 1e-5
    assert differ(heads, expected[1]) < 1e-5
    assert differ(plain(given)[1], expected[1]) > 0.1
    other = ours(given, Sum(), space="parameters")[0]
    assert differ(other / other.norm(), expected[0] / expected[0].norm()) > 0.1


def test_a_row_is_a_step_or_has_a_reason(peers, libmtl):
    rows = {}
    for key, given in {"usual": problem(2), "one task": problem(1), "levels": problem(2, levels=True)}.items():
        steps, reasons = peers.torchjd_steps(given) | peers.libmtl_steps(given), peers.not_possible(given)
        rows[key] = set(steps) | set(reasons)
        assert not set(steps) & set(reasons)
        for step in steps.values():
            assert all(vector.isfinite().all() for vector in gradients(given, step))
    assert (
        rows["usual"]
        == rows["one task"]
        == rows["levels"]
        == set(peers.torchjd_steps(problem(2))) | set(peers.libmtl_steps(problem(2)))
    )
    one, levels = peers.not_possible(problem(1)), peers.not_possible(problem(2, levels=True))
    assert {row for row in one if "MGDA" not in row} == {"LibMTL Nash_MTL"}
    assert all("mtl_backward" in row or "rep_grad" in row for row in levels) and len(levels) == 10


def test_what_is_told_to_be_impossible_is(peers, libmtl):
    """Or it would be left out of the tables for nothing."""
    for given in (problem(1), problem(2, levels=True)):
        for row in peers.not_possible(given):
            if row.startswith("TorchJD"):
                step = peers._torchjd_at_parameters(given, aggregation.UPGrad(), 1, False)
            elif "Nash" in row:
                step = peers._libmtl_step(given, peers.NashMTL)
            else:
                made = "rep_grad" in row, "lists" in row
                step = peers._libmtl_step(given, libmtl.weighting.MGDA, *made, mgda_gn="none")
            with pytest.raises((RuntimeError, ValueError, UnboundLocalError, AttributeError, TypeError)):
                gradients(given, step)


def test_what_autocast_keeps_vmap_from_is_told(peers):
    given = problem(2)
    given.model.backbone.insert(1, nn.BatchNorm1d(8))
    given.model.float()
    given.inputs = given.inputs.float()
    given.engine.precision.dtype = torch.bfloat16
    reasons = peers.not_possible(given)
    assert {row for row in reasons if row.startswith("TorchJD")} == {
        row for row in peers._torchjd(given) if "chunk=None" in row
    }
    with pytest.raises(RuntimeError) as raised:
        peers._torchjd_at_parameters(given, aggregation.UPGrad(), None, False)()
    assert str(raised.value) in reasons["TorchJD mtl_backward UPGrad, chunk=None"]
    given.engine.precision.dtype = None
    assert not any(row.startswith("TorchJD") for row in peers.not_possible(given))


def test_a_solver_without_end_is_stopped(peers):
    class Endless:
        def _find_min_norm_element(self, rows):
            while rows is not None:
                pass
            return "an end"

    solver = type("MGDA", (peers.EndsInTime, Endless), {})()
    with pytest.raises(RuntimeError, match="does not count"):
        solver._find_min_norm_element(torch.ones(3, 2), seconds=0.05)
    assert solver._find_min_norm_element(None) == "an end"


def test_without_the_libraries_there_are_no_steps(peers, monkeypatch):
    given = problem(2)
    assert peers.torchjd_steps(given)
    monkeypatch.setattr(peers, "aggregation", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert peers.torchjd_steps(given) == peers.libmtl_steps(given) == {}
    assert set(peers.not_possible(given)) == {"TorchJD", "LibMTL"}


def test_how_often_each_row_goes_back_through_trunk_and_heads(peers, libmtl):
    """What the rows are there to show, in counts that no machine changes."""
    given = problem(5)
    passes = {"trunk": 0, "heads": 0}

    def count(name):
        def hook(module, inputs, output):
            if output.requires_grad:
                output.register_hook(lambda gradient: passes.update({name: passes[name] + 1}))

        return hook

    given.model.backbone[0].register_forward_hook(count("trunk"))
    for head in given.model.heads.values():
        head.register_forward_hook(count("heads"))
    found = {}
    for row, step in (peers.torchjd_steps(given) | peers.libmtl_steps(given)).items():
        passes.update(trunk=0, heads=0)
        gradients(given, step)
        found[row] = tuple(passes.values())
    expected = {
        "LibMTL EW": (1, 5),
        "LibMTL PCGrad": (5, 25),
        "LibMTL CAGrad": (5, 25),
        "LibMTL Nash_MTL": (6, 30),
        "LibMTL MGDA": (5, 25),
        "LibMTL MGDA, lists": (5, 5),
        "LibMTL MGDA, rep_grad": (5, 25),
        "LibMTL MGDA, rep_grad, lists": (1, 5),
    }
    for rule in ("UPGrad", "MGDA"):
        for chunk, passes_of_trunk in zip(CHUNKS, (1, 5, 2), strict=True):
            for optimized in ("", ", optimize_gramian") if chunk != "chunk=4" else ("",):
                expected[f"TorchJD mtl_backward {rule}, {chunk}{optimized}"] = (passes_of_trunk, 5)
        expected[f"TorchJD {rule}, features"] = (1, 5)
    assert found == expected
