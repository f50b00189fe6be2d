"""What each metric of conflict, audits and affinity is, in one line, for the terminal and the report; no torch.

The metrics are those of :mod:`mtl.conflict`; the values beside the words are tested against them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TOLERANCE = 0.05  # the default of conflict.tolerance

# Where an affinity comes from, and how its logged names begin.
AFFINITIES = {
    "lookahead": "affinity/lookahead/",  # the step that was taken
    "parameters": "affinity/parameters/",  # its first order, at the shared parameters
    "estimate": "affinity/",  # its first order in the space where the strategy compares the tasks' gradients
}

SMALL_COSINES = (
    "At the features cosines are small by nature: two random directions in D dimensions have cosines of about ±1/√D, "
    "and D is samples × features. A sign alone says nothing there."
)


@dataclass(frozen=True)
class Description:
    """What a metric is, and its value for two gradients of one length; None where that is no single number."""

    words: str
    parallel: float | None = None
    orthogonal: float | None = None
    opposed: float | None = None


# By logged name; a name that ends in / stands for all names that begin with it.
DESCRIPTIONS = {
    "conflict/cos/": Description("cosine of the two tasks' gradients", 1, 0, -1),
    "conflict/cos_mean": Description("mean cosine of the pairs", 1, 0, -1),
    "conflict/cos_min": Description("lowest cosine of a pair", 1, 0, -1),
    "conflict/fraction": Description("share of the pairs with a cosine below −conflict.tolerance", 0, 0, 1),
    "conflict/magnitude_similarity": Description("mean of 2 a b / (a² + b²) over the pairs of norms a, b", 1, 1, 1),
    "conflict/norm/": Description("norm of the weighted loss's gradient; at the features it falls as 1/√batch size"),
    "conflict/condition_number": Description("largest over smallest singular value of the gradients", 1000, 1, 1000),
    "conflict/rank": Description("number of linearly independent gradients", 1, 2, 1),
    "conflict/stationarity": Description(
        "shortest convex combination over the mean norm; 0: no direction helps every task", 1, 0.7071, 0
    ),
    "conflict/cancellation": Description(
        "share of the summed norms that is lost in the sum of the gradients", 0, 0.2929, 1
    ),
    "audit/cos/": Description("cosine of the two tasks' gradients at the trunk's parameters", 1, 0, -1),
    "audit/cos_error": Description("mean absolute difference of the cosines at the features and at the parameters"),
    "audit/cos_correlation": Description("correlation over the pairs of the cosines in both spaces"),
    "audit/sign_agreement": Description(
        "share of the same sign, of the pairs beyond ±conflict.tolerance in both spaces; 0.5 is chance"
    ),
    "audit/update_cosine": Description("cosine of the updates that the rule's weights from both spaces come to"),
    "affinity/": Description("share of the second task's loss that a step on the first takes away, to first order"),
    "affinity/parameters/": Description("the same from the gradients at the shared parameters, in audited steps"),
    "affinity/lookahead/": Description("the same as it is after the step, on the same batch, in audited steps"),
}  # fmt: skip

# Of K orthogonal gradients of one norm, where that depends on K.
OF_MANY: dict[str, Callable[[int], float]] = {
    "conflict/rank": float,
    "conflict/stationarity": lambda count: count**-0.5,
    "conflict/cancellation": lambda count: 1 - count**-0.5,
}


def of_orthogonal(name: str, count: int) -> float | None:
    """A metric's value for ``count`` orthogonal gradients of one norm; None where it has none."""
    known = describe(name)
    if name in OF_MANY:
        return OF_MANY[name](count)
    return None if known is None else known.orthogonal


def describe(name: str) -> Description | None:
    """The description of a logged metric, by its name or by its beginning; None for other metrics."""
    return DESCRIPTIONS.get(name) or DESCRIPTIONS.get(name.rpartition("/")[0] + "/")
