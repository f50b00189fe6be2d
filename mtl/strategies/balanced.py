from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtl.engine.heads import Heads
from mtl.engine.result import AuditResult
from mtl.engine.step import Step
from mtl.gradients.cut import Cut, Direction
from mtl.gradients.rows import Rows
from mtl.gradients.spaces import FeatureSpace, ParameterSpace
from mtl.model import MultiTaskModel, graph_tensors
from mtl.rules.call import RuleCall
from mtl.rules.solvers import SolverError
from mtl.strategies.base import Strategy
from mtl.strategies.groups import Groups
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
    - ``groups``: with ``space=parameters``, a rule of its own for each ``layer`` or ``block`` of the trunk, or for each
      of some patterns as those of ``part``; see Groups. The direction is put together of theirs. A task's weight in
      the result is then the mean over the groups, by their shares of its gradient's square.
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

    rotates: ClassVar[bool] = False  # whether it turns the heads' features by what the rows and the direction are

    def __init__(
        self,
        weighting: Weighting,
        rule: nn.Module,
        tasks: Sequence[str],
        space: str = "features",
        part: str | Sequence[str] | None = None,
        groups: str | Sequence[str] | None = None,
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
        if groups is not None:
            _check_groups(groups, space, part, head_scale)
        self.part = [part] if isinstance(part, str) else list(part or ())
        new_call = partial(RuleCall, tasks=tasks, every=every, scale=scale, smoothing=smoothing)
        self.rule, self.call, self.head_scale = rule, new_call(rule), head_scale
        self.groups = None if groups is None else Groups(groups, rule, new_call)
        self._skips, self.skipped = on_solver_failure == "skip", 0
        self._rows = Rows()

    def bind(self, model: MultiTaskModel) -> None:
        """Find the groups of its parameters."""
        if self.groups is not None:
            self.groups.bind(model)
            names = list(self.groups.calls)
            log.info("strategy.groups: a rule of its own for each of %d groups: %s", len(names), ", ".join(names))

    @property
    def steps(self) -> int:
        """The batches so far."""
        return self.call.steps

    def get_extra_state(self) -> dict[str, Any]:
        """The steps, the skipped ones, and each task's last weight."""
        return {"skipped": self.skipped, **self.call.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from another run's; ValueError if it had other tasks."""
        self.call.load_state_dict(state)
        self.skipped = state["skipped"]

    def backward(self, step: Step) -> None:
        """As Detached, with the task gradients kept apart until a rule has weighed them."""
        due = self.call.is_due(step.names)
        # Parameter-space rows are already reduced over ranks, backward gradients are not: a step must not mix them.
        reduced = step.is_partial or (step.engine.reducer.is_distributed and step.weighed_by_rule)
        by_rows = due or step.task_weights.deferred or (self.space == "parameters" and reduced)
        by_rows = by_rows or self.groups is not None
        last = self.call.by_task(step.names, self.call.last(step.names))
        keep = by_rows or step.keeps_rows
        # The buffers of the rows are kept from step to step; wide where more is made of them than their sum.
        cut = step.cut(self._rows if keep else None, compact=not (self.call.needs_rows or self.rotates))
        heads = Heads(step, cut, hold=self.head_scale == "weights", factors=None if by_rows else last)
        for head in heads:
            head.backward()  # the row g_i = dL_i / dz is collected on the cut
        losses = heads.losses()  # of the whole batch
        if not by_rows:
            self._between(step, cut, heads, last)
            return
        rows = step.compare(cut)
        step.rule_weights, direction = self._weigh(rows, step, losses, due)
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

    def _weigh(
        self, rows: FeatureSpace | ParameterSpace, step: Step, losses: Mapping[str, Tensor], due: bool
    ) -> tuple[dict[str, float], Direction | None]:
        """What each task's gradient is multiplied by, and the direction; None where the trunk skips the step."""
        try:
            if self.groups is not None:
                return self._solve_groups(rows, step, losses)
            step.gram = rows.gram()  # K x K, over all ranks
            weights, direction = self._solve(rows, step, losses) if due else self._reuse(rows, step)
        except SolverError as error:
            if not self._skips:
                raise
            self.skipped += 1
            log.warning("the rule found no weights and the trunk skips a step (%d so far): %s", self.skipped, error)
            return dict.fromkeys(step.names, 0.0), None
        return self.call.by_task(step.names, weights), direction

    def _solve(
        self, rows: FeatureSpace | ParameterSpace, step: Step, losses: Mapping[str, Tensor]
    ) -> tuple[Tensor, Direction]:
        """The rule's weights and its direction."""
        assert step.gram is not None
        if self.call.needs_rows:
            return self._combine(rows, step, losses)
        weights = self.call.solve(step.gram, step.names, losses)
        return weights, rows.combine(self.call.scale_for(step.names) * weights)

    def _solve_groups(
        self, rows: FeatureSpace | ParameterSpace, step: Step, losses: Mapping[str, Tensor]
    ) -> tuple[dict[str, float], Direction]:
        """The mean of the groups' weights, and the direction that is put together of theirs."""
        assert self.groups is not None and isinstance(rows, ParameterSpace)
        parts = self.groups.parts(rows, step.engine.model)
        step.gram = torch.stack([part.gram for part in parts]).sum(0)  # of all the parameters
        weights, direction, step.group_weights = self.groups.solve(parts, step.names, losses)
        return weights, direction

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
        if audit is None or len(audit.tasks) < len(step.names) or self.call.needs_rows or self.groups is not None:
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


def _check_groups(groups: object, space: str, part: object, head_scale: str) -> None:
    """ValueError for what does not go with groups of parameters."""
    if space != "parameters":
        raise ValueError(
            f"groups={groups} needs space=parameters, not space={space}, which has no parameters to group."
        )
    if part is not None:
        raise ValueError(f"groups={groups} cannot go with part={part}: leave one out.")
    if head_scale != "unit":
        raise ValueError(
            f"groups={groups} needs head_scale=unit, not head_scale={head_scale}: a head is in no group, and has no "
            "weights of one."
        )


def _check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name}={value} must be one of {', '.join(accepted)}.")
