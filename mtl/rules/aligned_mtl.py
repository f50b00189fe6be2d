from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from scipy.linalg.lapack import dgejsv

from mtl.errors import require
from mtl.rules.rule import Array, Rule
from mtl.rules.solvers import SolverError, in_one_thread, unit_rows

SCALES: dict[str, Callable[[Array], Any]] = {"min": np.min, "median": np.median, "mean": np.mean}


class AlignedMTL(Rule):
    """The gradients' principal components, all given the same length; then the sum.

    With the eigenvalues l and vectors V of G (of those that are not zero), B = sqrt(l_scale) V L^(-1/2) V'
    and w = B 1: the nearest orthogonal system to the gradients, of condition number one. ``scale_mode``:
    l_scale is the smallest (the paper's choice), the median or the mean of these eigenvalues.

    Dependent gradients: directions that do not occur are left out, as in the paper. A zero gradient gets the
    weight zero.

    Source: Senushkin et al. 2023, equation 9 and algorithm 1, with the task weights w_i = 1 of the official
    code, which calls the mean "rmse" and takes the lower of two middle eigenvalues for the median. The
    eigenvalues come from a one-sided Jacobi method on the scaled rows: eigh on G, which others use, loses
    the small ones (1e-4 relative where norms are 1e6 apart). LibMTL's torch.symeig no longer exists in
    torch 2.
    """

    def __init__(self, scale_mode: Literal["min", "median", "mean"] = "min") -> None:
        super().__init__()
        require("scale_mode", scale_mode, "one of " + ", ".join(SCALES), scale_mode in SCALES)
        self.scale_mode = scale_mode

    def weigh(self, gram: Array) -> Array:
        """Return the weights; for orthogonal gradients of equal norm they are one."""
        rows = unit_rows(gram)
        if not len(rows.norms):
            return np.zeros(len(gram))
        relative = rows.norms / rows.norms.max()
        # One row a task, in an orthonormal basis of their span: the left vectors are the eigenvectors of G.
        matrix = relative[:, None] * rows.factor.T
        # joba=3 keeps small singular values that come from badly scaled rows; jobv=3 leaves out the right
        # vectors.
        with in_one_thread():
            values, vectors, _, work, _, info = dgejsv(matrix, joba=3, jobu=0, jobv=3)
        if info:
            raise SolverError(f"The eigenvalues of {len(relative)} rows were not found: dgejsv returned {info}.")
        values = values * (work[0] / work[1])
        scale = np.sqrt(SCALES[self.scale_mode](values**2))
        return rows.spread(vectors @ (vectors.sum(0) * scale / values))
