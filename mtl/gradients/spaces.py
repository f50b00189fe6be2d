"""Where the tasks' gradients are compared: at the features, summed over the batch, or at parameters of the trunk.

A space is made of a cut whose heads have all run. ``gram()`` is the Gram matrix [K, K] over all ranks' batches, float64
on the CPU; ``combine(weights)`` the direction sum_i w_i g_i; ``send(direction)`` leaves the trunk's gradient.
``all_reduce`` sums tensors over the ranks in place; None for a single process.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl.gradients.cut import Cut, Direction, Tap, trunk_vjp
from mtl.gradients.rows import AllReduce, ParameterRows


class FeatureSpace:
    """Rows flattened over the batch, and one backward of the trunk: MGDA-UB of Sener & Koltun 2018."""

    def __init__(
        self,
        cut: Cut | Tap,
        parameters: Sequence[nn.Parameter] = (),
        all_reduce: AllReduce | None = None,
        keep_graph: bool = False,
    ) -> None:
        assert cut.rows is not None
        self.cut, self.rows, self.parameters, self._all_reduce = cut, cut.rows, list(parameters), all_reduce

    def gram(self) -> Tensor:
        """The Gram matrix of all ranks' rows: each rank has the columns of its own samples."""
        gram = self.rows.gram()
        self._squares = gram.diagonal().clone()  # of this rank's columns
        if self._all_reduce is not None:
            self._all_reduce([gram])
        return gram

    def combine(self, weights: Tensor) -> Direction:
        """The direction for ``weights`` [K]."""
        return Direction(self.rows.combine(weights), weights)

    def unflatten(self, blocks: Sequence[Tensor]) -> Direction:
        """The direction that a rule on rows gives, one vector [n_i] a block of the rows."""
        return Direction(self.rows.unflatten(blocks), None)

    def mean_weights(self, weights: Tensor, gram: Tensor) -> Tensor:
        """The weights of a rule that each rank has run on its own columns, averaged by their shares of each row."""
        if self._all_reduce is None:
            return weights
        shares = weights * self._squares
        self._all_reduce([shares])
        return shares / gram.diagonal().where(gram.diagonal() > 0, 1)

    def send(self, direction: Direction | None) -> None:
        """One backward into the trunk; None leaves the trunk where it is."""
        assert isinstance(self.cut, Cut)
        if direction is None:
            self.cut.backward_zeros()
        else:
            self.cut.backward(direction)


class SummedSpace(FeatureSpace):
    """Rows summed over the batch before they are compared; the direction goes through the trunk sample by sample."""

    def gram(self) -> Tensor:
        """The Gram matrix of the sums over all ranks' batches."""
        return self.rows.batch_summed_gram(self._all_reduce)


class ParameterSpace:
    """Each row pushed through the trunk: K trunk backwards, and K copies of the trunk's gradient.

    The tasks' gradients at the parameters that several heads hold, which the cut has kept, are part of the rows.
    ``keep_graph``: a backward pass of the trunk will follow.
    """

    def __init__(
        self,
        cut: Cut,
        parameters: Sequence[nn.Parameter],
        all_reduce: AllReduce | None = None,
        keep_graph: bool = False,
    ) -> None:
        assert cut.rows is not None
        self.parameters, self._loss_scale = [*parameters, *cut.parameters], cut.loss_scale
        self._cut, self._of_trunk, self._all_reduce = cut, parameters, all_reduce
        self.rows = ParameterRows(self.parameters)
        for task in range(cut.rows.count):
            more = keep_graph or task < cut.rows.count - 1 or bool(cut.penalty)
            pushed = trunk_vjp(cut.trunk, cut.rows.row(task), parameters, more, cut.loss_scale)
            self.rows.append([*pushed, *cut.parameter_rows[task]])
        self.rows.all_reduce(all_reduce)

    def part(self, places: Sequence[int]) -> ParameterSpace:
        """The rows over some of the ``parameters``, by their places; its directions are for them alone."""
        own = copy.copy(self)
        own.parameters, own.rows = [self.parameters[place] for place in places], self.rows.select(places)
        return own

    def gram(self) -> Tensor:
        """The Gram matrix of the rows, which are the same on every rank."""
        return self.rows.gram()

    def combine(self, weights: Tensor) -> Direction:
        """The direction for ``weights`` [K]."""
        return Direction(self.rows.combine(weights), weights)

    def unflatten(self, blocks: Sequence[Tensor]) -> Direction:
        """The direction that a rule on rows gives, one vector [n_i] a parameter."""
        return Direction(self.rows.unflatten(blocks), None)

    def mean_weights(self, weights: Tensor, gram: Tensor) -> Tensor:
        """The weights of a rule on rows: every rank has run it on whole rows."""
        return weights

    def send(self, direction: Direction | None) -> None:
        """Add the direction to the parameters' gradients; no backward is left to do."""
        if direction is None:
            return
        with torch.no_grad():
            for parameter, gradient in zip(self.parameters, direction.tensors, strict=True):
                gradient = gradient if self._loss_scale == 1 else gradient.mul_(self._loss_scale)
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
            for parameter, gradient in zip(self._of_trunk, self._penalty(), strict=True) if self._cut.penalty else ():
                assert parameter.grad is not None
                parameter.grad.add_(gradient)

    def _penalty(self) -> Sequence[Tensor]:
        """The gradient of penalties at the trunk's parameters, with the loss scale, over all ranks."""
        pairs = zip(self._cut.trunk, self._cut.penalty, strict=True)
        at_features = [torch.zeros_like(z) if gradient is None else gradient for z, gradient in pairs]
        pushed = ParameterRows(self._of_trunk)
        pushed.append(trunk_vjp(self._cut.trunk, at_features, self._of_trunk, keep_graph=False))
        pushed.all_reduce(self._all_reduce)
        return pushed.combine(torch.ones(1))


class PartSpace(FeatureSpace):
    """Rows over the parameters of a part of the trunk, and one backward of the whole trunk.

    Each row is pushed through the part alone: the layers above it, K times, and none below. As GradNorm's last shared
    layer, and partial Jacobian descent.
    """

    def gram(self) -> Tensor:
        """The Gram matrix at the part's ``parameters``, over all ranks' batches."""
        pushed = ParameterRows(self.parameters)
        for task in range(self.rows.count):
            pushed.append(
                trunk_vjp(self.cut.trunk, self.rows.row(task), self.parameters, loss_scale=self.cut.loss_scale)
            )
        pushed.all_reduce(self._all_reduce)
        return pushed.gram()


SPACES = {
    "features": FeatureSpace,
    "features_sum": SummedSpace,
    "parameters": ParameterSpace,
    "part": PartSpace,
}
