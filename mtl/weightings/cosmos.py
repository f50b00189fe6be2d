import math
from collections.abc import Sequence

from torch import Tensor

from mtl.errors import require
from mtl.preference import Preference
from mtl.weightings.scalarization import Scalarization, safe_norm


class COSMOS(Scalarization):
    """COSMOS: static weights, and a reward where the vector of losses points along the preference.

    ``sum_k r_k L_k - lamda cos(r, L)``, so ``w = r - lamda (r / (|r| |L|) - cos(r, L) L / |L|^2)``. ``lamda``: the
    paper's lambda, from 0.01 to 8 by the data; 0 is static weights.

    Scale: about 1/K of equal weighting. Weights may be negative: a loss that is too small for the ray is raised. The
    reward makes a task with a *larger* preference end with a larger loss, against the first term.

    Source: Ruchte & Grabocka 2021, "Scalable Pareto Front Approximation for Deep Multi-Objective Learning".
    The paper's model also reads a preference that is drawn anew in each step, which is no matter of a weighting.
    """

    def __init__(self, tasks: Sequence[str], lamda: float = 1.0, preference: Preference | None = None) -> None:
        super().__init__(tasks, preference)
        require("lamda", lamda, "0 or more", 0 <= lamda < math.inf)
        self.lamda = lamda

    def derivatives(self, values: Tensor, preference: Tensor) -> Tensor:
        """The preference, less lambda times the derivative of the cosine."""
        length, own = safe_norm(values), safe_norm(preference)
        direction, wanted = values / length, preference / own
        return preference - self.lamda * (wanted - (direction @ wanted) * direction) / length
