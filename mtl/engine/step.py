"""One batch on its way through a strategy: everything that a strategy must not see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor

from mtl.engine.audit import Audit
from mtl.engine.engine import Engine
from mtl.engine.head_reduction import HeadReduction
from mtl.engine.result import AuditResult, StepResult
from mtl.engine.shares import label_shares
from mtl.engine.weighting import TaskWeights, times
from mtl.gradients.cut import Cut, Tap
from mtl.gradients.rows import Rows
from mtl.gradients.spaces import SPACES, FeatureSpace, ParameterSpace
from mtl.tasks import Task
from mtl.weightings import Weighting


class Settings(Protocol):
    """The settings of a strategy that a step goes by; see Strategy."""

    weighting: Weighting
    space: str
    part: Sequence[str]
    token_chunks: int
    audit: Audit


class Step:
    """The state of one step; it dies with it.

    ``tasks``: those with a label anywhere in the batch, in their order, ``names`` theirs. A strategy may set ``gram``,
    ``audit`` and ``rule_weights``, by which its rule multiplied each task's gradient, and ``group_weights``, the same
    by group of the parameters.
    """

    def __init__(
        self, engine: Engine, strategy: Settings, inputs: Any, targets: Mapping[str, Any], measure: bool, audit: bool
    ) -> None:
        self.engine, self.strategy, self.inputs, self.targets = engine, strategy, inputs, targets
        self.batch = label_shares(engine.tasks, inputs, targets, engine.reducer)
        self.tasks, self.shares, self.names = self.batch.tasks, self.batch.shares, list(self.batch.shares)
        self.token_chunks = strategy.token_chunks
        self.audited = audit
        self.measured = measure or audit or strategy.weighting.needs_gram
        self.task_weights = TaskWeights(strategy.weighting, engine.precision.scale, engine.reducer.is_distributed)
        self.losses: dict[str, Tensor] = {}  # of the whole batch
        self.weights: dict[str, Tensor] = {}  # by the weighting
        self.rule_weights: dict[str, float] = {}
        self.group_weights: dict[str, dict[str, float]] = {}
        self.penalties: dict[str, Tensor] = {}  # this rank's parts
        self.gram: Tensor | None = None
        self.audit: AuditResult | None = None
        self.reduction: HeadReduction | None = None
        # The heads' parameters that get the rule's direction, as the backbone's: those that several heads hold.
        self.weighed_by_rule = engine.trained_common_parameters() if strategy.space == "parameters" else []

    @property
    def keeps_rows(self) -> bool:
        """Whether the tasks' gradients are needed one by one, whatever the strategy does with them."""
        return self.measured or self.task_weights.deferred

    @property
    def is_partial(self) -> bool:
        """Whether it is one of several batches of an optimizer step whose gradients are summed over ranks together."""
        engine = self.engine
        return engine.reducer.is_distributed and (bool(engine.unreduced) or not engine.reduces)

    def cut(self, rows: Rows | None = None, compact: bool = True) -> Cut:
        """The features of the batch, cut; with buffers for the tasks' gradients if they are needed, or given.

        ``compact``: see Rows.start; not for a rule that works on the rows. Nor where they are weighed themselves.
        """
        if rows is None and self.keeps_rows:
            rows = Rows()
        engine = self.engine
        parameters = engine.trained_common_parameters() if self.audited else self.weighed_by_rule
        cut = Cut(engine.features(self.inputs), rows, engine.precision.scale, engine.reducer.is_distributed, parameters)
        return self._prepared(cut, compact and not self.task_weights.deferred)

    def tap(self) -> Tap:
        """The features of the batch, in the graph."""
        rows, engine = Rows() if self.measured else None, self.engine
        parameters = engine.trained_common_parameters() if self.audited else ()
        tap = Tap(engine.features(self.inputs), rows, engine.precision.scale, engine.reducer.is_distributed, parameters)
        return self._prepared(tap, compact=True)

    def loss(self, task: Task, tap: Tap) -> Tensor | None:
        """This rank's part of a task's loss, its graph alive; None where the rank has no label and nobody waits."""
        share = self.shares[task.name]
        if share:
            loss: Tensor | None = times(self.engine.loss(task, tap.features, self.targets[task.name]), share)
        else:
            loss = self.engine.zero_head_loss(task, tap.features)
        if (penalty := self.penalty(task.name)) is not None:
            tap.penalties.append(penalty)
        return loss

    def penalty(self, task: str) -> Tensor | None:
        """This rank's part of what a head's last forward pass is penalised for; None without a penalty."""
        penalty = self.engine.penalty(task)
        if penalty is None:
            return None
        part = times(penalty, self.batch.sample_share)
        self.penalties[task] = part.detach()
        return part

    def weigh(self, parts: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """The factor of each task's loss: its weight, from the losses of the whole batch, times the loss scale."""
        zero = self.engine.zero_loss()
        # Copies: a loss's storage may be as large as what it is the mean of, and would live as long as the result.
        own = {n: zero if part is None else part.detach().to(zero, copy=True) for n, part in parts.items()}
        self.losses = self.engine.reducer.sum_losses(own)
        self.weights = self.task_weights.deferred_weights(self.losses)
        return {name: weight * self.engine.precision.scale for name, weight in self.weights.items()}

    def compare(self, cut: Cut | Tap, keep_graph: bool = False) -> FeatureSpace | ParameterSpace:
        """The tasks' gradients in the strategy's space; ``keep_graph``: the trunk's backward is still to come."""
        engine = self.engine
        parameters = {
            "parameters": engine.trained_shared_parameters,
            "part": lambda: engine.trained_shared_parameters_of(self.strategy.part),
        }.get(self.strategy.space, list)()
        return SPACES[self.strategy.space](cut, parameters, engine.reducer.all_reduce, keep_graph)

    def measure_conflict(self, cut: Cut | Tap) -> None:
        """The Gram matrix of the tasks' gradients, in a step that was asked for it."""
        if self.measured:
            self.gram = self.compare(cut).gram()

    def flush(self) -> None:
        """A batch without a label on any rank: sum the gradients of earlier batches of the optimizer step."""
        engine = self.engine
        left = engine.reducer.is_distributed and engine.unreduced and engine.reduces
        if left and self.strategy.space != "parameters":  # whose gradients are summed already
            Cut(engine.features(self.inputs), whole_trunk=True).backward_zeros()

    def finish(self) -> StepResult:
        """Wait for the sums over the ranks, and let the weighting learn."""
        if self.reduction is None:
            self.reduction = HeadReduction(self.engine, self.tasks, {}, self.weighed_by_rule)
        losses = self.reduction.wait() or self.losses
        if losses:
            self.task_weights.backward_parameters(losses)
        self.strategy.weighting.observe(losses, self.gram)
        own = {} if self.gram is None else {name: (losses[name], self.weights[name]) for name in self.names}
        weights = self.weights
        if self.rule_weights:
            weights = {name: weight * self.rule_weights[name] for name, weight in weights.items()}
        space = None if self.gram is None else self.strategy.space
        return StepResult(
            losses, weights, self.gram, space, self.audit, penalties=self.penalties, own=own,
            group_weights=self.group_weights,
        )  # fmt: skip

    def _prepared(self, cut: Any, compact: bool) -> Any:
        if cut.rows is not None:
            cut.rows.start(len(self.names), cut.leaves, compact and self.engine.precision.scale == 1)
        if self.audited and cut.rows is not None:
            cut.around_trunk = lambda weights: self._audit(cut, weights)
        return cut

    @contextmanager
    def _audit(self, cut: Cut | Tap, weights: Tensor | None) -> Iterator[None]:
        with self.strategy.audit.around(self.engine, cut, self.names, weights) as self.audit:
            yield
