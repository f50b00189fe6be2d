"""Balancing in anybody's model and training loop: a layer between the trunk and the heads."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mtl.conflict import conflict_metrics
from mtl.distributed.bounded import bounded_all_reduce
from mtl.distributed.collectives import get_rank, get_world_size, is_distributed
from mtl.distributed.sharding import is_sharded
from mtl.errors import require, suggestion
from mtl.gradients.rows import Rows
from mtl.rules import Sum
from mtl.rules.call import Offsets, RuleCall

log = logging.getLogger(__name__)

Gradients = Sequence[
    Tensor | None
]  # one task's, a tensor for each leaf of the features; None: it does not depend on it


class LossScaler(Protocol):
    """What scales the loss before its backward, as torch.amp.GradScaler does."""

    def get_scale(self) -> float:
        """The factor of all gradients."""


@dataclass(frozen=True)
class BalanceResult:
    """What one backward saw: the ``tasks`` that were present, in their order, and what became of their gradients.

    - ``weights``: what each task's gradient was multiplied by on its way into the trunk, the scale included.
    - ``gram``: the Gram matrix ``[K, K]`` of the present tasks' gradients, float64 on the CPU, over the batches of all
      ranks and without the loss scale; None between two runs of the rule.
    """

    tasks: list[str]
    weights: dict[str, float]
    gram: Tensor | None

    @cached_property
    def conflict(self) -> dict[str, float]:
        """The conflict metrics by a run's names, see :func:`mtl.conflict_metrics`; empty without a Gram matrix."""
        return {} if self.gram is None else conflict_metrics(self.gram, self.tasks)

    @property
    def metrics(self) -> dict[str, float]:
        """The conflict metrics and ``weight/<task>``: what a tracker logs."""
        return self.conflict | {f"weight/{task}": weight for task, weight in self.weights.items()}


