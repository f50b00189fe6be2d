import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtl.errors import require
from mtl.preference import Preference
from mtl.weightings.scalarization import Scalarization, safe_norm


class PBI(Scalarization):
    """Penalty-based boundary intersection (PBI): along a ray in the space of losses, with a penalty beside it.

    With ``u = 1 / r`` of length one, ``d1 = <L - z, u>`` and ``d2 = |L - z - d1 u|``: ``d1 + theta d2``, so
    ``w = u + theta (L - z - d1 u) / d2``. The ray is the one with ``r_k (L_k - z_k)`` the same for all tasks: a task
    with twice the preference ends with half the loss. ``theta``: the price of being beside the ray.

    Scale: the weights at the ray have length one. Beside it a task whose loss is too small has a negative weight, so
    that its loss is raised; with ``theta`` above about 1 the minimum need not be Pareto-optimal.

    Source: Zhang & Li 2007, "MOEA/D". There, and in TorchJD, the direction is given itself, and a task
    with a larger entry ends with a larger loss; here it is ``1 / r``, so that a preference means the same everywhere.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        theta: float = 1.0,
        preference: Preference | None = None,
        reference: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(tasks, preference, reference)
        require("theta", theta, "0 or more", 0 <= theta < math.inf)
        self.theta = theta

    def derivatives(self, values: Tensor, preference: Tensor) -> Tensor:
        """The direction of the ray, and theta times that from the ray to the losses."""
        ray = 1 / preference
        ray = ray / torch.linalg.vector_norm(ray)
        beside = values - (values @ ray) * ray
        return ray + self.theta * beside / safe_norm(beside)
