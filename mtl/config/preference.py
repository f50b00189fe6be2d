"""The preference that a trained model with members is to run at: checked before anything is built or read."""

from __future__ import annotations

import logging

from omegaconf import DictConfig
from torch import nn

from mtl.config.checks import chosen_tasks
from mtl.config.instantiate import import_target
from mtl.members import preference_of
from mtl.preference import Preference, shares

log = logging.getLogger(__name__)


def has_members(cfg: DictConfig) -> bool:
    """Whether the strategy trains a mixture of members, one a task: then the model, and a checkpoint, has them all."""
    return getattr(import_target("strategy", cfg.strategy), "has_members", False)


def chosen_shares(cfg: DictConfig, preference: Preference | None) -> list[float] | None:
    """The shares of a preference, in the order of the tasks; None, with a warning, where a model with members has none.

    ValueError for a preference that is none of these tasks', and for a model without members.
    """
    if not has_members(cfg):
        if preference is not None:
            raise ValueError(
                f"preference={preference}: the model has one set of weights for all preferences; one of "
                "strategy=pareto_manifold has a choice."
            )
        return None
    tasks = chosen_tasks(cfg)
    if preference is not None:
        return shares(preference, tasks)
    log.warning("the model has a front, and no preference is given: the shares of %s are equal", ", ".join(tasks))
    return None


def prefer(model: nn.Module, own: list[float] | None) -> None:
    """Let a model with members run at these shares; None leaves them equal."""
    if own is not None:
        preference = preference_of(model)
        assert preference is not None
        preference.set(own)
