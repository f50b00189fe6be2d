"""What a rule makes of the rows of a step: its weights and the direction; and what it would make of other matrices."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor

from mtl.engine.result import AuditResult
from mtl.engine.step import Step
from mtl.gradients.cut import Direction
from mtl.gradients.spaces import FeatureSpace, ParameterSpace
from mtl.model import graph_tensors
from mtl.rules.call import RuleCall
from mtl.rules.solvers import SolverError


def rule_direction(
    call: RuleCall, rows: FeatureSpace | ParameterSpace, step: Step, losses: Mapping[str, Tensor], due: bool
) -> tuple[Tensor, Direction]:
    """The rule's weights [K], the last ones where it is not ``due``, and its direction. The step has its Gram matrix.

    SolverError where the rule finds no weights.
    """
    assert step.gram is not None
    if due and call.needs_rows:
        return _of_rows(call, rows, step, losses)
    weights = call.solve(step.gram, step.names, losses) if due else call.last(step.names)
    return weights, rows.combine(call.scale_for(step.names) * weights)


def _of_rows(
    call: RuleCall, rows: FeatureSpace | ParameterSpace, step: Step, losses: Mapping[str, Tensor]
) -> tuple[Tensor, Direction]:
    """The weights to log and the direction of a rule on rows."""
    assert step.gram is not None
    offsets = None
    if call.takes_offsets and isinstance(rows, FeatureSpace):
        samples, rank = step.batch.samples, step.engine.reducer.rank
        offsets = rows.rows.offsets_in_batch(sum(samples[:rank]), sum(samples))
    blocks, weights = call.combine(rows.rows.blocks(), step.gram, step.names, losses, offsets)
    return rows.mean_weights(weights, step.gram), rows.unflatten(blocks)


def weights_in_both_spaces(
    call: RuleCall, audit: AuditResult, losses: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor] | None:
    """What the rule makes of either Gram matrix of an audit, by copies that learn nothing from it.

    None for a rule on rows, and where it finds no weights.
    """
    assert audit.features is not None and audit.parameters is not None
    if call.needs_rows:
        return None
    copies = (RuleCall(copy.deepcopy(call.rule, graph_tensors(call.rule)), call.tasks) for _ in range(2))
    try:
        here, there = (
            own.weights(gram, audit.tasks, losses)
            for own, gram in zip(copies, (audit.features, audit.parameters), strict=True)
        )
    except SolverError:
        return None
    return here, there
