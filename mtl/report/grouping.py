"""Which tasks to train together: the partition of the tasks with the best total affinity (TAG, Fifty et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from mtl.report.affinity import Affinity, affinities
from mtl.report.compare import Comparison, Row
from mtl.report.group_command import group_command
from mtl.report.runs import ReportError, Run

EXACT = 12  # tasks up to which every partition is considered
BEAM = 200  # partial partitions that are kept, above

CAUTION = (
    "An affinity is about one step on one batch, and no promise. In the study experiments/grouping (five tasks on "
    "digits, three seeds) the lookahead did not rank what pairs of tasks gain from being trained together (Spearman "
    "+0.21, −0.32 to +0.60), and was wrong in 8 of 10 pairs about which of the two gains more; yet the groups that it "
    "chose were the 2nd best of 16. On the flights (five targets, two seeds) it ranked them (+0.63, +0.18 to +0.88), "
    "and was positive for 17 of 20 ordered pairs, of which 4 gained. Train these groups, and all tasks together, over "
    "several seeds before you believe them."
)

Groups = list[tuple[int, ...]]


def best_groups(affinity: np.ndarray, most: int) -> Groups:
    """The partition of the tasks into at most ``most`` groups with the largest total affinity.

    ``affinity`` [K, K]: entry i, j is what a step on i does to j. A task's affinity in its group is the mean over the
    others in it, and 0 where it is alone; the total is the sum over the tasks (TAG, section 3.2). Exact up to 12 tasks,
    by dynamic programming over the subsets; above, a beam search, whose result may not be the best.
    """
    groups = _exact(affinity, most) if len(affinity) <= EXACT else _beam(affinity, most)
    return sorted(groups)


def total_affinity(affinity: np.ndarray, groups: Sequence[Sequence[int]]) -> float:
    """The sum over the tasks of the mean affinity of the others in a task's group."""
    return float(sum(_of_group(affinity, group) for group in groups))


def _of_group(affinity: np.ndarray, group: Sequence[int]) -> float:
    if len(group) < 2:
        return 0.0
    own = affinity[np.ix_(group, group)]
    return float((own.sum() - own.trace()) / (len(group) - 1))


def _exact(affinity: np.ndarray, most: int) -> Groups:
    tasks = range(len(affinity))
    members = [tuple(task for task in tasks if subset >> task & 1) for subset in range(1 << len(affinity))]
    values = [_of_group(affinity, group) for group in members]

    @cache
    def best(left: int, most: int) -> tuple[float, int]:
        """The best total of the tasks in ``left``, and the group of its first one."""
        if not left or most == 1:
            return values[left], left
        first, found = left & -left, (values[left], left)
        rest = others = left ^ first
        while others:  # every group of the first task but the one of all
            others = (others - 1) & rest
            group = first | others
            total = values[group] + best(left ^ group, most - 1)[0]
            found = max(found, (total, group))
        return found

    groups, left = [], len(members) - 1
    while left:
        group = best(left, most)[1]
        groups.append(members[group])
        left, most = left ^ group, most - 1
    return groups


def _beam(affinity: np.ndarray, most: int) -> Groups:
    """Tasks one after the other into a group or a new one, the best ``BEAM`` partitions kept; then moves that help."""
    mutual = np.abs(affinity + affinity.T)
    kept: list[Groups] = [[]]
    for task in np.argsort(-mutual.sum(1)).tolist():
        grown = [longer for groups in kept for longer in _with(groups, task, most)]
        kept = sorted(grown, key=lambda groups: -total_affinity(affinity, groups))[:BEAM]
    groups, improved = kept[0], True
    while improved:
        without = [([tuple(t for t in g if t != task) for g in groups], task) for task in range(len(affinity))]
        moved = [longer for some, task in without for longer in _with([g for g in some if g], task, most)]
        best = max(moved, key=lambda other: total_affinity(affinity, other))
        improved = total_affinity(affinity, best) > total_affinity(affinity, groups) + 1e-12
        groups = best if improved else groups
    return [tuple(sorted(group)) for group in groups]


def _with(groups: Groups, task: int, most: int) -> Iterator[Groups]:
    for i, group in enumerate(groups):
        yield [*groups[:i], (*group, task), *groups[i + 1 :]]
    if len(groups) < most:
        yield [*groups, (task,)]


# ------------------------------------------------------------------------------------------------------ the words


def grouping_text(comparisons: Sequence[Comparison], most: int) -> str:
    """The best grouping of each row with affinities, and its commands; ReportError where no row has them."""
    if most < 1:
        raise ReportError(f"--groups {most} must be 1 or more: it is the most networks that the tasks are spread over.")
    parts = []
    for comparison in comparisons:
        found = [(row.label, row.first, _complete(row)) for row in comparison.methods]
        texts = [_of_row(label, run, own, most) for label, run, own in found if own is not None]
        if texts:
            parts.append("\n\n".join([f"## {comparison.data}: tasks in at most {most} networks", CAUTION, *texts]))
    if not parts:
        raise ReportError(
            f"--groups {most}: no run here has measured the affinity of all its tasks; train with "
            "conflict.affinity_every=10, and conflict.audit_every=50 for the lookahead."
        )
    return "\n\n".join(parts) + "\n"


def _complete(row: Row) -> Affinity | None:
    """The lookahead of a row, or the estimate where it lacks a pair, which the few audited steps may never have had."""
    found = affinities(row)
    return next((found[k] for k in ("lookahead", "estimate") if k in found and found[k].is_complete), None)


def _of_row(label: str, run: Run, affinity: Affinity, most: int) -> str:
    matrix = affinity.matrix
    groups = best_groups(matrix, most)
    named = [[affinity.tasks[task] for task in group] for group in groups]
    words = " · ".join(" + ".join(group) for group in named)
    together = total_affinity(matrix, [range(len(matrix))])
    searched = "" if len(matrix) <= EXACT else f" (the best of a beam search: more than {EXACT} tasks)"
    total = f"{100 * total_affinity(matrix, groups):.2g} %, of all tasks in one network {100 * together:.2g} %"
    head = f"{label}, by its {affinity.kind}: **{words}**{searched}. Total affinity {total}."
    lines, left_out = zip(*(group_command(run, group) for group in named), strict=True)
    text = "\n".join([head, "", *(f"    {line}" for line in lines)])
    dropped = dict.fromkeys(override for own in left_out for override in own)
    if dropped:
        text += f"\n\nWithout what a line's tasks have no part in, or with less of it: `{'`, `'.join(dropped)}`."
    return text
