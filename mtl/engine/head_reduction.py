"""The sum of the heads' gradients over the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mtl.distributed.data_parallel import GradientReducer
from mtl.distributed.sharding import is_sharded
from mtl.engine.engine import Engine
from mtl.tasks import Task, loss_modules


class HeadReduction:
    """The gradients of the heads of ``tasks``, and the parts of their losses, on their way in one buffer.

    It starts when it is made, so that the trunk's backward overlaps it. In a batch that is not the last one of an
    optimizer step the gradients stay here; the last batch, which may lack the task, sends them. ``apart``: parameters
    whose gradients are summed elsewhere.
    """

    def __init__(
        self, engine: Engine, tasks: list[Task], losses: Mapping[str, Tensor], apart: Sequence[nn.Parameter] = ()
    ) -> None:
        self._losses, self._reducer = dict(losses), None
        if not engine.reducer.is_distributed:
            return
        engine.unreduced |= {task.name: task for task in tasks}
        parameters: list[nn.Parameter] = []
        if engine.reduces:
            waiting, engine.unreduced = list(engine.unreduced.values()), {}
            own = [*(engine.model.heads[task.name] for task in waiting), *loss_modules(waiting).values()]
            learned = dict.fromkeys(p for module in own for p in module.parameters() if p.requires_grad)
            elsewhere = set(apart)
            parameters = [p for p in learned if p not in elsewhere and not is_sharded(p)]
        self._reducer = GradientReducer(parameters, list(self._losses.values()))

    def wait(self) -> dict[str, Tensor]:
        """Put the sums into ``.grad``; returns the losses of the whole batch."""
        if self._reducer is None:
            return self._losses
        return dict(zip(self._losses, self._reducer.wait(), strict=True))
