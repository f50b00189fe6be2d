"""When and under which names a run's state is saved, and what happens when the disk is full."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mtl.distributed.collectives import broadcast_object, check_same_on_all_ranks, get_rank
from mtl.distributed.sharding import full_tensor
from mtl.runs import checkpoint

log = logging.getLogger(__name__)

FAILED_SAVES = 3  # so many in a row end the run


class Saver:
    """Writes a run's checkpoints, of its TrainState: ``last.pt``, ``best.pt`` and the ``keep`` latest numbered ones.

    A write that fails (a full disk, a folder that is gone) is a warning, and the last good checkpoint stays. After
    FAILED_SAVES in a row, or where there will not be another one, it is an OSError. ``data`` is the description of the
    data, which every checkpoint carries.
    """

    def __init__(self, state: Any, tracker: Any, keep: int, data: Mapping[str, Any]) -> None:
        self._state, self._tracker, self._keep, self._data = state, tracker, keep, dict(data)
        self._folder = tracker.folder / checkpoint.FOLDER
        self._failures = 0

    def save(self, best: tuple[float, dict[str, float]] | None = None, must: bool = False) -> None:
        """Save the state as ``last.pt``, and as ``best.pt`` where ``best`` has a new best model's value and metrics.

        If a new best model cannot be written, the one before stays the best. A best model and a last state (``must``)
        do not come again, so that writing them is tried for three seconds. Every rank calls this, for each has a part
        of the state; rank 0 writes. RuntimeError where the ranks' strategies differ.
        """
        if best is None:
            self._save([], must)
            return
        state = self._state
        before = state.best, state.best_step, state.best_metrics
        (state.best, state.best_metrics), state.best_step = best, state.step
        if not self._save(["best.pt"], must):
            state.best, state.best_step, state.best_metrics = before

    def _save(self, also: Sequence[str], must: bool) -> bool:
        """Whether the state could be written as ``last.pt``, and under the names ``also``."""
        check_same_on_all_ranks("The strategy's state", _digest(self._state.strategy.state_dict()))
        content = full_tensor(self._state.state_dict())
        return broadcast_object(self._write(content, also, must) if get_rank() == 0 else None)

    def _write(self, state: dict[str, Any], also: Sequence[str], must: bool) -> bool:
        numbered = [f"step-{self._state.step:08d}.pt"] if self._keep else []
        made_by = {"config": self._tracker.config, "wandb_id": self._tracker.wandb_id, "data": self._data}
        content = made_by | state
        error = self._try_write(content, [*also, *numbered])
        for seconds in (1, 2) if also or must else ():
            if error is not None:
                time.sleep(seconds)
                error = self._try_write(content, [*also, *numbered])
        if error is not None:
            self._warn_or_raise(error, must)
            return False
        self._failures = 0
        return True

    def _try_write(self, content: dict[str, Any], also: Sequence[str]) -> Exception | None:
        try:
            # The rows are on the disk before the checkpoint is: a resumed run continues both.
            self._tracker.flush()
            self._folder.mkdir(exist_ok=True)
            checkpoint.save(self._folder / "last.pt", content, also)
            for old in sorted(self._folder.glob("step-*.pt"))[: -self._keep or None]:
                checkpoint.remove(old)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError on a full disk
            return error
        return None

    def _warn_or_raise(self, error: Exception, must: bool) -> None:
        self._failures += 1
        step = checkpoint.step_of(self._folder / "last.pt")
        good = "there is none before it" if step is None else f"the last good one is of step {step}"
        reason = " ".join(str(error).split())
        words = f"The checkpoint of step {self._state.step} cannot be written to {self._folder} ({reason}); {good}."
        if must or self._failures >= FAILED_SAVES:
            raise OSError(f"{words} The run ends: it was number {self._failures} in a row to fail.") from error
        log.warning("%s Training goes on; %d more in a row would end it.", words, FAILED_SAVES - self._failures)


def _digest(state: Any) -> str:
    """A fingerprint of a nesting of tensors and plain values."""
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves(state):
        if isinstance(leaf, torch.Tensor):
            digest.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()
