"""Tasks that no training sample labels: their heads are what they were initialised as, and so are their metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from mtl.data.loader import DataError
from mtl.training.schedule import Plan
from mtl.training.state import TrainState

log = logging.getLogger(__name__)

SOON = 1000  # steps after which a task without a label is warned of, if an epoch is longer


def warn_of_untrained(state: TrainState, plan: Plan) -> None:
    """Name the tasks without a label in the first epoch, after its last step; DataError if no task has had one."""
    if state.step != min(plan.per_epoch, SOON, plan.steps) or not state.untrained:
        return
    names = ", ".join(state.untrained)
    if not state.labelled:
        raise DataError(f"no training sample of {state.step} steps has a label of {names}: there is nothing to learn")
    log.warning("%s: no label in the first %d training steps, so that nothing has been learnt of it", names, state.step)


def without_untrained(state: TrainState, metrics: Mapping[str, float]) -> dict[str, float]:
    """The test metrics of the tasks that were trained; the others are named, for theirs would mean nothing."""
    names = state.untrained
    if not names:
        return dict(metrics)
    log.warning("UNTRAINED: %s had no label in training; the test metrics leave it out", ", ".join(names))
    left_out = {f"loss/{name}" for name in names}
    kept = {k: v for k, v in metrics.items() if k not in left_out and k.split("/")[0] not in names}
    return kept | {"loss/total": sum(v for k, v in kept.items() if k.startswith("loss/") and k != "loss/total")}


def warn_of_unmeasured(split: str, tasks: Sequence[str], metrics: Mapping[str, float]) -> None:
    """Name the tasks that have no label in the split that gave these metrics."""
    if names := [name for name in tasks if f"loss/{name}" not in metrics]:
        log.warning(
            "%s: no label in %s, so that its metrics have no value there, and loss/total is without it",
            ", ".join(names),
            split,
        )
