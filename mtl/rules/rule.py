"""Base classes of all rules: checks of the Gram matrix, state per task, random draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtl.errors import require

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


class Rule(nn.Module):
    """A balancing rule: the Gram matrix of the task gradients (rows) -> one weight per task.

    ``forward(gram [K, K], losses [K]) -> weights [K]``: float64 on the CPU in the paper's normalisation, for any dtype
    and device of the input. A subclass defines ``weigh`` on a float64 array. Any other module with such a ``forward``
    is a rule too; this class has only what ours have in common.

    A Gram matrix that is not finite gives weights of NaN and changes no state. The gradient is then not finite either,
    and a gradient scaler skips the step as usual.

    ``needs_rows``: the rule works on the rows, by ``combine`` instead of ``forward``.
    ``per_task_state``: the rule takes ``present``, the indices of the tasks in the matrix.
    """

    needs_rows: ClassVar[bool] = False
    per_task_state: ClassVar[bool] = False

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        """Return the weights ``[K]`` for the Gram matrix ``[K, K]``."""
        matrix = as_matrix(gram)
        return torch.from_numpy(self.weigh(matrix) if np.isfinite(matrix).all() else np.full(len(matrix), np.nan))

    def weigh(self, gram: Array) -> Array:
        """Return the weights for a finite, symmetric Gram matrix; subclasses that do not need rows define this."""
        raise NotImplementedError(f"{type(self).__name__} works on rows: call combine(rows, gram).")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rule:
        # Weights are computed in float64 on the CPU, so the state stays there: .to(device) would cost a transfer per
        # step, and .half() would cost precision. Stored rows are on the device of the given rows.
        return self


class TaskRule(Rule):
    """A rule with state for each of ``num_tasks`` tasks; a subclass defines ``weigh_tasks``.

    ``present`` is the indices of the tasks in the batch, in the order of the matrix; None means all tasks. The state of
    absent tasks does not change.
    """

    per_task_state = True

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        require(
            "num_tasks",
            num_tasks,
            "a whole number of 1 or more",
            isinstance(num_tasks, int) and num_tasks >= 1,
        )
        self.num_tasks = num_tasks

    def forward(self, gram: Tensor, losses: Tensor | None = None, present: Sequence[int] | None = None) -> Tensor:
        """Return the weights for the Gram matrix of the ``present`` tasks, and update the state."""
        matrix = as_matrix(gram)
        tasks = task_indices(len(matrix), self.num_tasks, present)
        if not np.isfinite(matrix).all():
            return torch.full((len(matrix),), torch.nan, dtype=torch.float64)
        return torch.from_numpy(self.weigh_tasks(matrix, tasks))

    def weigh_tasks(self, gram: Array, tasks: Indices) -> Array:
        """Return the weights for a finite, symmetric Gram matrix of these tasks, and update the state."""
        raise NotImplementedError(f"{type(self).__name__} works on rows: call combine(rows, gram).")

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.shape != buffer.shape:
                raise ValueError(
                    f"{type(self).__name__} was saved for {len(saved)} tasks, but num_tasks={self.num_tasks}."
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


class Random:
    """Mixin for a rule with random draws: its own generator, whose state is in ``state_dict``."""

    generator: torch.Generator

    def get_extra_state(self) -> Tensor:
        """Return the generator's state."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Continue from a generator's state."""
        self.generator.set_state(state.cpu())

    def orders(self, count: int) -> Indices:
        """One random order of the other tasks for each of ``count`` tasks, ``[count, count - 1]``."""
        draws = torch.rand(count, count, generator=self.generator, dtype=torch.float64).numpy()
        np.fill_diagonal(draws, 2)  # sorts the task itself last, to be cut off
        return draws.argsort(1)[:, :-1]


def new_generator(seed: int) -> torch.Generator:
    """A generator with this seed; ValueError for an invalid seed."""
    require("seed", seed, "a whole number of 0 or more", isinstance(seed, int) and seed >= 0)
    return torch.Generator().manual_seed(seed)


def as_matrix(gram: Tensor) -> Array:
    """The Gram matrix as a symmetric float64 array; ValueError unless it is square."""
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or not len(gram):
        raise ValueError(f"The Gram matrix must be square and not empty, but its shape is {list(gram.shape)}.")
    matrix = gram.detach().to("cpu", torch.float64).numpy()
    return 0.5 * (matrix + matrix.T)


def task_indices(count: int, num_tasks: int, present: Sequence[int] | None) -> Indices:
    """The task index of each of ``count`` rows; ValueError if they do not fit ``num_tasks``."""
    indices = list(range(num_tasks)) if present is None else [int(i) for i in present]
    if len(indices) != count:
        known = f"num_tasks={num_tasks}" if present is None else f"present={indices}"
        raise ValueError(f"The Gram matrix has {count} tasks, but {known}.")
    if len(set(indices)) != count or not all(0 <= i < num_tasks for i in indices):
        raise ValueError(f"present={indices} must be different task indices from 0 to {num_tasks - 1}.")
    return np.array(indices)
