"""The heads and losses of a user's own table, where only those of the example are chosen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from mtl.errors import ConfigError

log = logging.getLogger(__name__)

TABLE = "mtl.data.table.Table"
LINEAR = "torch.nn.Linear"
EXAMPLE = ("basket", "amount", "again")  # the targets of its fixture, of which conf/heads/table.yaml has the heads


def take_targets(cfg: DictConfig) -> None:
    """Put a linear head and a loss for each target of ``data=table`` in the place of the example's, in ``cfg``.

    Other heads that are chosen for a target stay. Nothing happens where the heads are not the example's, or the targets
    are. ConfigError where the table does not tell the targets' kinds.
    """
    data = cfg.data
    if data.get("_target_") != TABLE or not {*EXAMPLE} <= {*(cfg.get("heads") or ())} or not data.get("targets"):
        return
    targets: Any = OmegaConf.to_container(data.targets) if OmegaConf.is_config(data.targets) else [data.targets]
    if {*EXAMPLE} == {*targets} or OmegaConf.is_missing(data, "root") or not _are_there(data):
        return
    from mtl.data.table_configuration import LOSSES  # with pandas, which other data do not need

    heads = {name: own for name, own in cfg.heads.items() if name not in EXAMPLE or own.get("_target_") != LINEAR}
    losses = {name: loss for name, loss in cfg.losses.items() if name not in EXAMPLE}
    for target, column in _columns(data).items():
        log.info("%s: %s", target, column)
        heads.setdefault(target, {"_target_": LINEAR, "out_features": column.width})
        if "_target_" not in losses:
            losses.setdefault(target, dict(LOSSES[column.kind]))
    with open_dict(cfg):
        cfg.heads, cfg.losses = heads, losses


def _are_there(data: DictConfig) -> bool:
    """Whether the files can be read; a file that cannot is the table's to say."""
    names = [data.file] if isinstance(data.file, str) else list(data.file.values())
    return all((Path(data.root).expanduser() / name).is_file() for name in names)


def _columns(data: DictConfig) -> Mapping[str, Any]:
    """The targets and what they are, as the table itself will find them; ConfigError where it would fail."""
    import numpy as np

    from mtl.data.columns import as_list, encode, infer
    from mtl.data.input_table import paths_of, read_files
    from mtl.data.table_targets import targets_of
    from mtl.data.table_text import check_column

    own: Any = OmegaConf.to_container(data, resolve=True)
    kinds = own.get("kinds") or {}
    try:
        table, file = read_files(paths_of(Path(own["root"]).expanduser(), own["file"]), own.get("missing") or ())
        wanted = own["targets"]
        wanted = wanted if isinstance(wanted, Mapping) else targets_of(as_list(wanted), file)
        every, found = np.ones(len(table), bool), {}
        for name, columns in wanted.items():
            named = tuple(check_column(table.columns, column, "targets", file) for column in as_list(columns))
            found[name] = encode(table, name, kinds.get(name) or infer(table, named, file), named, every, file)[0]
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error
    return found
