from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from scipy.linalg.lapack import dgejsv

from mtl.errors import require
from mtl.preference import Preference
from mtl.rules.preference import PreferenceRule
from mtl.rules.rule import Array
from mtl.rules.solvers import SolverError, single_threaded, unit_rows

SCALES: dict[str, Callable[[Array], Any]] = {"min": np.min, "median": np.median, "mean": np.mean}


class AlignedMTL(PreferenceRule):
    """Scale the principal components of the task gradients to one length, then sum the gradients.

    ``w = B 1`` with ``B = sqrt(l_scale) V L^(-1/2) V'``, where L and V are the nonzero eigenvalues and the eigenvectors
    of G. The scaled gradients are the nearest system with condition number one. ``scale_mode``: ``l_scale`` is the
    smallest (the paper's choice), the median or the mean of these eigenvalues.

    Dependent gradients: eigenvalues of zero are excluded, as in the paper. A zero gradient has weight zero.

    ``preference`` p, see :class:`PreferenceRule`: ``w = B p``, the task weights of the paper's algorithm 1.

    Promises: the scaled gradients have condition number one, so that none dominates by its length or its direction.

    Fails for: gradients that are nearly dependent, which make the step as short as their smallest component.

    Source: Senushkin et al. 2023, equation 9 and algorithm 1, with the task weights of one of the official code. That
    code calls the mean "rmse", and its median is the lower of two middle eigenvalues. Here the eigenvalues come from a
    one-sided Jacobi method on scaled rows: eigh on G, the usual way, loses small eigenvalues (relative errors of 1e-4
    if norms are a factor of 1e6 apart). LibMTL calls torch.symeig, which torch 2 removed.
    """

    def __init__(
        self,
        scale_mode: Literal["min", "median", "mean"] = "min",
        preference: Preference | None = None,
        tasks: Sequence[str] | None = None,
    ) -> None:
        super().__init__(preference, tasks)
        require("scale_mode", scale_mode, "one of " + ", ".join(SCALES), scale_mode in SCALES)
        self.scale_mode = scale_mode

    def weigh(self, gram: Array) -> Array:
        """Return the weights: all one for orthogonal gradients of equal norm."""
        return self.weigh_preferred(gram, np.ones(len(gram)))

    def weigh_preferred(self, gram: Array, preference: Array) -> Array:
        """Return the weights: ``preference`` itself for orthogonal gradients of equal norm."""
        rows = unit_rows(gram)
        if not len(rows.norms):
            return np.zeros(len(gram))
        relative = rows.norms / rows.norms.max()
        # The gradients in an orthonormal basis of their span; the left singular vectors are the eigenvectors of G.
        matrix = relative[:, None] * rows.factor.T
        # joba=3 is accurate for small singular values of badly scaled rows; jobv=3 skips the right vectors.
        with single_threaded():
            values, vectors, _, work, _, info = dgejsv(matrix, joba=3, jobu=0, jobv=3)
        if info:
            raise SolverError(f"The eigenvalues of {len(relative)} rows were not found: dgejsv returned {info}.")
        values = values * (work[0] / work[1])
        scale = np.sqrt(SCALES[self.scale_mode](values**2))
        return rows.scatter(vectors @ (preference[rows.alive] @ vectors * scale / values))
