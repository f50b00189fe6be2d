from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl.engine.heads import Heads
from mtl.engine.result import AuditResult
from mtl.engine.step import Step
from mtl.gradients.cut import Cut, Direction
from mtl.gradients.rows import Rows
from mtl.gradients.spaces import FeatureSpace, ParameterSpace
from mtl.model import graph_tensors
from mtl.rules.call import RuleCall
from mtl.rules.solvers import SolverError
from mtl.strategies.base import Strategy
from mtl.weightings import Weighting

log = logging.getLogger(__name__)


class Balanced(Strategy):
    """Heads one at a time as in Detached; a rule turns the Gram matrix of the task gradients into one weight a task.

    The trunk gets the direction ``scale * sum_i w_i g_i``, g_i the gradient of task i (its row). ``rule`` is any module
    ``gram [K, K] -> weights [K]``, or one of mtl.rules that needs the rows themselves.

    - ``space``: where the rows are compared. ``features``: flattened over the batch (MGDA-UB of Sener & Koltun 2018);
      one trunk backward. ``features_sum``: summed over the batch first. ``parameters``: each row pushed through the
      trunk, K trunk backwards and K copies of the trunk's gradient. There the rows, and the direction, are over the
      parameters that several heads hold as well.
    - ``part``: with ``space=parameters``, submodules of the backbone, or patterns of its parameters' names, as
      ``model.layer4`` or ``blocks.1*``. The rows are over these parameters alone: K backwards through the part and what
      is above it, and one of the weighted sum through the whole trunk.
    - ``every``: batches between two runs of the rule; its last weights stay in between.
    - ``smoothing``: the share of the last weights in the rule's new ones, see RuleCall.
    - ``scale``: the factor that puts the rule's weights on the scale where weights of one give the gradient of the sum
      of the losses; ``tasks`` is the number of tasks in the batch.
    - ``head_scale``: ``unit``, a head gets the gradient of its own weighted loss, or ``weights``, that times the rule's
      weight. Published codes differ in it.
    - ``on_solver_failure``: ``raise``, or ``skip``: the trunk stays where it is in that step, which is counted in
      ``skipped``.
    - ``token_chunks``: chunks of the positions that a head runs on in turn, as in Detached.
    """

    def __init__(
        self,
        weighting: Weighting,
        rule: nn.Module,
        tasks: Sequence[str],
        space: str = "features",
        part: str | Sequence[str] | None = None,
        every: int = 1,
        smoothing: float = 0.0,
        scale: float | str = 1.0,
        head_scale: str = "unit",
        on_solver_failure: str = "raise",
        token_chunks: int = 1,
    ) -> None:
        _check_choice("space", space, ("features", "features_sum", "parameters"))
        super().__init__(weighting, space if part is None else "part", token_chunks)
        _check_choice("head_scale", head_scale, ("unit", "weights"))
        _check_choice("on_solver_failure", on_solver_failure, ("raise", "skip"))
        if getattr(rule, "needs_rows", False) and (space == "features_sum" or every != 1):
            raise ValueError(
                f"{type(rule).__name__} works on the rows themselves: it needs space=features or parameters, and "
                f"every=1, not space={space} and every={every}."
            )
        if part is not None and (space != "parameters" or getattr(rule, "needs_rows", False)):
            raise ValueError(
                f"part={part} needs space=parameters and a rule on the Gram matrix, not space={space} and "
                f"{type(rule).__name__}."
            )
        self.part = [part] if isinstance(part, str) else list(part or ())
        self.rule, self.call, self.head_scale = rule, RuleCall(rule, tasks, every, scale, smoothing), head_scale
        self._skips, self.skipped = on_solver_failure == "skip", 0
        self._rows = Rows()

    @property
    def steps(self) -> int:
        """The batches so far."""
        return self.call.steps

    def get_extra_state(self) -> dict[str, Any]:
        """The steps, the skipped ones, and each task's last weight."""
        call, numbers = self.call, {"steps": self.steps, "skipped": self.skipped}
        return numbers | {"solved": list(call.solved), "last_weights": dict(call.last_weights)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from another run's; ValueError if it had other tasks."""
        call = self.call
        if list(state["last_weights"]) != call.tasks:
            saved = ", ".join(state["last_weights"])
            raise ValueError(f"The strategy was saved with the tasks {saved}; it has {', '.join(call.tasks)}.")
        call.steps, self.skipped = state["steps"], state["skipped"]
        call.solved, call.last_weights = list(state["solved"]), dict(state["last_weights"])

    def backward(self, step: Step) -> None:
        """As Detached, with the task gradients kept apart until a rule has weighed them."""
        due = self.call.is_due(step.names)
        # Parameter-space rows are already reduced over ranks, backward gradients are not: a step must not mix them.
        reduced = step.is_partial or (step.engine.reducer.is_distributed and step.weighed_by_rule)
        by_rows = due or step.task_weights.deferred or (self.space == "parameters" and reduced)
        last = self.call.by_task(step.names, self.call.last(step.names))
        keep = by_rows or step.keeps_rows
        cut = step.cut(self._rows if keep else None)  # the buffers of the rows are kept from step to step
        heads = Heads(step, cut, hold=self.head_scale == "weights", factors=None if by_rows else last)
        for head in heads:
            head.backward()  # the row g_i = dL_i / dz is collected on the cut
        losses = heads.losses()  # of the whole batch
        if not by_rows:
            self._between(step, cut, heads, last)
            return
        rows = step.compare(cut)
        step.gram = rows.gram()  # K x K, over all ranks
        weights, direction = self._solve(rows, step, losses) if due else self._reuse(rows, step)
        step.rule_weights = self.call.by_task(step.names, weights)
        heads.release(self._for_heads(step.rule_weights))
        rows.send(direction)  # ONE backward of the trunk, or none where the rows have been pushed through it
        if step.audited and direction is not None:
            step.audit = self._complete(step, cut, losses)

    def _between(self, step: Step, cut: Cut, heads: Heads, last: dict[str, float]) -> None:
        """Between two runs of the rule: the gradients were multiplied by its last weights as they came.

        The rows, where the step is measured, are looked at and not sent: measuring changes no bit of the training.
        """
        step.rule_weights = last
        heads.release(self._for_heads(last))
        if step.measured:
            step.gram = step.compare(cut, keep_graph=True).gram()
        cut.backward(weights=torch.tensor(list(last.values()), dtype=torch.float64))
        if step.audited:
            step.audit = self._complete(step, cut, heads.losses())

    def _solve(
        self, rows: FeatureSpace | ParameterSpace, step: Step, losses: Mapping[str, Tensor]
    ) -> tuple[Tensor, Direction | None]:
        """The rule's weights and its direction; None where it fails and the trunk skips the step."""
        assert step.gram is not None
        try:
            if self.call.needs_rows:
                return self._combine(rows, step, losses)
            weights = self.call.solve(step.gram, step.names, losses)
        except SolverError as error:
            if not self._skips:
                raise
            self.skipped += 1
            log.warning("the rule found no weights and the trunk skips a step (%d so far): %s", self.skipped, error)
            return torch.zeros(len(step.names), dtype=torch.float64), None
        return weights, rows.combine(self.call.scale_for(step.names) * weights)

    def _combine(
        self, rows: FeatureSpace | ParameterSpace, step: Step, losses: Mapping[str, Tensor]
    ) -> tuple[Tensor, Direction]:
        """The weights to log and the direction of a rule on rows."""
        assert step.gram is not None
        offsets = None
        if self.call.takes_offsets and isinstance(rows, FeatureSpace):
            samples, rank = step.batch.samples, step.engine.reducer.rank
            offsets = rows.rows.offsets_in_batch(sum(samples[:rank]), sum(samples))
        blocks, weights = self.call.combine(rows.rows.blocks(), step.gram, step.names, losses, offsets)
        return rows.mean_weights(weights, step.gram), rows.unflatten(blocks)

    def _reuse(self, rows: FeatureSpace | ParameterSpace, step: Step) -> tuple[Tensor, Direction]:
        weights = self.call.last(step.names)
        return weights, rows.combine(self.call.scale_for(step.names) * weights)

    def _complete(self, step: Step, cut: Cut, losses: Mapping[str, Tensor]) -> AuditResult | None:
        """The audit with what the rule makes of either matrix; in parameter space the step itself is the audit."""
        audit = step.audit
        if self.space == "parameters":
            audit = AuditResult(step.names, FeatureSpace(cut, (), step.engine.reducer.all_reduce).gram(), step.gram)
        if audit is None or len(audit.tasks) < len(step.names) or self.call.needs_rows:
            return audit
        assert audit.features is not None and audit.parameters is not None
        try:
            here, there = (
                self._trial_weights(gram, audit.tasks, losses) for gram in (audit.features, audit.parameters)
            )
        except SolverError:
            return audit
        audit.weights = here, there
        return audit

    def _for_heads(self, weights: dict[str, float]) -> dict[str, float] | None:
        return weights if self.head_scale == "weights" else None

    def _trial_weights(self, gram: Tensor, names: Sequence[str], losses: Mapping[str, Tensor]) -> Tensor:
        """The weights from a copy of the rule, which learns nothing from it."""
        copied = copy.deepcopy(self.rule, graph_tensors(self.rule))
        return RuleCall(copied, self.call.tasks).weights(gram, names, losses)


def _check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name}={value} must be one of {', '.join(accepted)}.")
