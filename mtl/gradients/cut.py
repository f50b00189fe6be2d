"""The cut: leaves at the shared features, and one backward into the trunk.

Source: Gloeckle et al. 2024, "Better & Faster Large Language Models via Multi-token Prediction", figure 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mtl.gradients.rows import Rows

# Wraps the trunk's backward: it is given how much of each row goes into the trunk, None where that is no sum of rows.
AroundTrunk = Callable[[Tensor | None], AbstractContextManager]


class Direction(NamedTuple):
    """A direction in the shapes of the rows' leaves; ``weights`` [K]: of each row in it, None where it is no sum."""

    tensors: list[Tensor]
    weights: Tensor | None


class Cut:
    """The features, detached from the trunk: every head's gradient stops, and is seen, here.

    ``features`` may be a tensor or any nesting of tuples, lists and dicts of tensors. Those that the trunk makes become
    leaves; an input that it only passes on, as to the gates of a mixture of experts, reaches the heads as it is: its
    gradient would train no trunk parameter. Of a frozen trunk, whose features are measured all the same, every
    floating-point tensor becomes a leaf.

    Heads run on ``cut.features``; call ``collect()`` after each head's backward, and ``backward()`` once after the last
    one: one backward through the trunk, whatever the number of heads.

    With ``rows``, the gradient of each task is also kept as one row. The sum that goes into the trunk is formed in the
    same order either way, so keeping rows changes no bit of the training. A rule in a loop of one's own::

        rows = mtl.Rows()
        cut = mtl.Cut(trunk(x), rows)
        rows.start(len(heads), cut.leaves)
        for task, head in heads.items():
            loss(head(cut.features), y[task]).backward()  # its graph is freed before the next head runs
            cut.collect()
        weights = rule(rows.gram())
        cut.backward(mtl.Direction(rows.combine(weights), weights))

    ``loss_scale``: the factor of all gradients that land here, so that float16 can hold them. Rows have it divided
    out; the trunk's gradients keep it. ``whole_trunk``: leaves that no head has read get zeros, because with several
    ranks each of them must run the whole trunk backward. ``parameters``: those that several heads hold; each task's
    gradient there is kept beside its row, from a ``.grad`` that is empty before the head's backward. ``around_trunk``
    is entered around the trunk's.
    """

    def __init__(
        self,
        features: Any,
        rows: Rows | None = None,
        loss_scale: float = 1.0,
        whole_trunk: bool = False,
        parameters: Sequence[nn.Parameter] = (),
    ) -> None:
        flat, structure = pytree.tree_flatten(features)
        made = _made_by_trunk(flat)
        self.trunk: list[Tensor] = [flat[i] for i in made]
        self.leaves: list[Tensor] = [z.detach().requires_grad_() for z in self.trunk]
        self.features = pytree.tree_unflatten(_replaced(flat, made, self.leaves), structure)
        self.rows, self.loss_scale, self.around_trunk = rows, loss_scale, _nothing_around
        self.parameters, self.parameter_rows = list(parameters), list[list[Tensor | None]]()
        self._whole_trunk, self._reweighed = whole_trunk, False
        self._sum: list[Tensor | None] = [None] * len(self.leaves)
        self.penalty: list[Tensor | None] = []  # the gradient of penalties at the leaves; empty without one

    def collect(self, factor: float = 1.0) -> None:
        """Take the gradient that the last head's backward left on the leaves; add ``factor`` times it to the sum."""
        gradients = [leaf.grad for leaf in self.leaves]
        if self.rows is not None:
            self.rows.append(gradients, self.loss_scale)
            own = [p.grad for p in self.parameters]
            self.parameter_rows.append([None if g is None else g / self.loss_scale for g in own])
        for leaf in self.leaves:
            leaf.grad = None
        reached = [gradient for gradient in gradients if gradient is not None]
        if reached and factor != 1:
            torch._foreach_mul_(reached, factor)
        pairs = [(t, g) for t, g in zip(self._sum, gradients, strict=True) if t is not None and g is not None]
        if pairs:
            torch._foreach_add_([total for total, _ in pairs], [gradient for _, gradient in pairs])
        self._sum = [g if total is None else total for total, g in zip(self._sum, gradients, strict=True)]

    def collect_penalty(self) -> None:
        """Take the gradient that a penalty's backward left on the leaves: it goes into the trunk, and is in no row."""
        gradients = [leaf.grad for leaf in self.leaves]
        for leaf in self.leaves:
            leaf.grad = None
        if any(gradient is not None for gradient in gradients):
            self.penalty = _sums(self.penalty, gradients) if self.penalty else gradients

    def collect_all(self, total: Tensor, rows: Rows | None) -> None:
        """Take all tasks' gradients on the only leaf at once: their sum, and the rows if they are kept."""
        assert not self.parameters
        self._sum, self.rows = [total], rows
        self.parameter_rows = [[] for _ in range(rows.count if rows is not None else 0)]

    def reweigh(self, weights: Sequence[Tensor]) -> None:
        """Multiply every row by its weight; their sum is what goes into the trunk from now on."""
        if self.rows is not None:
            self.rows.scale(weights)
            for row, weight in zip(self.parameter_rows, weights, strict=True):
                for gradient in row:
                    if gradient is not None:
                        gradient.mul_(weight)
            self._reweighed = True

    def backward(self, direction: Direction | None = None, weights: Tensor | None = None) -> None:
        """Send ``direction``, by default the sum of the tasks' gradients, through the trunk in one backward.

        Leaves that no head has read, and those of a frozen trunk, are left out. ``weights`` [K]: the factors of the
        rows in that sum, where they are not one.
        """
        if self.rows is not None and direction is None:
            weights = torch.ones(self.rows.count, dtype=torch.float64) if weights is None else weights
            direction = Direction(self.rows.combine(weights), weights) if self._reweighed else None
        elif direction is not None:
            weights = direction.weights
        with self.around_trunk(weights):
            self._backward(None if direction is None else direction.tensors)

    def backward_zeros(self) -> None:
        """Run the trunk backward for the other ranks' sake alone: its gradients on this rank stay as they are."""
        if self._whole_trunk:
            self.penalty = []
            self._backward([torch.zeros_like(z) for z in self.trunk])

    def _backward(self, tensors: Sequence[Tensor] | None) -> None:
        if tensors is None:
            gradients, self._sum = self._sum, [None] * len(self._sum)
        else:
            gradients = [_scaled(g, z, self.loss_scale) for z, g in zip(self.trunk, tensors, strict=True)]
        if self.penalty:
            gradients, self.penalty = _sums(gradients, self.penalty), []
        if self._whole_trunk:
            gradients = [torch.zeros_like(z) if g is None else g for z, g in zip(self.trunk, gradients, strict=True)]
        reached = [
            i for i, (z, g) in enumerate(zip(self.trunk, gradients, strict=True)) if g is not None and z.requires_grad
        ]
        if reached:
            handed = [gradients[i] for i in reached]
            del gradients
            _Handover.apply(handed, *(self.trunk[i] for i in reached)).backward()

    @property
    def positions(self) -> int:
        """How many positions the features have; ValueError where they are not one ``[B, T, D]`` or ``[B, C, H, W]``."""
        leaf = self._one_leaf()
        return leaf.shape[position_axis(leaf)]

    def chunks(self, count: int) -> Iterator[Tensor]:
        """The features in ``count`` chunks of their positions, one after the other, each a leaf of its own.

        A chunk's gradient, zero if it has none, is part of the whole's when the next chunk is asked for. Call
        ``collect()`` after the last one. Raises what ``positions`` does.
        """
        leaf = self._one_leaf()
        leaf.grad = torch.zeros_like(leaf)
        parts = split_positions(leaf.detach(), count)
        for part, gradient in zip(parts, split_positions(leaf.grad, count), strict=True):
            part = part.contiguous().requires_grad_()  # as heads get the whole
            yield part
            if part.grad is not None:
                gradient.copy_(part.grad)

    def _one_leaf(self) -> Tensor:
        if not isinstance(self.features, Tensor) or self.features.dim() not in (3, 4):
            shapes = [list(leaf.shape) for leaf in self.leaves]
            raise ValueError(
                f"Only features that are one tensor [B, T, D] or [B, C, H, W] have positions, not {shapes}."
            )
        return self.leaves[0]


