"""What a person sees of a run: a progress bar on a terminal, else a line now and then."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from tqdm import tqdm

from mtl.runs.terminal import one_line
from mtl.training.schedule import Plan

log = logging.getLogger(__name__)


class ProgressBar(tqdm):
    """The steps of a run with their loss; plain log lines where stderr is no terminal."""

    def __init__(self, plan: Plan, step: int) -> None:
        # disable=None: off where stderr is no terminal.
        super().__init__(total=plan.steps, initial=step, disable=None, leave=False, ncols=100)
        self._plan = plan

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step that is logged."""
        self.set_postfix_str(f"loss {metrics['loss/total']:.4f}" if "loss/total" in metrics else "")
        if self.disable and self._plan.prints(step):
            log.info("step %d of %d: %s", step, self._plan.steps, one_line(metrics))
