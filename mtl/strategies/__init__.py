"""Gradient strategies: who calls backward on what.

A strategy is a module with ``step(model, tasks, inputs, targets, measure=False, audit=False) -> StepResult``, which
leaves the gradients that the optimizer should see in ``.grad``, added to what was there.
"""

from mtl.engine.result import AuditResult, StepResult
from mtl.strategies.auto_lambda import AutoLambda
from mtl.strategies.balanced import Balanced
from mtl.strategies.base import Strategy
from mtl.strategies.detached import Detached
from mtl.strategies.modo import MoDo
from mtl.strategies.naive import Naive
from mtl.strategies.pareto_manifold import ParetoManifold
from mtl.strategies.rotograd import RotoGrad

__all__ = [
    "AuditResult", "AutoLambda", "Balanced", "Detached", "MoDo", "Naive", "ParetoManifold", "RotoGrad", "StepResult",
    "Strategy",
]  # fmt: skip
