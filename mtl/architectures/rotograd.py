from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from mtl.errors import require


class RotoGrad:
    """Hard sharing in which every head reads the features rotated by a matrix of its task: ``r_k = R_k z``.

    A rotation is not trained by its task's loss. ``strategy=rotograd`` turns it so that the task's gradient at z points
    where those of all tasks do; with other strategies it stays what it is at first, the identity, and this is hard
    sharing. ``optimizer.sharing.lr`` is the rotations' own learning rate; the paper's is the smaller one.

    Features are one tensor ``[B, D]``, ``[B, T, D]`` or ``[B, C, H, W]``, of which D or C is rotated. ``size``: so many
    of its first elements alone, as the paper does where D is large: ``R = exp(A - A')`` costs D^3.

    Source: Javaloy & Valera 2022, "RotoGrad: Gradient Homogenization in Multitask Learning".
    """

    def __init__(self, backbone: Callable[[], nn.Module], tasks: Sequence[str], size: int | None = None) -> None:
        require("size", size, "2 or more, or null for all of the features", size is None or size >= 2)
        self.trunk, self._size = backbone(), size

    def reader(self, task: str) -> nn.Module:
        """The task's rotation."""
        return Rotation(self._size)


class Rotation(LazyModuleMixin, nn.Module):
    """A rotation of features; its parameter, of which the upper triangle counts, is made in the first forward pass."""

    cls_to_become = None

    def __init__(self, size: int | None = None) -> None:
        super().__init__()
        self.size = size
        self.skew: Any = UninitializedParameter()

    def initialize_parameters(self, x: Any) -> None:
        """Zeros: the identity."""
        if self.has_uninitialized_params():
            if not isinstance(x, Tensor) or x.dim() not in (2, 3, 4):
                raise ValueError(
                    "architecture=rotograd rotates features that are one tensor [B, D], [B, T, D] or [B, C, H, W]."
                )
            width = x.shape[_axis(x)]
            if self.size is not None and self.size > width:
                raise ValueError(f"architecture.size={self.size} must be at most {width}, the features' size.")
            with torch.no_grad():
                self.skew.materialize((self.size or width,) * 2)
                self.skew.zero_()

    def matrix(self) -> Tensor:
        """The rotation ``[size, size]``."""
        upper = self.skew.triu(1)
        return torch.linalg.matrix_exp(upper - upper.T)

    def forward(self, x: Tensor) -> Tensor:
        """The features, rotated; the rotation itself gets no gradient."""
        with torch.no_grad():
            matrix = self.matrix()
        return rotated(x, matrix)

    def follow(self, gradient: Tensor, target: Tensor, factor: float) -> None:
        """Leave the gradient of ``factor`` times ``|R target - r|^2``, r the task's gradient at the rotated features.

        ``gradient``: the task's at the features themselves, so that ``r = R gradient``.
        """
        with torch.enable_grad():
            matrix = self.matrix()
            distance = rotated(target, matrix) - rotated(gradient, matrix.detach())
            (own,) = torch.autograd.grad(factor * distance.square().sum(), self.skew)
        self.skew.grad = own if self.skew.grad is None else self.skew.grad.add_(own)

    def sharing_parameters(self) -> Iterator[nn.Parameter]:
        """The rotation's."""
        yield self.skew


def rotated(x: Tensor, matrix: Tensor) -> Tensor:
    """``x`` with its first elements along the features' axis multiplied by ``matrix``."""
    size, own = len(matrix), x.movedim(_axis(x), -1)
    turned = own[..., :size] @ matrix.T.to(x.dtype)
    return torch.cat([turned, own[..., size:]], -1).movedim(-1, _axis(x))


def _axis(x: Tensor) -> int:
    return 2 if x.dim() == 3 else 1