class Balance(nn.Module):
    """A layer between the trunk and the heads: the identity forward, a rule's direction backward.

    Forward it hands the features on once for each task. Backward it gives the trunk ``scale * sum_i w_i g_i``, with g_i
    the gradient of task i at the features and w the weights of ``rule``. Heads get the gradient of their own loss. ::

        self.balance = mtl.Balance(mtl.rules.UPGrad(), tasks=["depth", "normals"])      # in __init__
        z = self.balance(self.trunk(x))                                                 # {"depth": z, "normals": z}
        loss = ce(self.depth(z["depth"]), y1) + l1(self.normals(z["normals"]), y2)
        loss.backward()                                                                 # anybody's backward

    ``features``: a tensor of any shape, or a nesting of tuples, lists and dicts. Their gradients are compared flattened
    over the batch, as MGDA-UB of Sener & Koltun 2018 (section 3.3). Leaves that require no gradient are handed on.

    - ``rule``: a module ``gram [K, K] -> weights [K]``, or one of :mod:`mtl.rules` that works on the rows; its state is
      part of the layer's ``state_dict``. None: the layer only measures, and the trunk gets the sum.
    - ``scale``: the factor that puts the rule's weights on the scale where weights of one give the gradient of the sum
      of the losses; ``tasks`` is the number of tasks that are present. conf/strategy has that of each rule's paper: the
      weights of MGDA, UPGrad and CAGrad, which are those of a mean, have ``tasks``.
    - ``every``: backward passes between two runs of the rule, whose last weights stay in between.
    - ``smoothing``: the share of the last weights in the rule's new ones, 0 to below 1 (CR-MOGM, Zhou et al. 2022).
    - ``loss_scale``: what all losses are multiplied by before the backward: a GradScaler, or a number, as 1 / N where N
      micro-batches are accumulated. The rule, ``last`` and ``log_to`` see the gradients without it. Only rules whose
      weights depend on the size of the gradients, as NashMTL's, care. It may be set later, as an attribute.

    **What is balanced together** is what one backward sends through one call of the layer: add the losses and call
    backward once. Several calls in one step, as of micro-batches, each have their own Gram matrix and weights, and
    ``last`` is of the last one. A task whose features are not used is absent: the rule is not asked for its weight. A
    loss that is multiplied by zero has a gradient of zero, which is another thing; so has an unused task whose head was
    compiled together with others.

    **Evaluation**, ``no_grad`` and a frozen trunk: the features are handed on as they are. In training the layer runs
    eagerly: torch.compile breaks its graph there.

    **Several ranks** must average gradients, as DistributedDataParallel and FSDP2 do: the Gram matrix is that of the
    mean of the ranks' losses. Every rank must come to the layer in every backward; RuntimeError names those that do not
    within ten minutes. A rule on rows must be elementwise.

    ValueError for options that do not fit together. In the backward: RuntimeError where it should be differentiated
    again (``create_graph=True``), SolverError where a rule fails.
    """

    def __init__(
        self,
        rule: nn.Module | None,
        tasks: Sequence[str],
        scale: float | str = 1.0,
        every: int = 1,
        loss_scale: LossScaler | float = 1.0,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        _check_tasks(tasks)
        _check_rule(rule, tasks, scale, every)
        _check_loss_scale(loss_scale)
        self.tasks = list(tasks)
        self.loss_scale: LossScaler | float | None = loss_scale
        # The rule is no submodule: DistributedDataParallel and FSDP would broadcast or move its buffers, which belong
        # to the CPU. get_extra_state has its state.
        self._call = RuleCall(Sum() if rule is None else rule, self.tasks, every, scale, smoothing)
        self._only_measures = rule is None
        self._rows = Rows()
        self._losses: dict[str, Tensor] = {}
        self._log: Callable[[dict[str, float]], Any] | None = None
        self._warned = False
        self.last: BalanceResult | None = None

    @property
    def rule(self) -> nn.Module | None:
        """The rule; None where the layer only measures."""
        return None if self._only_measures else self._call.rule

    def extra_repr(self) -> str:
        """The rule and the tasks, for print."""
        return f"{self.rule}, tasks={self.tasks}"

    def forward(self, features: Any) -> dict[str, Any]:
        """The features, once for each task; views of the same memory, which a head may not change in place."""
        if self.training:
            return self._split(features)
        return dict.fromkeys(self.tasks, features)

    @torch.compiler.disable
    def _split(self, features: Any) -> dict[str, Any]:
        leaves, structure = pytree.tree_flatten(features)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not tensors:
            raise ValueError(f"The features must be a tensor or a nesting of tensors, not {type(features).__name__}.")
        check_features(leaves)
        graph = torch.is_grad_enabled()
        where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and (leaf.requires_grad or not graph)]
        if graph and where:
            self._check_surroundings(tensors)
            views = iter(_Split.apply(self, *(leaves[i] for i in where)))
        else:  # a checkpoint with use_reentrant=True may run forward so, and must not return one tensor for all tasks
            views = iter([leaves[i].detach() for _ in self.tasks for i in where])
        split = _Features()
        for task in self.tasks:
            own = list(leaves)
            for i in where:
                own[i] = next(views)
            split[task] = pytree.tree_unflatten(own, structure)
        return split

    def losses(self, losses: Mapping[str, Tensor]) -> None:
        """Hand over the losses ``{task: scalar}`` of the backward that follows, for a rule that needs them."""
        for task in losses:
            _check_declared(task, self.tasks)
        self._losses = {task: loss.detach() for task, loss in losses.items()}

    def log_to(self, log: Callable[[dict[str, float]], Any] | None) -> None:
        """Call ``log`` with ``last.metrics`` after each backward that has formed a Gram matrix; None ends it.

        On every rank. ``balance.log_to(lambda metrics: wandb.log(metrics, commit=False))``; in Lightning rather
        ``self.log_dict(self.balance.last.metrics)`` in ``on_after_backward``.
        """
        self._log = log

    def combine(self, gradients: Sequence[Gradients], leaves: Sequence[Tensor]) -> list[Tensor | None]:
        """What goes into the trunk at each of the ``leaves``, for the ``gradients`` of all tasks at them.

        The layer's backward calls it. Of the leaves only shape, dtype and device matter; None is a leaf that no task
        depends on.
        """
        losses, self._losses = self._losses, {}
        here = [any(g is not None for g in own) for own in gradients]
        self._check_losses(losses, [task for task, present in zip(self.tasks, here, strict=True) if present])
        names = self._over_ranks(here)
        if not names:
            self.last = BalanceResult([], {}, None)
            return [None] * len(leaves)
        if not self._call.is_due(names):
            factors = self._call.by_task(names, self._call.last(names))
            self.last = BalanceResult(names, factors, None)
            return _weighted_sum(gradients, [factors.get(task, 0.0) for task in self.tasks])
        # A rule on rows may keep or draw something for every element, so it sees all leaves in every backward.
        columns = list(zip(*gradients, strict=True))
        kept = [i for i, c in enumerate(columns) if self._call.needs_rows or any(g is not None for g in c)]
        kept = kept or list(range(len(leaves)))  # the tasks are another rank's
        own = [[task[i] for i in kept] for name, task in zip(self.tasks, gradients, strict=True) if name in names]
        like = [leaves[i] for i in kept]
        with torch.autocast(like[0].device.type, enabled=False):  # some call backward inside of it
            direction = self._solve(names, own, like, self._mean_losses(names, losses))
        found = dict(zip(kept, direction, strict=True))
        return [found.get(i) for i in range(len(leaves))]

    def _solve(
        self, names: list[str], gradients: Sequence[Gradients], like: Sequence[Tensor], losses: dict[str, Tensor]
    ) -> list[Tensor]:
        """The direction for the gradients of the tasks ``names`` at the leaves ``like``."""
        # The mean of the ranks' losses has 1 / world of each rank's gradient. A rule on rows must see them so; for the
        # others it is enough that the Gram matrix is so.
        unit = self._loss_scale() * get_world_size()
        divisor = unit if self._call.needs_rows else 1.0
        rows = self._rows.start(len(names), like, compact=not self._call.needs_rows)
        for own in gradients:
            rows.append(own, divisor)
        here = rows.gram()
        if unit != divisor:
            here /= (unit / divisor) ** 2
        gram = bounded_all_reduce(here.clone(), self._place) if is_distributed() else here
        if self._call.needs_rows:
            offsets = self._offsets(rows, like) if self._call.takes_offsets else None
            blocks, weights = self._call.combine(rows.blocks(), gram, names, losses, offsets)
            weights = self._mean_weights(weights, here, gram)
            direction = rows.unflatten([divisor * block for block in blocks])
        else:
            weights = self._call.solve(gram, names, losses)
            direction = rows.combine(self._call.scale_for(names) * weights)
        self.last = BalanceResult(names, self._call.by_task(names, weights), gram)
        if self._log is not None:
            self._log(self.last.metrics)
        if self._only_measures:  # not the product, which may round otherwise than autograd's sum
            direction = [part for part in _weighted_sum(gradients, [1.0] * len(names)) if part is not None]
        return [part.to(leaf.dtype) for part, leaf in zip(direction, like, strict=True)]

    def _over_ranks(self, present: Sequence[bool]) -> list[str]:
        """The names of the tasks that are present on any rank."""
        if not is_distributed():
            return [task for task, here in zip(self.tasks, present, strict=True) if here]
        counts = bounded_all_reduce(torch.tensor(present, dtype=torch.float64, device="cpu"), self._place)
        return [task for task, count in zip(self.tasks, counts.tolist(), strict=True) if count]

    def _check_losses(self, losses: Mapping[str, Tensor], present: Sequence[str]) -> None:
        missing = [task for task in present if task not in losses]
        if missing and (losses or self._call.needs_losses):
            raise ValueError(
                f"{type(self.rule).__name__} needs the losses of {', '.join(missing)}: call losses({{task: loss, …}}) "
                "of the layer before the backward."
            )

    def _mean_losses(self, names: Sequence[str], losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The losses that were handed over, averaged over the ranks; a rank without the task adds zero."""
        if not losses:
            return {}
        values = [float(losses.get(name, 0.0)) for name in names]
        sums = bounded_all_reduce(torch.tensor(values, dtype=torch.float64, device="cpu"), self._place)
        return dict(zip(names, (sums / get_world_size()).unbind(), strict=True))

    def _offsets(self, rows: Rows, like: Sequence[Tensor]) -> Offsets:
        """Where in the batch of all ranks this rank's rows lie."""
        samples = torch.zeros(get_world_size(), dtype=torch.float64, device="cpu")
        samples[get_rank()] = len(like[0])
        counts = [int(count) for count in bounded_all_reduce(samples, self._place)]
        return rows.offsets_in_batch(sum(counts[: get_rank()]), sum(counts))

    def _mean_weights(self, weights: Tensor, here: Tensor, gram: Tensor) -> Tensor:
        """The weights of a rule that each rank ran on its own columns, averaged by their shares of each row."""
        if not is_distributed():
            return weights
        squares = gram.diagonal()
        return bounded_all_reduce(weights * here.diagonal(), self._place) / squares.where(squares > 0, 1)

    def _loss_scale(self) -> float:
        if self.loss_scale is None:
            raise ValueError("loss_scale: a copied layer has no scaler; set its loss_scale to one, or to a number.")
        return float(self.loss_scale if isinstance(self.loss_scale, int | float) else self.loss_scale.get_scale())

    @property
    def _place(self) -> str:
        return f"Balance(tasks={self.tasks})"

    def _check_surroundings(self, tensors: Sequence[Tensor]) -> None:
        """RuntimeError where the layer cannot be right."""
        if is_sharded(*tensors):
            raise RuntimeError("Balance needs whole features, not DTensors that are sharded over the ranks.")
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError("Balance works on the gradients of a backward, and not in transforms of torch.func.")
        if self._call.needs_rows and is_distributed() and not getattr(self._call.rule, "elementwise", False):
            raise RuntimeError(
                f"{type(self.rule).__name__} compares whole rows, of which each of several ranks has a part only; "
                "use a rule on the Gram matrix, or the strategy Balanced with space=parameters."
            )

    def _warn_of_parts(self, tasks: Sequence[str]) -> None:
        """Warn, once, that one forward pass was sent backward in parts."""
        if not self._warned:
            log.warning(
                "%s: %s came in another backward than the other tasks of the same forward pass, so they were not "
                "balanced together; add the losses and call backward once.", self._place, " and ".join(tasks),
            )  # fmt: skip
        self._warned = True

    def get_extra_state(self) -> Tensor:
        """The state of the rule, the steps and the last weights, as bytes: safetensors takes tensors only.

        The number of bytes stays the same unless the rule's own state grows.
        """
        call, file = self._call, io.BytesIO()
        state = {
            "tasks": self.tasks,
            "steps": torch.tensor(call.steps, device="cpu"),
            "solved": torch.tensor([task in call.solved for task in self.tasks], device="cpu"),
            "last_weights": call.last(self.tasks),
            "rule": dict(call.rule.state_dict()),
        }
        torch.save(state, file)
        return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Continue from another layer's; ValueError if it had other tasks."""
        if state.dtype != torch.uint8:
            raise ValueError(
                f"The state of {self._place} is bytes, not {state.dtype}: leave its _extra_state out where checkpoints "
                "are averaged or converted."
            )
        saved = torch.load(io.BytesIO(state.cpu().numpy().tobytes()), map_location="cpu", weights_only=True)
        if saved["tasks"] != self.tasks:
            raise ValueError(
                f"The layer was saved with the tasks {', '.join(saved['tasks'])}; it has {', '.join(self.tasks)}."
            )
        self._call.rule.load_state_dict(saved["rule"])
        self._call.steps = int(saved["steps"])
        self._call.solved = [task for task, solved in zip(self.tasks, saved["solved"].tolist(), strict=True) if solved]
        self._call.last_weights = dict(zip(self.tasks, saved["last_weights"].tolist(), strict=True))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A model that was saved before it had the layer loads: the layer starts afresh.
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to the process: buffers, where it logs, and a scaler, which torch pickles rarely."""
        own = {"_rows": Rows(), "_losses": {}, "_log": None}
        if not isinstance(self.loss_scale, int | float):
            own["loss_scale"] = None
        return self.__dict__ | own

    def _replicate_for_data_parallel(self) -> Any:
        raise RuntimeError(
            "Balance sees one device's part of the batch only in torch.nn.DataParallel; use DistributedDataParallel."
        )


class _Features(dict[str, Any]):
    """The features of every task, by its name."""

    def __missing__(self, task: str) -> Any:
        _check_declared(task, self)


# DistributedDataParallel finds the tensors of a model's output by it, and another layer those of its features.
pytree.register_pytree_node(
    _Features,
    lambda features: (list(features.values()), list(features)),
    lambda values, tasks: _Features(zip(tasks, values, strict=True)),
)


class _Split(torch.autograd.Function):
    """The features once for each task; autograd calls ``backward`` when every task's gradient is there."""

    @staticmethod
    def forward(ctx: Any, layer: Balance, *leaves: Tensor) -> tuple[Tensor, ...]:
        ctx.layer, ctx.seen = layer, []
        ctx.leaves = [leaf.new_empty(()).expand(leaf.shape) for leaf in leaves]  # as the leaves, without their memory
        ctx.set_materialize_grads(False)  # a task that is not used is absent, not zero
        return tuple(leaf.view_as(leaf) for _ in layer.tasks for leaf in leaves)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("Balance cannot be differentiated twice: create_graph=True goes through its rule.")
        count = len(ctx.leaves)
        by_task = [gradients[i : i + count] for i in range(0, len(gradients), count)]
        present = [t for t, own in zip(ctx.layer.tasks, by_task, strict=True) if any(g is not None for g in own)]
        if ctx.seen and ctx.seen != present:
            ctx.layer._warn_of_parts(present)
        ctx.seen = present
        return None, *ctx.layer.combine(by_task, ctx.leaves)


def _weighted_sum(gradients: Sequence[Gradients], weights: Sequence[float]) -> list[Tensor | None]:
    """The sum of the tasks' gradients at each leaf; from the last task to the first, as autograd adds them."""
    sums: list[Tensor | None] = [None] * len(gradients[0])
    for own, weight in zip(reversed(gradients), reversed(weights), strict=True):
        for i, gradient in enumerate(own):
            if gradient is not None:
                total = sums[i]
                gradient = gradient if weight == 1 else gradient * weight
                sums[i] = gradient if total is None else total + gradient
    return sums


def check_features(leaves: Sequence[Any]) -> None:
    """ValueError for what cannot be compared: complex tensors, and tensors in a container that torch does not know."""
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.is_complex():
            raise ValueError("Complex features cannot be compared; hand over torch.view_as_real of them.")
        inner = leaf.values() if isinstance(leaf, Mapping) else getattr(leaf, "__dict__", {}).values()
        if not isinstance(leaf, Tensor | nn.Module) and any(isinstance(value, Tensor) for value in inner):
            raise ValueError(
                f"The features have tensors in a {type(leaf).__name__}, which would pass by the rule; use a tuple, "
                "list or dict, or torch.utils._pytree.register_pytree_node."
            )


def _check_tasks(tasks: Sequence[str]) -> None:
    names = not isinstance(tasks, str) and all(isinstance(task, str) for task in tasks)
    require("tasks", tasks, "a list of different names", names and 0 < len(tasks) == len(set(tasks)))


def _check_declared(task: str, tasks: Sequence[str] | Mapping[str, Any]) -> None:
    if task not in tasks:
        raise KeyError(f"{task} is no task of the layer; {suggestion(str(task), tasks)}.")


def _check_rule(rule: Any, tasks: Sequence[str], scale: float | str, every: int) -> None:
    accepted = "a module, as mtl.rules.UPGrad(), or None to only measure"
    require("rule", rule, accepted, rule is None or isinstance(rule, nn.Module))
    require("scale", scale, "1 without a rule", rule is not None or scale == 1)
    if getattr(rule, "needs_rows", False) and every != 1:
        raise ValueError(f"{type(rule).__name__} works on the rows themselves: it needs every=1, not every={every}.")
    count = getattr(rule, "num_tasks", len(tasks))
    if count != len(tasks):
        raise ValueError(f"{type(rule).__name__} has num_tasks={count}, but there are {len(tasks)} tasks.")


def _check_loss_scale(loss_scale: Any) -> None:
    positive = isinstance(loss_scale, int | float) and loss_scale > 0
    scaler = hasattr(loss_scale, "get_scale")
    require("loss_scale", loss_scale, "a number above 0, or a scaler with get_scale()", positive or scaler)
