"""One backbone a task, mixed after every stage: the network under cross-stitch units, NDDR layers and choices."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy

from mtl.architectures.stages import Stages, mix_states, stages

# Makes a unit: of task k, of the number of columns, and whether the last axis of maps has the channels.
MakeUnit = Callable[[int, int, bool], nn.Module]


class ColumnNetwork:
    """The trunk and the readers of ``tasks`` columns under units of one kind.

    The columns begin as ``copies`` of one backbone, or are a fresh one each. The trunk ends before the last unit: its
    features are the columns' outputs, which the last unit of every task reads. Cut after it, they would be one tensor a
    task, and rows of two tasks would have nothing in common.

    The lower levels of a pyramid are those of the task's own column; with ``follows`` a unit mixes them as the columns
    above, so that they are those of the columns that it has chosen. Of a state, which is a dict, the units mix the
    tokens, and its mask and the rest are the own column's; not without ``states``.
    """

    def __init__(
        self,
        backbone: Callable[[], nn.Module],
        tasks: Sequence[str],
        make_unit: MakeUnit,
        copies: bool = True,
        follows: bool = False,
        states: bool = True,
    ) -> None:
        first = stages(backbone(), states)
        others = [_copy(first) if copies else stages(backbone(), states) for _ in tasks[1:]]
        self._tasks, self._make_unit, self._follows = list(tasks), make_unit, follows
        self._columns = dict(zip(tasks, [first, *others], strict=True))
        units = [self._row_of_units() for _ in first.units[1:]]
        self.trunk = Columns({task: column.units for task, column in self._columns.items()}, units, copies, follows)
        self.trunk.keeps_levels = first.reads_levels

    def reader(self, task: str) -> nn.Module:
        """The last unit of a task, and what its column makes of that."""
        own = self._tasks.index(task)
        return LastUnit(task, own, self._unit(own), self._columns[task], self._follows)

    def _row_of_units(self) -> dict[str, nn.Module]:
        return {task: self._unit(k) for k, task in enumerate(self._tasks)}

    def _unit(self, k: int) -> nn.Module:
        return self._make_unit(k, len(self._tasks), next(iter(self._columns.values())).last_axis_is_channels)


class Columns(nn.Module):
    """Inputs -> ``columns``, the outputs of the last stage of all columns, and ``levels``, those of stages below it.

    These, by task, are mixed; they are there where ``keeps_levels`` says that heads read a pyramid.
    """

    def __init__(
        self,
        stages: Mapping[str, Sequence[nn.Module]],
        units: Sequence[Mapping[str, nn.Module]],
        copies: bool,
        follows: bool,
    ) -> None:
        super().__init__()
        self.columns = nn.ModuleDict({task: nn.ModuleList(own) for task, own in stages.items()})
        self.units = nn.ModuleList(nn.ModuleDict(row) for row in units)
        self.copies, self.follows, self.keeps_levels = copies, follows, False

    def forward(self, inputs: Any) -> dict[str, Any]:
        """The common features."""
        read, levels = dict.fromkeys(self.columns, inputs), {task: list[Tensor]() for task in self.columns}
        outputs = self._stage(0, read)
        for number, row in enumerate(self.units, 1):
            read = {
                task: mix_states(unit, outputs, own)
                for own, (task, unit) in enumerate(row.items())  # type: ignore[operator]
            }
            if self.follows:
                levels = {task: followed(unit, levels) for task, unit in row.items()}  # type: ignore[operator]
            for task, x in read.items() if self.keeps_levels else ():
                levels[task].append(x)
            outputs = self._stage(number, read)
        return {"columns": outputs, "levels": levels}

    def logged(self) -> dict[str, Tensor]:
        """What each unit says of its columns: ``alpha/<task>~<column>/<number>``, of every one but the last."""
        return {
            f"{name}/{task}~{column}/{number}": value
            for number, row in enumerate(self.units, 1)
            for task, unit in row.items()  # type: ignore[operator]
            for name, values in (unit.logged().items() if hasattr(unit, "logged") else ())
            for column, value in zip(self.columns, values, strict=True)
        }

    def _stage(self, number: int, read: Mapping[str, Any]) -> list[Any]:
        outputs: list[Any] = []
        for column, x in zip(self._columns(), read.values(), strict=True):
            lazy = any(map(is_lazy, (*column[number].parameters(), *column[number].buffers())))
            if self.copies and lazy and outputs:  # so that it begins as a copy of the first
                column[number] = copy.deepcopy(next(self._columns())[number])
            outputs.append(column[number](x))
        return outputs

    def _columns(self) -> Iterator[nn.ModuleList]:
        yield from self.columns.values()  # type: ignore[misc]


class LastUnit(nn.Module):
    """The features of a task: its unit on the columns' outputs, and what the task's column makes of the result."""

    def __init__(self, task: str, own: int, unit: nn.Module, column: Stages, follows: bool) -> None:
        super().__init__()
        self.task, self.own, self.unit, self.read, self.follows = task, own, unit, column.read, follows

    def forward(self, features: Mapping[str, Any]) -> Any:
        """What one backbone would return."""
        levels = features["levels"]
        own = followed(self.unit, levels) if self.follows else levels[self.task]
        return self.read([*own, mix_states(self.unit, features["columns"], self.own)])

    def logged(self) -> dict[str, Tensor]:
        """What its unit says of the columns, in their order: ``alpha_last``."""
        logged: Any = getattr(self.unit, "logged", dict)
        return {f"{name}_last": values for name, values in logged().items()}


def _copy(column: Stages) -> Stages:
    """A column with the same weights; torch copies no buffer whose shape is not known yet, so that it gets new ones."""
    buffers = [own for module in (*column.units, column.read) for own in module.buffers() if is_lazy(own)]
    new = {id(own): UninitializedBuffer(device=own.device, dtype=own.dtype) for own in buffers}  # type: ignore[call-arg]
    return copy.deepcopy(column, new)


def followed(unit: nn.Module, levels: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
    """The lower levels of all columns, each mixed as the unit mixes the columns themselves."""
    return [unit(list(columns)) for columns in zip(*levels.values(), strict=True)]