class Tap:
    """The features as the heads see them, in the graph: nothing is cut, and every head's graph stays alive.

    With ``rows``, ``collect`` keeps each task's gradient at the features as one row. ``loss_scale``, ``whole_trunk``,
    ``parameters`` and ``around_trunk`` are those of Cut.
    """

    def __init__(
        self,
        features: Any,
        rows: Rows | None = None,
        loss_scale: float = 1.0,
        whole_trunk: bool = False,
        parameters: Sequence[nn.Parameter] = (),
    ) -> None:
        self.rows, self.loss_scale, self.around_trunk = rows, loss_scale, _nothing_around
        self.parameters, self.parameter_rows = list(parameters), list[list[Tensor | None]]()
        flat, structure = pytree.tree_flatten(features)
        made = _made_by_trunk(flat)
        self._whole_trunk = [flat[i] for i in made if flat[i].requires_grad] if whole_trunk else []
        # A gradient at an alias comes from the heads alone. One at a level of a pyramid itself would also come through
        # the trunk, from the levels above it.
        self.trunk = self.leaves = [flat[i] if rows is None else _alias(flat[i]) for i in made]
        self.features = pytree.tree_unflatten(_replaced(flat, made, self.leaves), structure)
        self.penalties: list[Tensor] = []  # of the heads

    @property
    def penalty(self) -> Sequence[Tensor]:
        """Empty without a penalty."""
        return self.penalties

    def collect(self, losses: Mapping[str, Tensor | None], weights: Mapping[str, Tensor]) -> None:
        """Keep every task's gradient: a second backward of each head down to the features, and none of the trunk."""
        if self.rows is None:
            return
        at, count = [*self.leaves, *self.parameters], len(self.leaves)
        for task, loss in losses.items():
            gradients: Sequence[Tensor | None] = [None] * len(at)
            if loss is not None and loss.requires_grad:
                gradients = torch.autograd.grad(loss, at, weights[task], retain_graph=True, allow_unused=True)
            self.rows.append(gradients[:count], self.loss_scale)
            self.parameter_rows.append([None if g is None else g / self.loss_scale for g in gradients[count:]])

    def backward(self, losses: Mapping[str, Tensor | None], weights: Mapping[str, Tensor]) -> None:
        """The gradient of the weighted sum of the losses, in one backward of all heads and the trunk."""
        outputs = [(loss, weights[task]) for task, loss in losses.items() if loss is not None and loss.requires_grad]
        outputs += [(penalty, torch.full_like(penalty, self.loss_scale)) for penalty in self.penalties]
        outputs += [(z, torch.zeros_like(z)) for z in self._whole_trunk]
        ones = torch.ones(len(weights), dtype=torch.float64)
        with self.around_trunk(ones):
            if outputs:
                torch.autograd.backward([output for output, _ in outputs], [vector for _, vector in outputs])


