from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mtl.engine.audit import Audit
from mtl.engine.engine import Engine
from mtl.engine.look import Batch
from mtl.engine.result import StepResult
from mtl.engine.step import Step
from mtl.model import MultiTaskModel
from mtl.tasks import Task
from mtl.weightings import Equal, Weighting


class Strategy(nn.Module):
    """Who calls backward on what: a subclass says it in ``backward(step)``.

    ``space``: where the task gradients are measured, ``features``, or summed over the batch, ``features_sum``.
    ``token_chunks``: of the positions, on which a head runs one after the other.

    ``draws``: the independent batches that a step takes. With more than one, ``look`` is shown them all before the step
    runs on the last one.
    """

    draws = 1
    runs_every_head = True  # also a head whose labels are all on other ranks, which may wait for its collectives

    def __init__(self, weighting: Weighting, space: str = "features", token_chunks: int = 1) -> None:
        super().__init__()
        if token_chunks < 1:
            raise ValueError(f"token_chunks={token_chunks} must be 1 or more.")
        self.weighting, self.space, self.token_chunks = weighting, space, token_chunks
        self.part: Sequence[str] = ()
        self.looked = False  # at the batches of the step to come
        self.audit = Audit("features_sum" if space == "features_sum" else "features")

    def bind(self, model: MultiTaskModel) -> None:
        """Look at the model before the first step; ValueError where it does not fit."""

    def step(
        self,
        model: MultiTaskModel,
        tasks: Sequence[Task],
        inputs: Any,
        targets: Mapping[str, Any],
        measure: bool = False,
        audit: bool = False,
    ) -> StepResult:
        """Leave the gradients of one batch in ``.grad``, added to what was there.

        ``measure``: the result has the Gram matrix of the task gradients. ``audit``: and the check of feature space
        against parameter space. Neither changes the gradients.
        """
        return self.run(Engine(model, tasks), inputs, targets, measure, audit)

    def run(
        self, engine: Engine, inputs: Any, targets: Mapping[str, Any], measure: bool = False, audit: bool = False
    ) -> StepResult:
        """The same in a run, whose engine knows precision, ranks and the wrapped trunk."""
        if self.draws > 1 and not self.looked:
            raise ValueError(
                f"{type(self).__name__} takes {self.draws} batches a step: call look(engine, batches, lr) before."
            )
        self.looked = False
        step = Step(engine, self, inputs, targets, measure, audit)
        if step.tasks:
            self.backward(step)
        else:
            step.flush()
        return step.finish()

    def look(self, engine: Engine, batches: Sequence[Batch], lr: float) -> None:
        """Learn from the ``draws`` batches of a step, of which the last is the one that trains.

        ``lr``: the optimizer's learning rate, of the backbone; of several groups there, as by layers, the highest.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what it learns from {self.draws} batches.")

    def backward(self, step: Step) -> None:
        """One step, for the tasks that have a label in the batch."""
        raise NotImplementedError(f"{type(self).__name__} must say who calls backward on what.")


def require_equal(name: str, weighting: Weighting) -> None:
    """ValueError for a strategy that finds the weights of the losses itself, with a weighting."""
    if not isinstance(weighting, Equal):
        raise ValueError(
            f"{name} finds the tasks' weights itself: it needs weighting=equal, not {type(weighting).__name__}."
        )
