from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtl.distributed.collectives import all_reduce, is_distributed
from mtl.engine.chunks import check_chunks
from mtl.engine.heads import run_heads
from mtl.engine.result import AuditResult, StepResult
from mtl.engine.shares import LabelShares, label_shares
from mtl.engine.weighting import DeferredGradients, Weights
from mtl.gradients.cut import Cut, trunk_vjp
from mtl.gradients.rows import ParameterRows, Rows
from mtl.model import MultiTaskModel
from mtl.rules.solvers import SolverError
from mtl.strategies.audit import Audit
from mtl.tasks import Task
from mtl.weightings import Weighting

log = logging.getLogger(__name__)

SPACES = ("features", "features_sum", "parameters")


class Balanced(nn.Module):
    """Heads one at a time as in Detached; a rule turns the Gram matrix of their rows into one weight a task.

    The trunk gets the direction ``scale * sum_i w_i g_i``. ``rule`` is any module ``gram [K, K] -> weights [K]``, or
    one of mtl.rules that needs the rows themselves.

    - ``space``: where the rows are compared. ``features``: flattened over the batch (Sener & Koltun 2018, MGDA-UB);
      one trunk backward. ``features_sum``: summed over the batch first. ``parameters``: each row pushed through the
      trunk, K trunk backwards and K copies of the trunk's gradient.
    - ``every``: the rule runs every so many batches; the steps between are plain detached ones with the last weights.
    - ``scale``: what puts the rule's weights on the scale where weights of one give the gradient of the sum of the
      losses; ``tasks`` is the number of tasks in the batch.
    - ``head_scale``: ``unit``, a head gets the gradient of its own scaled loss, or ``weights``, that times the rule's
      weight. Published codes differ in it.
    - ``on_solver_failure``: ``raise``, or ``skip``: the trunk stays where it is in that step, which is counted in
      ``skipped``.
    - ``token_chunks``: slices of the positions that a head runs on in turn, as in Detached.
    """

    def __init__(
        self,
        weighting: Weighting,
        rule: nn.Module,
        tasks: Sequence[str],
        space: str = "features",
        every: int = 1,
        scale: float | str = 1.0,
        head_scale: str = "unit",
        on_solver_failure: str = "raise",
        token_chunks: int = 1,
    ) -> None:
        super().__init__()
        check_chunks(token_chunks)
        _check_choice("space", space, SPACES)
        _check_choice("head_scale", head_scale, ("unit", "weights"))
        _check_choice("on_solver_failure", on_solver_failure, ("raise", "skip"))
        if every < 1:
            raise ValueError(f"every={every} must be 1 or more.")
        if isinstance(scale, str) and scale != "tasks":
            raise ValueError(f"scale={scale} must be a number or tasks.")
        self._needs_rows = getattr(rule, "needs_rows", False)
        if self._needs_rows and (space == "features_sum" or every != 1):
            raise ValueError(
                f"{type(rule).__name__} works on the rows themselves: it needs space=features or parameters, and "
                f"every=1, not space={space} and every={every}."
            )
        self.weighting = weighting
        self.rule: Any = rule
        called: Any = self.rule.combine if self._needs_rows else self.rule.forward
        # What it takes beside the matrix or the rows; other libraries' rules take nothing.
        self._also_taken = set(inspect.signature(called).parameters)
        self.space, self.every, self.scale, self.head_scale = space, every, scale, head_scale
        self._skips, self.token_chunks = on_solver_failure == "skip", token_chunks
        self._tasks = list(tasks)
        self._audit = Audit("features_sum" if space == "features_sum" else "features")
        self._rows = Rows()
        # Numbers that every step reads: no buffers, which would follow the model to its device.
        self.steps, self.skipped = 0, 0
        self.solved: list[str] = []  # the tasks that the last weights were found for
        self.last_weights = dict.fromkeys(tasks, 1.0)

    def get_extra_state(self) -> dict[str, Any]:
        """The steps, the skipped ones, and each task's last weight."""
        numbers = {"steps": self.steps, "skipped": self.skipped}
        return numbers | {"solved": list(self.solved), "last_weights": dict(self.last_weights)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from another run's; ValueError if it had other tasks."""
        if list(state["last_weights"]) != self._tasks:
            saved = ", ".join(state["last_weights"])
            raise ValueError(f"The strategy was saved with the tasks {saved}; it has {', '.join(self._tasks)}.")
        self.steps, self.skipped = state["steps"], state["skipped"]
        self.solved, self.last_weights = list(state["solved"]), dict(state["last_weights"])

    def step(
        self,
        model: MultiTaskModel,
        tasks: Sequence[Task],
        inputs: Any,
        targets: Mapping[str, Any],
        measure: bool = False,
        audit: bool = False,
    ) -> StepResult:
        """Leave the gradients of one batch in ``.grad``; see the package's docstring."""
        shard = label_shares(tasks, inputs, targets)
        if not shard.tasks:
            self._send_what_is_left(model, shard, inputs)
            self.weighting.observe({}, None)
            return StepResult({}, {})
        names = list(shard.shares)
        weigh = Weights(self.weighting, shard, model.loss_scale)
        # Weights that were found for other tasks mean nothing: when one comes or goes, the rule runs anew.
        due = self.steps % self.every == 0 or names != self.solved
        self.steps += 1
        scale = float(len(names)) if self.scale == "tasks" else float(self.scale)
        keep = due or measure or audit or weigh.late or self.weighting.needs_gram
        # Over several processes rows at the parameters are whole and what is sent backward is not: no step mixes them.
        of_several = is_distributed() and (bool(model.unsent) or not model.synchronises)
        keep = keep or (self.space == "parameters" and of_several)
        rows = self._rows if keep else None
        cut = Cut(model.features(inputs), rows, model.loss_scale)
        if rows is not None:
            rows.start(len(names), cut.leaves)
        held = DeferredGradients(model, shard.tasks) if weigh.late or self.head_scale == "weights" else None
        known = {name: scale * weight for name, weight in zip(names, self._last(names).tolist(), strict=True)}
        losses, weights = run_heads(
            model, shard, targets, cut, weigh.now, held, None if keep else known, self.token_chunks
        )
        rows = cut.rows
        losses = shard.whole(losses)
        late = weigh.after(losses) if weigh.late else None
        if rows is not None and late is not None:
            weights = late
            rows.scale([weights[name] for name in names])

        found = self._balance(model, cut, rows, shard, losses, due, scale) if rows is not None else None
        rule_weights = self._last(names) if found is None else found.weights
        total = {name: scale * weight for name, weight in zip(names, rule_weights.tolist(), strict=True)}
        if held is not None:
            by_rule = total if self.head_scale == "weights" else dict.fromkeys(names, 1.0)
            held.release({name: by_rule[name] * (1.0 if late is None else late[name]) for name in names})
        sending = shard.send(model)
        check = self._send_into_trunk(model, cut, rows, names, losses, found, scale, audit)
        sending.wait()
        weigh.learn(losses)
        gram = None if found is None else found.gram
        self.weighting.observe(losses, gram)
        weights = {name: weight * total[name] for name, weight in weights.items()}
        return StepResult(losses, weights, gram, None if gram is None else self.space, check)

    def _send_what_is_left(self, model: MultiTaskModel, shard: LabelShares, inputs: Any) -> None:
        """Sum what the other batches of this step have left, though its last one has no label anywhere."""
        if model.unsent and model.synchronises:
            if self.space != "parameters":  # where it has been summed
                Cut(model.features(inputs)).backward()
            shard.send(model).wait()

    def _balance(
        self,
        model: MultiTaskModel,
        cut: Cut,
        rows: Rows,
        shard: LabelShares,
        losses: Mapping[str, Tensor],
        due: bool,
        scale: float,
    ) -> _Balance:
        """The Gram matrix, the rule's weights, and the direction that they give."""
        names = list(shard.shares)
        parameters = [p for p in model.shared_parameters() if p.requires_grad] if self.space == "parameters" else []
        compared: Rows | ParameterRows = rows
        if self.space == "parameters":
            compared = _push_all(rows, cut, parameters, model.loss_scale)
            gram = compared.gram()  # of rows that are whole already
        elif self.space == "features_sum":
            gram = rows.batch_summed_gram()
        else:
            gram = rows.gram()
        own = gram.diagonal().clone()
        if self.space == "features":
            gram = all_reduce(gram)
        try:
            if self._needs_rows:
                direction, weights = self._combine(compared, gram, shard, losses, scale)
                if is_distributed() and compared is rows:  # shares of each gradient: of the whole ones
                    weights = all_reduce(weights * own) / gram.diagonal().where(gram.diagonal() > 0, 1)
            else:
                weights = self._call_rule(self.rule, gram, names, losses) if due else self._last(names)
                self.last_weights |= zip(names, weights.tolist(), strict=True)
                self.solved = names
                direction = compared.combine(scale * weights)
        except SolverError as error:
            if not self._skips:
                raise
            self.skipped += 1
            log.warning("the rule found no weights and the trunk skips a step (%d so far): %s", self.skipped, error)
            return _Balance(gram, torch.zeros(len(names)).double(), None, parameters)
        return _Balance(gram, weights, direction, parameters)

    def _send_into_trunk(
        self,
        model: MultiTaskModel,
        cut: Cut,
        rows: Rows | None,
        names: list[str],
        losses: Mapping[str, Tensor],
        found: _Balance | None,
        scale: float,
        audit: bool,
    ) -> AuditResult | None:
        """Leave the trunk's gradient; the check of the spaces, where it was asked for."""
        if rows is None or found is None:  # a step between, its factors already applied
            cut.backward()
            return None
        check: AuditResult | None
        if found.direction is None:  # skipped
            if is_distributed() and self.space != "parameters":
                cut.backward([torch.zeros_like(z) for z in cut.trunk])
            return None
        if self.space == "parameters":
            for parameter, gradient in zip(found.parameters, found.direction, strict=True):
                gradient = gradient if model.loss_scale == 1 else gradient.mul_(model.loss_scale)
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
            check = AuditResult(names, all_reduce(rows.gram()), found.gram) if audit else None
        else:
            # The direction of a rule on rows is no weighted sum of them, so that no row follows from the others.
            c = None if self._needs_rows else scale * found.weights
            with self._audit.around(model, cut.trunk, rows if audit else None, names, c) as check:
                cut.backward(found.direction)
        if check is not None and len(check.tasks) == len(names) and not self._needs_rows:
            check.weights = self._hypothetical(check, losses)
        return check

    def _combine(
        self,
        rows: Rows | ParameterRows,
        gram: Tensor,
        shard: LabelShares,
        losses: Mapping[str, Tensor],
        scale: float,
    ) -> tuple[list[Tensor], Tensor]:
        context = self._context(list(shard.shares), losses)
        if "places" in self._also_taken and isinstance(rows, Rows):
            context["places"] = shard.places(rows)
        blocks, weights = self.rule.combine(rows.blocks(), gram, **context)
        return rows.shaped([scale * block for block in blocks]), weights.double().cpu()

    def _call_rule(self, rule: nn.Module, gram: Tensor, names: list[str], losses: Mapping[str, Tensor]) -> Tensor:
        weights = rule(gram, **self._context(names, losses)).detach().double().cpu()
        # A matrix that is not finite gives such weights, so that the gradient shows it, as in plain training.
        if torch.isfinite(gram).all() and not torch.isfinite(weights).all():
            raise SolverError(f"{type(rule).__name__} gave weights that are not finite: {weights.tolist()}.")
        return weights

    def _context(self, names: list[str], losses: Mapping[str, Tensor]) -> dict[str, Any]:
        context: dict[str, Any] = {}
        if "losses" in self._also_taken:
            context["losses"] = torch.stack([losses[name] for name in names])
        if "present" in self._also_taken:
            context["present"] = [self._tasks.index(name) for name in names]
        return context

    def _hypothetical(self, found: AuditResult, losses: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """What the rule would make of either matrix, asked of copies that learn nothing from it."""
        assert found.features is not None and found.parameters is not None
        try:
            return (
                self._call_rule(copy.deepcopy(self.rule), found.features, found.tasks, losses),
                self._call_rule(copy.deepcopy(self.rule), found.parameters, found.tasks, losses),
            )
        except SolverError:
            return None

    def _last(self, names: Sequence[str]) -> Tensor:
        return torch.tensor([self.last_weights[name] for name in names], dtype=torch.float64)


class _Balance(NamedTuple):
    """What a rule made of the rows; ``direction`` is None where it failed and the step is skipped."""

    gram: Tensor
    weights: Tensor
    direction: list[Tensor] | None
    parameters: list[nn.Parameter]


def _push_all(rows: Rows, cut: Cut, parameters: Sequence[Tensor], loss_scale: float) -> ParameterRows:
    pushed = ParameterRows(parameters)
    for task in range(rows.count):
        last = task == rows.count - 1
        row = trunk_vjp(cut.trunk, rows.row(task), parameters, keep_graph=not last, loss_scale=loss_scale)
        pushed.append(row)
    pushed.sum_over_ranks()
    return pushed


def _check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name}={value} must be one of {', '.join(accepted)}.")
