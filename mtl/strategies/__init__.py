"""Gradient strategies: who calls backward on what.

A strategy is a module with ``step(model, tasks, inputs, targets, measure=False) -> StepResult``. After it,
every parameter's ``.grad`` holds, added to what was there, what the optimizer should see. With ``measure``
the result has the tasks' Gram matrix in it; measuring never changes the gradients.
"""

from mtl.strategies.detached import Detached
from mtl.strategies.naive import Naive
from mtl.strategies.result import StepResult

__all__ = ["Detached", "Naive", "StepResult"]
