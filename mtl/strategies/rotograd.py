from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtl.engine.step import Step
from mtl.gradients.cut import Direction
from mtl.gradients.spaces import FeatureSpace, ParameterSpace
from mtl.model import MultiTaskModel
from mtl.strategies.balanced import Balanced
from mtl.weightings import Weighting


class RotoGrad(Balanced):
    """Both halves of RotoGrad: the task gradients get one norm by the rule, and rotations that align them.

    The rotations are those of ``architecture=rotograd``, R_k z for task k. With g_k the task's gradient at the features
    z, so that ``R_k g_k`` is that at the rotated ones, and B samples::

        v = d / K,   L_k = sum over the batch of |R_k v - sg(R_k g_k)|^2 / B

    d is the direction that the trunk gets, without the weight of ``scale``. As R_k is orthogonal, lowering L_k is
    raising ``<R_k v, sg(R_k g_k)>``, the paper's objective. The gradient of L_k is the only one that R_k gets. Its
    learning rate is ``optimizer.sharing.lr``: the paper needs rotations that are slower than the trunk. The optimizer's
    weight decay pulls them to the identity, and ``trainer.grad_clip_norm`` counts them.

    ``rule``: RotoGradScale, which is the other half; another one is a method of its own. ValueError where a head has no
    rotation.

    Promises: gradients of one length, and rotations that turn them to each other.

    Fails for: rotations that learn as fast as the trunk: the features of the heads then move away under them.

    Source: Javaloy & Valera 2022, "RotoGrad: Gradient Homogenization in Multitask Learning". Its code takes the norm of
    the mean gradient for that of v, starts the scaling anew after 20 steps, and has an optimizer of its own for the
    rotations, whose learning rate falls.
    """

    rotates = True

    def __init__(
        self,
        weighting: Weighting,
        rule: nn.Module,
        tasks: Sequence[str],
        scale: float | str = 1.0,
        head_scale: str = "unit",
        on_solver_failure: str = "raise",
        token_chunks: int = 1,
    ) -> None:
        super().__init__(
            weighting, rule, tasks, scale=scale, head_scale=head_scale, on_solver_failure=on_solver_failure,
            token_chunks=token_chunks,
        )  # fmt: skip

    def bind(self, model: MultiTaskModel) -> None:
        """ValueError where a head has no rotation."""
        for task in model.heads:
            if _rotation(model, task) is None:
                raise ValueError(
                    f"strategy=rotograd finds no rotation in the head of {task}: use architecture=rotograd."
                )

    def _weigh(
        self, rows: FeatureSpace | ParameterSpace, step: Step, losses: Mapping[str, Tensor], due: bool
    ) -> tuple[dict[str, float], Direction | None]:
        weights, direction = super()._weigh(rows, step, losses, due)
        if direction is not None:
            assert isinstance(rows, FeatureSpace)
            factor = step.engine.precision.scale / sum(step.batch.samples)
            target = direction.tensors[0] / (len(step.names) * self.call.scale_for(step.names))
            for place, task in enumerate(step.names):
                rotation = _rotation(step.engine.model, task)
                if rotation is not None and rotation.skew.requires_grad:
                    (gradient,) = rows.rows.row(place)
                    rotation.follow(gradient, target, factor)
        return weights, direction


def _rotation(model: MultiTaskModel, task: str) -> Any:
    """The module of a head that follows a direction, as mtl.architectures.rotograd.Rotation; None without one."""
    return next((module for module in model.heads[task].modules() if callable(getattr(module, "follow", None))), None)
