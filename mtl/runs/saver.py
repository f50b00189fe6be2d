"""When and under which names a run's state is saved, and what happens when the disk is full."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mtl.distributed.collectives import broadcast_object, check_same_on_all_ranks, get_rank
from mtl.distributed.sharding import full_tensor
from mtl.runs.checkpoint import (
    FOLDER,
    remove,
    save,
    step_of,
)

log = logging.getLogger(__name__)

FAILED_SAVES = 3  # so many in a row end the run


class Saver:
    """Writes a run's checkpoints, of its TrainState: ``last.pt``, ``best.pt`` and the ``keep`` latest numbered ones.

    A write that fails (a full disk, a folder that is gone) leaves the last good checkpoint as it is and is a warning;
    after FAILED_SAVES in a row, or where there will not be another one, it is an OSError.
    """

    def __init__(self, state: Any, tracker: Any, keep: int) -> None:
        self._state, self._tracker, self._keep = state, tracker, keep
        self._folder = tracker.folder / FOLDER
        self._failures = 0

    def save_best(self, value: float, metrics: dict[str, float], must: bool) -> None:
        """Save a model that is better than all before; if that fails the one before stays the best."""
        state = self._state
        before = state.best, state.best_step, state.best_metrics
        state.best, state.best_step, state.best_metrics = value, state.step, metrics
        if not self.save("best.pt", must=must):
            state.best, state.best_step, state.best_metrics = before

    def save(self, *also: str, must: bool = False) -> bool:
        """Save the state as ``last.pt``, and under the names ``also``; whether it could be written.

        All ranks call it, for each has a part of the state; rank 0 writes. RuntimeError where their strategies differ.
        What will not come again, the best model or a last state (``must``), is tried again for three seconds.
        """
        check_same_on_all_ranks("The strategy's state", _digest(self._state.strategy.state_dict()))
        content = full_tensor(self._state.state_dict())
        return broadcast_object(self._write(content, also, must) if get_rank() == 0 else None)

    def _write(self, state: dict[str, Any], also: Sequence[str], must: bool) -> bool:
        numbered = [f"step-{self._state.step:08d}.pt"] if self._keep else []
        made_by = {"config": self._tracker.config, "wandb_id": self._tracker.wandb_id}
        content = made_by | state
        error = self._try(content, [*also, *numbered])
        for seconds in (1, 2) if also or must else ():
            if error is not None:
                time.sleep(seconds)
                error = self._try(content, [*also, *numbered])
        if error is not None:
            self._failed(error, must)
            return False
        self._failures = 0
        return True

    def _try(self, content: dict[str, Any], also: Sequence[str]) -> Exception | None:
        try:
            # On the disk before the checkpoint is: a resumed run goes on from both.
            self._tracker.flush()
            self._folder.mkdir(exist_ok=True)
            save(self._folder / "last.pt", content, also)
            for old in sorted(self._folder.glob("step-*.pt"))[: -self._keep or None]:
                remove(old)
        except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of torch's
            return error
        return None

    def _failed(self, error: Exception, must: bool) -> None:
        self._failures += 1
        step = step_of(self._folder / "last.pt")
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
