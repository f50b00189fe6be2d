"""The heads and losses of a user's own tables: one for each of their targets, where no other is chosen."""

from __future__ import annotations

import logging
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from mtl.config.checks import DEFAULT_HEAD, task_names
from mtl.config.instantiate import make_data
from mtl.errors import ConfigError

log = logging.getLogger(__name__)


def take_targets(cfg: DictConfig) -> Any:
    """Put the default head, and the loss of its kind, of each target of the data into ``cfg``; return the data set.

    What the targets are, the files tell: they are read once, and the data set is handed to :func:`build`. Nothing
    happens, and None is returned, where ``heads`` has no default, or the data no targets or no files; heads and losses
    that are chosen for a target stay. ConfigError where the data set does not say what its targets are.
    """
    if DEFAULT_HEAD not in (cfg.get("heads") or ()) or not task_names(cfg) or OmegaConf.missing_keys(cfg.data):
        return None
    data = make_data(cfg)
    if not hasattr(data, "columns"):
        raise ConfigError(
            f"heads.{DEFAULT_HEAD} is the head of each target of a table, and data ({type(data).__name__}) is none: "
            "give heads."
        )
    from mtl.data.table_configuration import LOSSES  # with pandas, which other data do not need

    heads: Any = OmegaConf.to_container(cfg.heads)
    losses: Any = OmegaConf.to_container(cfg.losses)
    default = heads.pop(DEFAULT_HEAD)
    for target, column in data.columns.items():
        log.info("%s: %s", target, column)
        heads.setdefault(target, {**default, "out_features": column.width})
        if "_target_" not in losses:
            losses.setdefault(target, dict(LOSSES[column.kind]))
    with open_dict(cfg):
        cfg.heads, cfg.losses = heads, losses
    return data
