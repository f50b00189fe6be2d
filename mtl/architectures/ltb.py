from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn

from mtl.architectures.columns import ColumnNetwork
from mtl.architectures.experts import distinct


class LTB(ColumnNetwork):
    """Learning to branch: one backbone a task, a column; each of its stages reads one column of the stage below.

    In step t of T a stage of task k draws its parent j by ``argmax_j (α_kj + ε_kj)``, ε_kj Gumbel noise. The gradient
    of α, the logits, is that of ``softmax((α_k + ε_k) / τ)``: Gumbel-softmax, straight through. τ falls from
    ``first_temperature`` to ``last_temperature`` as ``1 / sqrt(1 + c (t - 1) / T)``. In the first ``warm_up`` (a share)
    of the steps all columns count the same, 1/K, and α stays. Evaluation takes the most likely parent, the first of
    several; what is chosen at the end is a tree.

    The noise is a function of ``seed``, the run's, of the stage and of the step: it is the same on every rank, in every
    batch of a step and in a resumed run, and takes no number from torch's generators. The loop tells the step by
    ``at``; a loop that does not draws nothing, and trains the most likely parents.

    The columns differ from the beginning, pretrained ones by noise (``mtl.architectures.experts``). The last choice is
    in the reader, so that two tasks' gradients meet at the column that both have drawn, and are orthogonal in a step
    where they draw two. Levels of a pyramid are those of the chosen parents. The paper trains the tree that was found
    once more, from the beginning; this is its search. α may want a learning rate of its own: ``optimizer.sharing.lr``.

    Source: Guo et al. 2020, section 3; the straight-through draw, warm-up and τ (that of 200 epochs) are those of
    LibMTL, which adds the columns up in its warm-up, K times what a stage reads later, counts in epochs, and has a
    draw for each batch from the global generator, also in evaluation. ValueError for a backbone without stages.
    """

    def __init__(
        self,
        backbone: Callable[[], nn.Module],
        tasks: Sequence[str],
        first_temperature: float = 10.0,
        last_temperature: float = 0.7,
        warm_up: float = 0.01,
        seed: int = 0,
    ) -> None:
        if not 0 < last_temperature <= first_temperature:
            raise ValueError(
                f"last_temperature={last_temperature} must be above 0 and at most "
                f"first_temperature={first_temperature}."
            )
        if not 0 <= warm_up < 1:
            raise ValueError(f"warm_up={warm_up} must be from 0 to below 1: a share of the steps.")
        schedule, numbers = Schedule(first_temperature, last_temperature, warm_up), count()

        def choice(own: int, columns: int, last_axis_is_channels: bool) -> Choice:
            return Choice(columns, schedule, (seed, next(numbers)))

        super().__init__(distinct(backbone), tasks, choice, copies=False, follows=True)


class Schedule:
    """The temperature of each step, infinite in the warm-up."""

    def __init__(self, first: float, last: float, warm_up: float) -> None:
        self.first, self.last, self.warm_up = first, last, warm_up

    def __call__(self, step: int, steps: int) -> float:
        """The temperature of ``step``, from 1 to ``steps``."""
        if step <= self.warm_up * steps:
            return float("inf")
        change = (self.first / self.last) ** 2 - 1
        return self.first / (1 + change * (step - 1) / steps) ** 0.5


class Choice(nn.Module):
    """One of ``columns`` tensors of one shape; ``logits`` [K] say how likely each is, and ``seed`` is the noise's."""

    noise: Tensor
    temperature: Tensor

    def __init__(self, columns: int, schedule: Schedule, seed: Sequence[int]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(columns))
        self.schedule, self.seed = schedule, tuple(seed)
        # Buffers, so that a compiled forward pass takes other numbers without being compiled again.
        self.register_buffer("noise", torch.zeros(columns), persistent=False)
        self.register_buffer("temperature", torch.ones(()), persistent=False)
        self._last: tuple[Tensor, Tensor] | None = None  # the factor of each column [K], and how likely it is

    def at(self, step: int, steps: int) -> None:
        """Draw the noise of optimizer step ``step`` of ``steps``, which all forward passes in training then use."""
        self.noise.copy_(torch.from_numpy(np.random.default_rng([*self.seed, step]).gumbel(size=len(self.noise))))
        self.temperature.fill_(self.schedule(step, steps))

    def forward(self, columns: Sequence[Tensor]) -> Tensor:
        """The column that is chosen; in the warm-up the mean."""
        factors = self._factors()
        self._last = factors.detach(), self.logits.detach().softmax(0)
        return torch.stack([factor * x for factor, x in zip(factors, columns, strict=True)]).sum(0)

    def sharing_parameters(self) -> Iterator[nn.Parameter]:
        """The logits."""
        yield self.logits

    def logged(self) -> dict[str, Tensor]:
        """``selected``: the factor of each column in the last forward pass; ``parent``: how likely it is [K]."""
        return {} if self._last is None else dict(zip(("selected", "parent"), self._last, strict=True))

    def _factors(self) -> Tensor:
        scores = (self.logits + self.noise) / self.temperature if self.training else self.logits
        soft = scores.softmax(0)
        hard = torch.zeros_like(soft).scatter(0, scores.argmax(0, keepdim=True), 1.0)
        if self.training:
            hard = soft.detach().where(self.temperature.isinf(), hard)
        return hard + (soft - soft.detach())  # exactly hard, with the gradient of soft
