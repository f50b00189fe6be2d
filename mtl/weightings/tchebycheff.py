from torch import Tensor

from mtl.weightings.scalarization import Scalarization


class Tchebycheff(Scalarization):
    """The Tchebycheff scalarization: only the task with the largest ``r_k (L_k - z_k)`` is trained.

    ``max_k r_k (L_k - z_k)``, so ``w_k = r_k`` for the task at the maximum and 0 for the others; tasks that share the
    maximum share the derivative. Every Pareto-optimal point with losses above z is the minimum for one preference, the
    one with ``r_k (L_k - z_k)`` the same for all tasks: a task with twice the preference ends with half the loss.
    :class:`STCH` is a smooth form of it.

    Scale: the weights sum to the preference of one task, about 1/K.

    Source: Bowman 1976, "On the Relationship of the Tchebycheff Norm and the Efficient Frontier"; Lin et al. 2024,
    "Smooth Tchebycheff Scalarization for Multi-Objective Optimization".
    """

    def derivatives(self, values: Tensor, preference: Tensor) -> Tensor:
        """The preference of the worst task."""
        scaled = preference * values
        worst = (scaled == scaled.max()).to(values.dtype)
        return preference * worst / worst.sum().clamp(min=1)
