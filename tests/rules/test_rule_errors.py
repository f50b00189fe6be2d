"""Errors of the rules and their messages; the strategy files."""

import pytest
import torch
from support.composing import option, options
from support.rule_zoo import GRAMS, ON_GRAM

from mtl import rules
from mtl.rules.solvers import SolverError, least_distance, nonnegative_least_squares, project_onto_simplex

BAD = [
    (lambda: rules.CAGrad(c=-0.1), "c=-0.1 must be 0 or more."),
    (lambda: rules.CAGrad(c=float("nan")), "c=nan must be 0 or more."),
    (lambda: rules.FairGrad(alpha=-1), "alpha=-1 must be above 0."),
    (lambda: rules.FairGrad(alpha=0), "alpha=0 must be above 0."),
    (lambda: rules.AlignedMTL("max"), "scale_mode=max must be one of min, median, mean."),
    (lambda: rules.GradVac(0), "num_tasks=0 must be a whole number of 1 or more."),
    (lambda: rules.GradVac(2.0), "num_tasks=2.0 must be a whole number of 1 or more."),
    (lambda: rules.GradVac(2, beta=0), "beta=0 must be above 0 and at most 1."),
    (lambda: rules.GradVac(2, seed=-1), "seed=-1 must be a whole number of 0 or more."),
    (lambda: rules.PCGrad(seed=0.5), "seed=0.5 must be a whole number of 0 or more."),
    (lambda: rules.GradDrop(leak=1.5), "leak=1.5 must be from 0 to 1."),
    (lambda: rules.GradDrop(leak=[]), "leak=[] must be from 0 to 1."),
    (lambda: rules.DBMTL(2, beta=1.0), "beta=1.0 must be 0 or more and below 1."),
    (lambda: rules.DBMTL(2, sigma=-1), "sigma=-1 must be 0 or more."),
    (lambda: rules.MoCo(2, beta=0), "beta=0 must be above 0 and at most 1."),
    (lambda: rules.MoCo(2, gamma=0), "gamma=0 must be above 0."),
    (lambda: rules.MoCo(2, rho=-1), "rho=-1 must be 0 or more."),
    (lambda: rules.SDMGrad(2, lamda=-1), "lamda=-1 must be 0 or more."),
    (lambda: rules.SDMGrad(2, lr=0), "lr=0 must be above 0."),
    (lambda: rules.SDMGrad(2, momentum=1), "momentum=1 must be 0 or more and below 1."),
    (lambda: rules.SDMGrad(2, iterations=0), "iterations=0 must be 1 or more."),
    (lambda: rules.ExcessMTL(2, eta=0), "eta=0 must be above 0."),
    (lambda: rules.PCD(2, primary=2), "primary=2 must be a task index from 0 to 1."),
    (lambda: rules.PCD(2, tau=2), "tau=2 must be from 0 to 1."),
    (lambda: rules.PCD(2, beta=1), "beta=1 must be 0 or more and below 1."),
    (lambda: rules.PCD(2, eps=-1), "eps=-1 must be 0 or more."),
    (lambda: rules.Krum(byzantine=-1), "byzantine=-1 must be 0 or more."),
    (lambda: rules.Krum(selected=0), "selected=0 must be 1 or more."),
    (lambda: rules.TrimmedMean(trim=-1), "trim=-1 must be 0 or more."),
    (lambda: rules.EPO(2, epsilon=-1), "epsilon=-1 must be 0 or more."),
    (
        lambda: rules.EPO(2, [1, 2, 3], ["left", "right"]),
        "preference has 3 numbers, but there are 2 tasks: left, right.",
    ),
    (lambda: rules.UPGrad({"lef": 2}, ["left", "right"]), "preference.lef names no task; did you mean left."),
    (lambda: rules.MGDA({"left": 0}), "preference.left=0 must be a finite number above 0."),
    (lambda: rules.ConFIG([1, -2]), "preference.1=-2 must be a finite number above 0."),
    (lambda: rules.NashMTL(preference=[1, float("inf")]), "preference.1=inf must be a finite number above 0."),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_a_hyper_parameter_out_of_range(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize("name", ON_GRAM)
def test_a_matrix_that_is_not_square(name):
    with pytest.raises(ValueError, match=r"must be square and not empty, but its shape is \[2, 3\]"):
        ON_GRAM[name](2)(torch.ones(2, 3))


def test_one_leak_a_task():
    with pytest.raises(ValueError, match=r"leak=\[0.1, 0.2\] must be one number, or one for each task"):
        rules.GradDrop(leak=[0.1, 0.2]).combine([torch.ones(3, 2)], torch.ones(3, 3))


def test_a_solver_that_fails_says_so(monkeypatch):
    from mtl.rules import fair, solvers

    monkeypatch.setattr(solvers, "nnls", lambda matrix, right, maxiter: (0.3 * abs(right[0]) + 0 * matrix[0], 0.0))
    with pytest.raises(SolverError, match="missed the optimum by"):
        rules.DualProj()(GRAMS["eight"])

    def stops(matrix, right, maxiter):
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr(solvers, "nnls", stops)
    for rule in (rules.MGDA(), rules.CAGrad()):
        with pytest.raises(SolverError, match="did not finish"):
            rule(GRAMS["eight"])
    monkeypatch.undo()
    monkeypatch.setattr(fair, "_newton", lambda *arguments: None)
    with pytest.raises(SolverError, match=r"did not solve G w = w\^\(-1/1\) for 8 tasks"):
        rules.NashMTL()(GRAMS["eight"])
    assert issubclass(SolverError, RuntimeError)


def test_solvers_on_their_own():
    matrix = torch.eye(2).double().numpy()
    assert nonnegative_least_squares(matrix, torch.tensor([1.0, -1.0]).double().numpy()).tolist() == [1, 0]
    assert least_distance(matrix, torch.tensor([2.0, -1.0]).double().numpy()).tolist() == pytest.approx([2, 0])
    opposite = torch.tensor([[1.0, -1.0]]).double().numpy()
    assert least_distance(opposite, torch.tensor([1.0, 1.0]).double().numpy()) is None
    assert project_onto_simplex(torch.tensor([0.9, 0.5, -3.0]).double().numpy()).tolist() == pytest.approx(
        [0.7, 0.3, 0]
    )


FILES = {name: option("strategy", name) for name in options("strategy")}
OURS = {name: file for name, file in FILES.items() if file["_target_"] == "mtl.strategies.Balanced"}


def test_every_rule_has_a_strategy_file():
    classes = {file["rule"]["_target_"].removeprefix("mtl.rules.") for file in OURS.values()}
    exported = {
        name for name, value in vars(rules).items() if isinstance(value, type) and issubclass(value, rules.Rule)
    }
    assert classes == exported - {"Rule"}


@pytest.mark.parametrize("name", OURS)
def test_a_strategy_file_builds_its_rule(name):
    arguments = dict(OURS[name]["rule"])
    cls = getattr(rules, arguments.pop("_target_").removeprefix("mtl.rules."))
    rule = cls(**arguments, **({"num_tasks": 3} if cls.per_task_state else {}))
    assert rule.needs_rows == (name in ("graddrop", "db_mtl", "moco", "excess_mtl", "trimmed_mean"))
    assert OURS[name]["head_scale"] in ("unit", "weights")
    scale = OURS[name]["scale"]
    assert scale == "tasks" or isinstance(scale, int | float)


# Rules with the sum as direction for orthogonal gradients of one norm.
FAITHFUL = ["sum", "mgda", "pcgrad", "gradvac", "imtl_g", "aligned_mtl", "upgrad", "dualproj"]
FAITHFUL += ["fairgrad", "config", "sdmgrad", "rotograd_scale"]


@pytest.mark.parametrize("name", FAITHFUL)
def test_the_scale_makes_the_weights_of_even_gradients_one(name):
    arguments = dict(OURS[name]["rule"])
    cls = getattr(rules, arguments.pop("_target_").removeprefix("mtl.rules."))
    rule = cls(**arguments, **({"num_tasks": 3} if cls.per_task_state else {}))
    scale = 3 if OURS[name]["scale"] == "tasks" else OURS[name]["scale"]
    torch.testing.assert_close(scale * rule(GRAMS["orthogonal"]), torch.ones(3).double(), rtol=1e-9, atol=0)
