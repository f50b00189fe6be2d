"""Gradient strategies: who calls backward on what.

A strategy is a module with ``step(model, tasks, inputs, targets, measure=False, audit=False) -> StepResult``. After
it, every parameter's ``.grad`` holds, added to what was there, what the optimizer should see. With ``measure`` the
result has the tasks' Gram matrix in it, with ``audit`` the check of feature space against parameter space as well;
neither changes the gradients.
"""

from mtl.engine.result import AuditResult, StepResult
from mtl.strategies.balanced import Balanced
from mtl.strategies.detached import Detached
from mtl.strategies.naive import Naive

__all__ = ["AuditResult", "Balanced", "Detached", "Naive", "StepResult"]