class _Handover(torch.autograd.Function):
    """Gives the trunk the gradients of its outputs and keeps none of them.

    torch.autograd.backward keeps the gradients that it is given alive until it has gone through the whole trunk.
    """

    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], *outputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return outputs[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        given = tuple(ctx.gradients)
        ctx.gradients.clear()
        return None, *given


def trunk_vjp(
    trunk: Sequence[Tensor],
    gradients: Sequence[Tensor],
    parameters: Sequence[Tensor],
    keep_graph: bool = True,
    loss_scale: float = 1.0,
) -> tuple:
    """One vector-Jacobian product: ``gradients`` at the trunk's output become gradients at its parameters.

    None for a parameter that the features do not depend on. ``keep_graph``: another product will follow. The vector is
    multiplied by ``loss_scale`` on its way through the trunk.
    """
    pairs = [(z, _scaled(g, z, loss_scale)) for z, g in zip(trunk, gradients, strict=True) if z.requires_grad]
    if not pairs:  # of a frozen trunk
        return (None,) * len(parameters)
    outputs, vectors = [z for z, _ in pairs], [g for _, g in pairs]
    pushed = torch.autograd.grad(outputs, parameters, vectors, retain_graph=keep_graph, allow_unused=True)
    return pushed if loss_scale == 1 else tuple(None if g is None else g.div_(loss_scale) for g in pushed)


def position_axis(tensor: Tensor) -> int:
    """The axis of the positions: 1 of ``[B, T, ...]``; 2, the rows, of maps ``[B, C, H, W]``."""
    return 2 if tensor.dim() == 4 else 1


def split_positions(tensor: Tensor, count: int, positions: int | None = None) -> tuple[Tensor, ...]:
    """Views of ``count`` chunks of a tensor's positions, equal but for rounding.

    ``positions``: those of the features, where the tensor has a multiple of that.
    """
    axis = position_axis(tensor)
    positions = tensor.shape[axis] if positions is None else positions
    each = tensor.shape[axis] // positions
    return tensor.tensor_split([each * (positions * i // count) for i in range(1, count)], axis)


def _nothing_around(weights: Tensor | None) -> AbstractContextManager:
    return nullcontext()


def _scaled(gradient: Tensor, output: Tensor, loss_scale: float) -> Tensor:
    return (gradient if loss_scale == 1 else gradient * loss_scale).to(output.dtype)


def _sums(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [y if x is None else x if y is None else x + y for x, y in zip(a, b, strict=True)]


def _alias(value: Tensor) -> Tensor:
    return value.view_as(value) if value.requires_grad else value.detach().requires_grad_()


def _made_by_trunk(flat: Sequence[Any]) -> list[int]:
    """The places of the tensors that the trunk has made; of all that could have a gradient where it is frozen."""
    tensors = [i for i, value in enumerate(flat) if isinstance(value, Tensor)]
    return [i for i in tensors if flat[i].requires_grad] or [
        i for i in tensors if flat[i].is_floating_point() or flat[i].is_complex()
    ]


def _replaced(flat: Sequence[Any], places: Sequence[int], tensors: Sequence[Tensor]) -> list[Any]:
    new = dict(zip(places, tensors, strict=True))
    return [new.get(i, value) for i, value in enumerate(flat)]
