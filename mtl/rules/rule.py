"""What all rules share: how a matrix comes in, how random draws and per-task state are kept."""

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
    """A rule that turns the Gram matrix of the tasks' gradients into one weight a task.

    ``forward(gram [K, K], losses [K]) -> weights [K]``, float64 on the CPU, in the paper's own normalisation,
    whatever dtype and device come in. A subclass implements ``weigh`` on a float64 array. Anything else with
    such a ``forward`` serves as a rule as well; this class only does what all of ours would repeat.

    A Gram matrix with a value that is not finite gives weights of NaN and leaves every state as it was, so
    that the gradient shows it: a GradScaler then skips the step, as in plain training.

    ``needs_rows``: the rule works on the rows themselves, by ``combine`` and not by ``forward``.
    ``per_task_state``: the rule takes ``present``, the indices of the tasks that the matrix is about.
    """

    needs_rows: ClassVar[bool] = False
    per_task_state: ClassVar[bool] = False

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        """Return the weights ``[K]`` for the Gram matrix ``[K, K]``."""
        matrix = as_matrix(gram)
        return torch.from_numpy(self.weigh(matrix) if np.isfinite(matrix).all() else np.full(len(matrix), np.nan))

    def weigh(self, gram: Array) -> Array:
        """Return the weights for a finite, symmetric Gram matrix: what a subclass must define, unless it needs rows."""
        raise NotImplementedError(f"{type(self).__name__} works on rows: call combine(rows, gram).")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rule:
        # The state stays in float64 on the CPU, where the weights are computed: a model's .to(device) or
        # .half() must not cost a transfer a step or the averages their digits. Kept rows follow the rows
        # that come in.
        return self


class TaskRule(Rule):
    """A rule with state for each of ``num_tasks`` tasks; a subclass implements ``weigh_tasks``.

    ``present`` gives the indices of the tasks in this batch, in the order of the matrix; None means all.
    What is kept of absent tasks stays as it is.
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
    """What a rule that draws adds: a generator of its own, whose state is part of ``state_dict``."""

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
        np.fill_diagonal(draws, 2)  # comes last in its own row, and is cut off
        return draws.argsort(1)[:, :-1]


def new_generator(seed: int) -> torch.Generator:
    """A generator that starts at ``seed``; ValueError where that is no seed."""
    require("seed", seed, "a whole number of 0 or more", isinstance(seed, int) and seed >= 0)
    return torch.Generator().manual_seed(seed)


def as_matrix(gram: Tensor) -> Array:
    """The Gram matrix as a symmetric float64 array; ValueError where it is not square."""
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or not len(gram):
        raise ValueError(f"The Gram matrix must be square and not empty, but its shape is {list(gram.shape)}.")
    matrix = gram.detach().to("cpu", torch.float64).numpy()
    return 0.5 * (matrix + matrix.T)


def task_indices(count: int, num_tasks: int, present: Sequence[int] | None) -> Indices:
    """The tasks that ``count`` rows belong to; ValueError where they do not fit ``num_tasks``."""
    indices = list(range(num_tasks)) if present is None else [int(i) for i in present]
    if len(indices) != count:
        known = f"num_tasks={num_tasks}" if present is None else f"present={indices}"
        raise ValueError(f"The Gram matrix is about {count} tasks, but {known} makes {len(indices)}.")
    if len(set(indices)) != count or not all(0 <= i < num_tasks for i in indices):
        raise ValueError(f"present={indices} must be different task indices from 0 to {num_tasks - 1}.")
    return np.array(indices)
