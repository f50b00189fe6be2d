"""Runs the scripts of examples/ as programs of their own, in float64, and the same by the framework's strategies."""

import io
import os
import runpy
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

import torch
from support.processes import server
from torch import nn

from mtl.engine.engine import Engine
from mtl.engine.precision import Precision
from mtl.model import MultiTaskModel
from mtl.rules import UPGrad
from mtl.strategies import Balanced, Naive
from mtl.tasks import Task
from mtl.weightings import Equal

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name, folder, look):
    """Run ``examples/<name>.py`` in a process of its own: its output, and ``look(its globals)``."""
    with ProcessPoolExecutor(1, server()) as pool:
        return pool.submit(_run, name, str(folder), look).result(timeout=300)


def _run(name, folder, look):
    os.chdir(folder)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    sys.argv = [str(EXAMPLES / f"{name}.py")]
    printed = io.StringIO()
    with redirect_stdout(printed):
        scope = runpy.run_path(sys.argv[0], run_name="__main__")
    return printed.getvalue(), look(scope)


def parameters(module):
    """All of them, as one vector."""
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def own_parameters(batches, balanced=True, **options):
    """Those of the scripts' ``TwoHeads`` after batches ``(x, kind, size)``, as ``own_run`` trains it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(batches[0][0].dtype)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        trunk, kind, size = nn.Sequential(nn.Linear(16, 32), nn.Tanh()), nn.Linear(32, 2), nn.Linear(32, 1)
    torch.set_default_dtype(before)
    model = MultiTaskModel(trunk, {"kind": kind, "size": size})
    losses = {"kind": nn.CrossEntropyLoss(), "size": nn.MSELoss()}
    batches = [(x, {"kind": kind, "size": size}) for x, kind, size in batches]
    own_run(model, losses, batches, torch.optim.SGD(model.parameters(), 0.1), balanced, **options)
    return parameters(model)


def own_run(model, losses, batches, optimizer, balanced=True, dtype=None, accumulate=1, max_norm=None):
    """Train by ``Balanced``, or by ``Naive``, with an optimizer step every ``accumulate`` batches."""
    tasks = [Task(name, loss) for name, loss in losses.items()]
    strategy = Balanced(Equal(), UPGrad(), list(losses), scale="tasks") if balanced else Naive(Equal())
    engine = Engine(model, tasks, Precision(dtype))
    for number, (inputs, targets) in enumerate(batches, 1):
        strategy.run(engine, inputs, targets)
        if number % accumulate == 0:
            for parameter in model.parameters():
                parameter.grad.div_(accumulate)
            if max_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            optimizer.zero_grad()
